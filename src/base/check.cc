#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace jewel {

void check_failed(const char* file, int line, const char* condition, std::string_view message) {
  std::fprintf(stderr, "jewel: internal error at %s:%d: %s does not hold: %.*s\n", file, line, condition,
               static_cast<int>(message.size()), message.data());
  std::abort();
}

}  // namespace jewel

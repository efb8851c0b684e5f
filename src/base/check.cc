#include "base/check.h"

#include <cstdio>
#include <cstdlib>

#include "jewel/result.h"

namespace jewel {

void check_failed(const char* file, int line, const char* condition, std::string_view message) {
  std::fprintf(stderr, "jewel: internal error at %s:%d: %s does not hold: %.*s\n", file, line, condition,
               static_cast<int>(message.size()), message.data());
  std::abort();
}

void wrong_side_of_result(const Error* held) {
  std::fprintf(
      stderr, "jewel: internal error: a Result was read as %s\n",
      held != nullptr ? ("a value but holds: " + held->message).c_str() : "an error but holds a value");
  std::abort();
}

}  // namespace jewel

// JEWEL_CHECK(condition, format, ...): for our own bugs only. Prints file, line and message to stderr and
// aborts, in release builds too. Never for anything that a file, a client or a user can cause (that is
// Result<T>).
#pragma once

#include <fmt/core.h>

#include <string_view>

namespace jewel {

[[noreturn]] void check_failed(const char* file, int line, const char* condition, std::string_view message);

}  // namespace jewel

#define JEWEL_CHECK(condition, ...)                                                         \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::jewel::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

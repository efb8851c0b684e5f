// Result<T> (include/jewel/result.h) with what our own code uses around it: makers of errors, and macros that
// hand an Error on.
//
//   Result<Config> read_config(const std::string& path);
//   ...
//   JEWEL_ASSIGN(Config config, read_config(path));   // returns the Error from the enclosing function
#pragma once

#include <string>
#include <utility>

#include "base/check.h"
#include "jewel/result.h"

namespace jewel {

inline Error invalid(std::string message, std::string param = {}) {
  return {ErrorCode::kInvalid, std::move(message), std::move(param)};
}
inline Error unsupported(std::string message, std::string param = {}) {
  return {ErrorCode::kUnsupported, std::move(message), std::move(param)};
}
inline Error too_large(std::string message, std::string param = {}) {
  return {ErrorCode::kTooLarge, std::move(message), std::move(param)};
}
inline Error not_found(std::string message, std::string param = {}) {
  return {ErrorCode::kNotFound, std::move(message), std::move(param)};
}
inline Error unavailable(std::string message, std::string param = {}) {
  return {ErrorCode::kUnavailable, std::move(message), std::move(param)};
}
inline Error internal(std::string message, std::string param = {}) {
  return {ErrorCode::kInternal, std::move(message), std::move(param)};
}

}  // namespace jewel

#define JEWEL_CONCAT_INNER(a, b) a##b
#define JEWEL_CONCAT(a, b) JEWEL_CONCAT_INNER(a, b)

// Evaluates an expression of type Result<T>; returns its Error, or goes on.
#define JEWEL_TRY(expression)                                         \
  do {                                                                \
    if (auto jewel_try_result = (expression); !jewel_try_result.ok()) \
      return std::move(jewel_try_result).error();                     \
  } while (false)

// Declares or assigns `target` from a Result<T>, or returns its Error.
#define JEWEL_ASSIGN(target, expression) \
  JEWEL_ASSIGN_IMPL(JEWEL_CONCAT(jewel_result_, __LINE__), target, expression)
#define JEWEL_ASSIGN_IMPL(result, target, expression) \
  auto result = (expression);                         \
  if (!result.ok()) return std::move(result).error(); \
  target = std::move(result).value()

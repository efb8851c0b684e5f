// Result<T>: a value or an Error, for everything that bytes from outside can cause.
//
// Three kinds of trouble are kept apart. The client's or the file's trouble is an Error, returned and finally
// shown to a person: it says what was found, what was expected and what to do. The machine's trouble at start
// is an Error too, one readable line. Our own bugs, and reading the wrong side of a Result, stop the program.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>

namespace jewel {

// What a caller may do about it; the server maps these to HTTP statuses, the command line to exit codes.
enum class ErrorCode {
  kInvalid,      // the input is wrong: 400
  kTooLarge,     // a limit was passed: 413 (bytes) or 400 (tokens)
  kNotFound,     // a file, a model or a route does not exist: 404
  kUnsupported,  // well-formed, but Jewel does not do it: 400, names what it found
  kUnavailable,  // out of memory, no device, overloaded: 503
  kCancelled,    // the caller went away
  kInternal,     // a library failed in a way we did not foresee: 500
};

struct Error {
  ErrorCode code = ErrorCode::kInvalid;
  std::string message;  // a whole sentence without a full stop: "X: found A, expected B; do C"
  std::string param;    // the field of the request or the file's key, when there is one
};

// Prints what a Result held instead of what was read from it, and aborts.
[[noreturn]] void wrong_side_of_result(const Error* held);

template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit, so that a function can return either.  NOLINTBEGIN(google-explicit-constructor)
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  // NOLINTEND(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Only when ok().
  T& value() & { return check_ok(), *std::get_if<0>(&state_); }
  const T& value() const& { return check_ok(), *std::get_if<0>(&state_); }
  T&& value() && { return check_ok(), std::move(*std::get_if<0>(&state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Only when !ok().
  const Error& error() const& { return check_error(), *std::get_if<1>(&state_); }
  Error&& error() && { return check_error(), std::move(*std::get_if<1>(&state_)); }

 private:
  void check_ok() const {
    if (!ok()) [[unlikely]]
      wrong_side_of_result(std::get_if<1>(&state_));
  }
  void check_error() const {
    if (ok()) [[unlikely]]
      wrong_side_of_result(nullptr);
  }

  std::variant<T, Error> state_;
};

// Success without a value.
struct Ok {};
template <>
class [[nodiscard]] Result<void> : public Result<Ok> {
 public:
  Result() : Result<Ok>(Ok{}) {}
  Result(Ok ok) : Result<Ok>(ok) {}                      // NOLINT(google-explicit-constructor)
  Result(Error error) : Result<Ok>(std::move(error)) {}  // NOLINT(google-explicit-constructor)
};

}  // namespace jewel

// How src/text calls textkit (rust/textkit/include/textkit.h): buffers that free themselves, and statuses as
// Errors.
#pragma once

#include <textkit.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

// A tk_buffer owned by C++; out() hands its address to textkit, once.
class TextkitBuffer {
 public:
  TextkitBuffer() = default;
  TextkitBuffer(const TextkitBuffer&) = delete;
  TextkitBuffer& operator=(const TextkitBuffer&) = delete;
  ~TextkitBuffer() { tk_buffer_free(&buffer_); }

  tk_buffer* out() { return &buffer_; }
  const uint8_t* data() const { return buffer_.data; }
  size_t size() const { return buffer_.size; }
  std::string_view view() const { return {reinterpret_cast<const char*>(buffer_.data), buffer_.size}; }
  std::string str() const { return std::string(view()); }

 private:
  tk_buffer buffer_ = {nullptr, 0};
};

inline const uint8_t* textkit_bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

// The Error of a status other than TK_OK.
inline Error textkit_error(int32_t status, const TextkitBuffer& message, const std::string& where = {}) {
  const std::string text = where.empty() ? message.str() : where + ": " + message.str();
  switch (status) {
    case TK_INVALID:
      return invalid(text);
    case TK_TOO_LARGE:
      return too_large(text);
    case TK_UNSUPPORTED:
      return unsupported(text);
    default:
      return internal(text);
  }
}

}  // namespace jewel

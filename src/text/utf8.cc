#include "text/utf8.h"

#include <cstdint>

namespace jewel {
namespace {

uint8_t byte_at(std::string_view text, size_t i) {
  return static_cast<uint8_t>(text[i]);
}

// What the lead byte asks for: how many bytes, and the range of the second one, which alone excludes overlong
// forms, surrogates and values above U+10FFFF.
struct Lead {
  size_t length;
  uint8_t second_min, second_max;
};

Lead lead_of(uint8_t b) {
  if (b < 0x80) return {1, 0, 0};
  if (b < 0xC2) return {0, 0, 0};
  if (b < 0xE0) return {2, 0x80, 0xBF};
  if (b == 0xE0) return {3, 0xA0, 0xBF};
  if (b == 0xED) return {3, 0x80, 0x9F};
  if (b < 0xF0) return {3, 0x80, 0xBF};
  if (b == 0xF0) return {4, 0x90, 0xBF};
  if (b < 0xF4) return {4, 0x80, 0xBF};
  if (b == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many bytes at `at` are a sequence or the start of one.
size_t good_bytes(std::string_view text, size_t at, const Lead& lead) {
  size_t n = lead.length == 0 ? 0 : 1;
  while (n < lead.length && at + n < text.size()) {
    const uint8_t b = byte_at(text, at + n);
    const uint8_t low = n == 1 ? lead.second_min : 0x80;
    const uint8_t high = n == 1 ? lead.second_max : 0xBF;
    if (b < low || b > high) break;
    ++n;
  }
  return n;
}

uint32_t code_point(std::string_view text, size_t at, size_t length) {
  static constexpr uint8_t kLeadMask[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  uint32_t c = byte_at(text, at) & kLeadMask[length];
  for (size_t i = 1; i < length; ++i) c = c << 6 | (byte_at(text, at + i) & 0x3F);
  return c;
}

bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace

size_t utf8_length(std::string_view text, size_t at) {
  const Lead lead = lead_of(byte_at(text, at));
  return good_bytes(text, at, lead) == lead.length ? lead.length : 0;
}

size_t utf8_bad_length(std::string_view text, size_t at) {
  const size_t n = good_bytes(text, at, lead_of(byte_at(text, at)));
  return n == 0 ? 1 : n;
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(text, i);
    if (n == 0) return false;
    i += n;
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t n = utf8_length(text, i);
    if (n == 0) {
      out += kReplacementCharacter;
      i += utf8_bad_length(text, i);
    } else {
      out += text.substr(i, n);
      i += n;
    }
  }
  return out;
}

Trimmed trim_like_python(std::string_view text) {
  size_t begin = 0, end = 0;
  bool started = false;
  for (size_t i = 0; i < text.size();) {
    size_t n = utf8_length(text, i);
    const bool space = n != 0 && is_python_space(code_point(text, i, n));
    if (n == 0) n = 1;
    if (!space) {
      if (!started) begin = i;
      started = true;
      end = i + n;
    }
    i += n;
  }
  return {begin, end};
}

}  // namespace jewel

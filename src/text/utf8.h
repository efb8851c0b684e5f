// UTF-8 at the edge: bytes that claim to be text. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace jewel {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The length of the UTF-8 sequence at text[at], 1 to 4; 0 when the bytes there are not one (overlong forms,
// surrogates and values above U+10FFFF included).
size_t utf8_length(std::string_view text, size_t at);

// The bytes to pass over where utf8_length is 0: the longest start of a sequence, at least 1. Python's
// decoder with errors="replace" and browsers count alike.
size_t utf8_bad_length(std::string_view text, size_t at);

bool is_utf8(std::string_view text);

// Each ill-formed stretch becomes one U+FFFD, as bytes.decode("utf-8", "replace") does.
std::string replace_invalid_utf8(std::string_view text);

// The parts of text without the white space at its ends; white space is what Python's str.strip() removes.
struct Trimmed {
  size_t begin;
  size_t end;
};
Trimmed trim_like_python(std::string_view text);  // text is UTF-8

}  // namespace jewel

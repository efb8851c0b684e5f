#include "server/openai/json_out.h"

#include <charconv>
#include <cmath>

#include "text/utf8.h"

namespace jewel {
namespace {

template <typename T>
std::string_view shortest(char (&buffer)[32], T number) {
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number).ptr;
  return {buffer, static_cast<size_t>(end - buffer)};
}

bool is_plain(char c) {
  return static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\' && (c & 0x80) == 0;
}

void append_escape(std::string& out, char c) {
  static constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      out += "\\u00";
      out += kHex[(c >> 4) & 15];
      out += kHex[c & 15];
  }
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  size_t at = 0;
  while (at < text.size()) {
    size_t end = at;
    while (end < text.size() && is_plain(text[end])) ++end;
    out.append(text, at, end - at);
    at = end;
    if (at == text.size()) break;
    if ((text[at] & 0x80) == 0) {
      append_escape(out, text[at++]);
    } else if (const size_t length = utf8_length(text, at); length > 0) {
      out.append(text, at, length);
      at += length;
    } else {
      out += kReplacementCharacter;
      at += utf8_bad_length(text, at);
    }
  }
  out += '"';
}

JsonOut& JsonOut::key(std::string_view name) {
  comma();
  append_json_string(text_, name);
  text_ += ':';
  first_ = true;  // the value follows without a comma
  return *this;
}

JsonOut& JsonOut::value(std::string_view text) {
  comma();
  append_json_string(text_, text);
  return *this;
}

JsonOut& JsonOut::value(double number) {
  char buffer[32];
  return std::isfinite(number) ? raw(shortest(buffer, number)) : null();
}

JsonOut& JsonOut::value(float number) {
  char buffer[32];
  return std::isfinite(number) ? raw(shortest(buffer, number)) : null();
}

JsonOut& JsonOut::value(int64_t number) {
  char buffer[32];
  return raw(shortest(buffer, number));
}

JsonOut& JsonOut::value(uint64_t number) {
  char buffer[32];
  return raw(shortest(buffer, number));
}

}  // namespace jewel

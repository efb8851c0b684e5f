#include "text/tool_call.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <charconv>
#include <utility>

#include "base/check.h"

namespace jewel {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view strip(std::string_view s) {
  while (!s.empty() && is_space(s.front())) s.remove_prefix(1);
  while (!s.empty() && is_space(s.back())) s.remove_suffix(1);
  return s;
}

bool equals_ignoring_case(std::string_view s, std::string_view lower) {
  if (s.size() != lower.size()) return false;
  for (size_t i = 0; i < s.size(); ++i) {
    const char c = s[i] >= 'A' && s[i] <= 'Z' ? static_cast<char>(s[i] + 32) : s[i];
    if (c != lower[i]) return false;
  }
  return true;
}

// JSON's own grammar of numbers: 007 and 1. and +5 are strings, as a postcode should be. So is what no
// float64 holds (1e999), and a long exponent of zero (0e66666666666): clients' parsers disagree about them or
// refuse the whole object.
bool is_json_number(std::string_view s) {
  size_t i = 0;
  const auto digits = [&] {
    const size_t begin = i;
    while (i < s.size() && is_digit(s[i])) ++i;
    return i > begin;
  };
  if (i < s.size() && s[i] == '-') ++i;
  const size_t whole = i;
  if (!digits() || (s[whole] == '0' && i > whole + 1)) return false;
  if (i < s.size() && s[i] == '.') {
    ++i;
    if (!digits()) return false;
  }
  if (i < s.size() && (s[i] == 'e' || s[i] == 'E')) {
    ++i;
    if (i < s.size() && (s[i] == '+' || s[i] == '-')) ++i;
    constexpr size_t kMostDigits = 4;
    const size_t begin = i;
    if (!digits() || i - begin > kMostDigits) return false;
  }
  if (i != s.size()) return false;
  double value = 0;
  return std::from_chars(s.data(), s.data() + s.size(), value).ec == std::errc();
}

void append_escaped(std::string& out, char c) {
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
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    default:
      break;
  }
  const auto u = static_cast<unsigned char>(c);
  if (u < 0x20) {
    out += fmt::format("\\u{:04x}", u);
  } else {
    out += c;
  }
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) append_escaped(out, c);
  out += '"';
}

// The text of a JSON string literal, if it is a whole one.
std::optional<std::string> from_json_string(std::string_view text) {
  if (text.size() < 2 || text.front() != '"' || text.back() != '"') return std::nullopt;
  boost::system::error_code ec;
  const boost::json::value value = boost::json::parse(text, ec);
  if (ec || !value.is_string()) return std::nullopt;
  return std::string(value.get_string());
}

bool is_name(std::string_view s) {
  if (s.empty() || s.size() > ToolCallReader::kMaxNameBytes) return false;
  for (const char c : s) {
    const bool word = is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
                      c == '-' || c == '.' || static_cast<unsigned char>(c) >= 0x80;
    if (!word) return false;
  }
  return true;
}

}  // namespace

std::string ToolCallReader::text(std::string_view piece) {
  for (const char c : piece) character(c);
  return std::exchange(out_, {});
}

std::string ToolCallReader::quote() {
  switch (state_) {
    case State::kName:
      state_ = State::kMalformed;
      break;
    case State::kKey:
      state_ = State::kQuotedKey;
      break;
    case State::kQuotedKey:
      state_ = State::kKey;
      break;
    case State::kValue:
      if (strip(pending_).empty()) {
        begin_value();
        pending_.clear();
        out_ += '"';
        state_ = State::kString;
      } else {  // text<|"|>: the opening mark was forgotten
        json_quote_ = 0;
        end_bare_value();
      }
      break;
    case State::kString:
      out_ += '"';
      state_ = State::kAfterValue;
      break;
    case State::kAfterValue:
      state_ = State::kJunkString;
      break;
    case State::kJunkString:
      state_ = State::kAfterValue;
      break;
    case State::kDone:
    case State::kMalformed:
      break;
  }
  return std::exchange(out_, {});
}

void ToolCallReader::character(char c) {
  switch (state_) {
    case State::kName:
      raw_ += c;
      if (c == '{' || c == '(') {
        outer_closer_ = c == '{' ? '}' : ')';
        open_arguments();
      } else if (raw_.size() > kMaxNameBytes + 16) {
        state_ = State::kMalformed;
      }
      return;
    case State::kKey:
      if (c == ':') {
        end_key();
      } else if (is_closer(c)) {
        pending_.clear();
        end_container();
      } else if (c == ',') {
        pending_.clear();  // a key without a value
      } else {
        pending_ += c;
      }
      return;
    case State::kQuotedKey:
      pending_ += c;
      return;
    case State::kValue:
      if (json_quote_ != 0) {  // separators inside "…" are text
        pending_ += c;
        if (json_escape_) {
          json_escape_ = false;
        } else if (c == '\\') {
          json_escape_ = true;
        } else if (c == json_quote_) {
          json_quote_ = 0;
        }
      } else if (pending_.empty() && is_space(c)) {
        // not begun yet
      } else if (pending_.empty() && (c == '{' || c == '[') && open_.size() < kMaxDepth) {
        begin_value();
        out_ += c;
        open_.push_back(c);
        filled_.push_back(false);
        state_ = c == '{' ? State::kKey : State::kValue;
      } else if (c == ',') {
        end_bare_value();
        character(c);
      } else if (is_closer(c)) {
        const bool empty_list = pending_.empty() && open_.back() == '[';
        if (!empty_list) end_bare_value();
        end_container();
      } else {
        if (pending_.empty() && c == '"') json_quote_ = c;
        pending_ += c;
      }
      return;
    case State::kString:
      append_escaped(out_, c);
      return;
    case State::kAfterValue:
      if (c == ',') {
        state_ = open_.back() == '{' ? State::kKey : State::kValue;
      } else if (is_closer(c)) {
        end_container();
      }
      return;
    case State::kJunkString:
    case State::kDone:
      return;
    case State::kMalformed:
      raw_ += c;
      return;
  }
}

bool ToolCallReader::is_closer(char c) const {
  if (open_.size() == 1) return c == outer_closer_;
  return c == (open_.back() == '{' ? '}' : ']');
}

void ToolCallReader::open_arguments() {
  std::string_view name = strip(std::string_view(raw_).substr(0, raw_.size() - 1));
  if (name.starts_with("call:")) name = strip(name.substr(5));
  if (!is_name(name)) {
    state_ = State::kMalformed;
    return;
  }
  name_ = name;
  out_ += '{';
  open_.push_back('{');
  filled_.push_back(false);
  state_ = State::kKey;
}

void ToolCallReader::end_key() {
  const std::string_view key = strip(pending_);
  if (filled_.back()) out_ += ',';
  filled_.back() = true;
  append_string(out_, from_json_string(key).value_or(std::string(key)));
  out_ += ':';
  pending_.clear();
  state_ = State::kValue;
}

// In an object the comma stands before the key.
void ToolCallReader::begin_value() {
  if (open_.back() == '[') {
    if (filled_.back()) out_ += ',';
    filled_.back() = true;
  }
}

void ToolCallReader::end_bare_value() {
  begin_value();
  const std::string_view value = strip(pending_);
  if (value.empty() || equals_ignoring_case(value, "null") || equals_ignoring_case(value, "none") ||
      equals_ignoring_case(value, "nil")) {
    out_ += "null";
  } else if (equals_ignoring_case(value, "true")) {
    out_ += "true";
  } else if (equals_ignoring_case(value, "false")) {
    out_ += "false";
  } else if (is_json_number(value)) {
    out_ += value;
  } else {
    append_string(out_, from_json_string(value).value_or(std::string(value)));
  }
  pending_.clear();
  json_quote_ = 0;
  json_escape_ = false;
  state_ = State::kAfterValue;
}

void ToolCallReader::end_container() {
  out_ += open_.back() == '{' ? '}' : ']';
  open_.pop_back();
  filled_.pop_back();
  state_ = open_.empty() ? State::kDone : State::kAfterValue;
}

std::string ToolCallReader::finish() {
  complete_ = state_ == State::kDone;
  switch (state_) {
    case State::kName:
      raw_ += '{';  // call:NAME with nothing behind it is a call without arguments
      open_arguments();
      raw_.pop_back();
      if (state_ == State::kMalformed) return {};
      break;
    case State::kMalformed:
      return {};
    case State::kString:
      out_ += '"';
      break;
    case State::kValue:
      if (!(pending_.empty() && open_.back() == '[')) end_bare_value();
      break;
    default:
      break;
  }
  while (!open_.empty()) end_container();
  state_ = State::kDone;
  return std::exchange(out_, {});
}

std::optional<ToolCall> parse_tool_call(std::string_view body, std::string_view quote_mark) {
  ToolCallReader reader;
  ToolCall call;
  while (true) {
    const size_t at = quote_mark.empty() ? std::string_view::npos : body.find(quote_mark);
    call.arguments += reader.text(body.substr(0, at));
    if (at == std::string_view::npos) break;
    call.arguments += reader.quote();
    body.remove_prefix(at + quote_mark.size());
  }
  call.arguments += reader.finish();
  if (reader.malformed()) return std::nullopt;
  call.name = reader.name();
  call.complete = reader.complete();
  return call;
}

}  // namespace jewel

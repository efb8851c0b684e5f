#include "text/user_text.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "text/utf8.h"

namespace jewel {
namespace {

constexpr std::string_view kEscape = "\xEF\xB7\x90";  // U+FDD0
constexpr std::string_view kSelf = "\xEF\xB7\x91";    // U+FDD1
constexpr std::string_view kBreak = "\xEF\xB7\x92";   // U+FDD2

void append_mark(std::string& out) {
  out += kEscape;
  out += kBreak;
}

}  // namespace

bool UserText::breakable() const {
  const auto& specials = tokenizer_->special_tokens();
  return std::none_of(specials.begin(), specials.end(),
                      [](const std::string& text) { return utf8_length(text, 0) >= text.size(); });
}

bool UserText::ends_in_a_start(std::string_view text) const {
  for (const std::string& special : tokenizer_->special_tokens()) {
    for (size_t n = std::min(special.size() - 1, text.size()); n > 0; --n) {
      if (text.ends_with(std::string_view(special).substr(0, n))) return true;
    }
  }
  return false;
}

bool UserText::starts_with_an_end(std::string_view text) const {
  for (const std::string& special : tokenizer_->special_tokens()) {
    for (size_t n = std::min(special.size() - 1, text.size()); n > 0; --n) {
      if (text.starts_with(std::string_view(special).substr(special.size() - n))) return true;
    }
  }
  return false;
}

std::string UserText::protect(std::string_view text) const {
  // Templates trim, so what meets other text is the first and the last character that is not white space.
  const Trimmed core = trim_like_python(text);
  const std::string_view middle = text.substr(core.begin, core.end - core.begin);
  const size_t mark_before = starts_with_an_end(middle) ? core.begin : std::string_view::npos;
  const size_t mark_after = ends_in_a_start(middle) ? core.end : std::string_view::npos;

  std::string out;
  out.reserve(text.size() + 16);
  auto next_special = tokenizer_->find_special(text, 0);
  size_t break_at = std::string_view::npos;
  for (size_t i = 0; i <= text.size();) {
    if (i == mark_before || i == mark_after || i == break_at) append_mark(out);
    if (i == text.size()) break;
    size_t n = utf8_length(text, i);
    if (n == 0) n = 1;
    if (next_special && next_special->position == i) {
      // Looking on from the next character: a token may begin inside a broken one.
      break_at = i + n;
      next_special = tokenizer_->find_special(text, i + n);
    }
    out += text.substr(i, n);
    if (text.substr(i, n) == kEscape) out += kSelf;
    i += n;
  }
  return out;
}

std::string UserText::restore(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t at = text.find(kEscape, i);
    if (at == std::string_view::npos) {
      out += text.substr(i);
      break;
    }
    out += text.substr(i, at - i);
    i = at + kEscape.size();
    if (text.substr(i).starts_with(kBreak)) {
      i += kBreak.size();
    } else {
      out += kEscape;
      if (text.substr(i).starts_with(kSelf)) i += kSelf.size();
    }
  }
  return out;
}

std::string UserText::protect_assistant(std::string_view text, std::string_view channel_open,
                                        std::string_view channel_close) const {
  if (channel_open.empty() || channel_close.empty()) return protect(text);
  std::string out;
  size_t begin = 0;
  size_t open = text.find(channel_open);
  size_t close = text.find(channel_close);
  while (std::min(open, close) != std::string_view::npos) {
    const size_t at = std::min(open, close);
    const std::string_view marker = open < close ? channel_open : channel_close;
    out += protect(text.substr(begin, at - begin));
    out += marker;
    begin = at + marker.size();
    // Only the one that was passed is looked for again: the whole stays linear.
    if (open < begin) open = text.find(channel_open, begin);
    if (close < begin) close = text.find(channel_close, begin);
  }
  out += protect(text.substr(begin));
  return out;
}

boost::json::value UserText::protect_all(const boost::json::value& value) const {
  if (const auto* text = value.if_string()) return boost::json::value(protect(*text));
  if (const auto* items = value.if_array()) {
    boost::json::array out;
    out.reserve(items->size());
    for (const auto& item : *items) out.push_back(protect_all(item));
    return out;
  }
  if (const auto* fields = value.if_object()) {
    boost::json::object out;
    for (const auto& [key, item] : *fields) out[protect(key)] = protect_all(item);
    return out;
  }
  return value;
}

}  // namespace jewel

#include "text/grammar.h"

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <vector>

#include "text/textkit_call.h"

namespace jewel {
namespace {

int32_t textkit_kind(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kJsonSchema:
      return TK_GRAMMAR_JSON_SCHEMA;
    case GrammarKind::kRegex:
      return TK_GRAMMAR_REGEX;
    case GrammarKind::kLark:
      break;
  }
  return TK_GRAMMAR_LARK;
}

}  // namespace

std::string lark_string(std::string_view text) {
  std::string quoted = boost::json::serialize(boost::json::string(text));
  for (size_t at = 0; (at = quoted.find('\x7f', at)) != std::string::npos;) quoted.replace(at, 1, "\\u007f");
  return quoted;
}

// A pattern between Lark's slashes.
std::string lark_regex(std::string_view pattern) {
  std::string text;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] == '\\' && i + 1 < pattern.size() && pattern[i + 1] != '\n') {
      text += pattern[i++];
      text += pattern[i];
    } else if (pattern[i] == '/') {
      text += "\\/";
    } else if (pattern[i] == '\n') {
      text += "\\n";
    } else {
      text += pattern[i];
    }
  }
  return text;
}

void GrammarMatcher::Close::operator()(tk_matcher* handle) const {
  tk_matcher_free(handle);
}

void GrammarCompiler::Close::operator()(tk_vocabulary* handle) const {
  tk_vocabulary_free(handle);
}

Result<void> GrammarMatcher::mask(std::span<uint32_t> words) {
  TextkitBuffer message;
  const int32_t status = tk_matcher_mask(handle_.get(), words.data(), words.size(), message.out());
  if (status != TK_OK) return textkit_error(status, message, "grammar");
  return {};
}

Result<void> GrammarMatcher::push(int32_t id) {
  TextkitBuffer message;
  const int32_t status = tk_matcher_push(handle_.get(), static_cast<uint32_t>(id), message.out());
  if (status != TK_OK) return textkit_error(status, message, "grammar");
  return {};
}

bool GrammarMatcher::accepts() {
  return tk_matcher_accepts(handle_.get()) != 0;
}

GrammarMatcher GrammarMatcher::clone() const {
  tk_matcher* copy = nullptr;
  TextkitBuffer message;
  const int32_t status = tk_matcher_clone(handle_.get(), &copy, message.out());
  JEWEL_CHECK(status == TK_OK, "{}", message.view());
  return GrammarMatcher(copy);
}

Result<std::unique_ptr<GrammarCompiler>> GrammarCompiler::make(const Tokenizer& tokenizer, int vocab_size,
                                                               std::span<const int32_t> stop_ids) {
  const std::vector<uint32_t> stops(stop_ids.begin(), stop_ids.end());
  tk_vocabulary* handle = nullptr;
  TextkitBuffer message;
  const int32_t status = tk_vocabulary_new(tokenizer.handle_.get(), static_cast<size_t>(vocab_size),
                                           stops.data(), stops.size(), &handle, message.out());
  if (status != TK_OK) return textkit_error(status, message, "tokenizer.json");
  std::unique_ptr<GrammarCompiler> compiler(new GrammarCompiler);
  compiler->handle_.reset(handle);
  compiler->mask_words_ = (static_cast<size_t>(vocab_size) + 31) / 32;
  return compiler;
}

// The remembered grammar, moved to the front.
std::shared_ptr<const GrammarMatcher> GrammarCompiler::find(GrammarKind kind, std::string_view text) {
  const std::scoped_lock lock(mutex_);
  const auto at = std::ranges::find_if(
      remembered_, [&](const Remembered& known) { return known.kind == kind && known.text == text; });
  if (at == remembered_.end()) return nullptr;
  remembered_.splice(remembered_.begin(), remembered_, at);
  return at->matcher;
}

Result<GrammarMatcher> GrammarCompiler::compile(GrammarKind kind, std::string_view text) {
  if (const auto known = find(kind, text)) return known->clone();
  tk_matcher* handle = nullptr;
  TextkitBuffer message;
  const int32_t status = tk_matcher_new(handle_.get(), textkit_kind(kind), textkit_bytes(text), text.size(),
                                        &handle, message.out());
  if (status != TK_OK) return textkit_error(status, message);
  GrammarMatcher matcher(handle);
  if (text.size() > kRememberedBytes) return matcher;
  auto start = std::make_shared<const GrammarMatcher>(matcher.clone());
  const std::scoped_lock lock(mutex_);
  remembered_.push_front({kind, std::string(text), std::move(start)});
  if (remembered_.size() > kRemembered) remembered_.pop_back();
  return matcher;
}

}  // namespace jewel

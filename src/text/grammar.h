// Grammars: which tokens may come next so that the whole answer is an instance of a JSON schema, a regular
// expression or a grammar.
//
//   JEWEL_ASSIGN(auto grammars, GrammarCompiler::make(tokenizer, vocab_size, stop_ids));
//   JEWEL_ASSIGN(GrammarMatcher matcher, grammars->compile(GrammarKind::kRegex, "[0-9]{4}"));
//   matcher.mask(words);   // sample an id that is set
//   matcher.push(id);
//
// The engine is llguidance behind rust/textkit: text is matched byte by byte whatever tokens spell it,
// control tokens match only where a grammar names them. Texts may be hostile: size, nesting, repetition, time
// and memory of compiling and of every mask are bounded (rust/textkit/src/grammar.rs), and passing a bound is
// an Error.
//
// GrammarCompiler: any thread, several at once; it remembers the last grammars, since clients send the same
// schema again and again. GrammarMatcher: one thread at a time.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/tokenizer.h"

struct tk_vocabulary;
struct tk_matcher;

namespace jewel {

enum class GrammarKind : uint8_t { kJsonSchema, kRegex, kLark };

// Text as a literal of Lark; and a regular expression between Lark's slashes.
std::string lark_string(std::string_view text);
std::string lark_regex(std::string_view pattern);

class GrammarMatcher {
 public:
  // The ids that may come next; a stop id is among them where the answer may end. `words`: bit id % 32 of
  // word id / 32, as many as the vocabulary needs. An Error when a bound on time or memory is passed.
  Result<void> mask(std::span<uint32_t> words);

  // An Error when the grammar does not allow the id; the matcher is then of no more use. Behind the end
  // (a stop id was pushed, or nothing can follow) every id is taken.
  Result<void> push(int32_t id);

  bool accepts();  // the answer may end here

  GrammarMatcher clone() const;

 private:
  friend class GrammarCompiler;
  struct Close {
    void operator()(tk_matcher* handle) const;
  };
  explicit GrammarMatcher(tk_matcher* handle) : handle_(handle) {}

  std::unique_ptr<tk_matcher, Close> handle_;
};

class GrammarCompiler {
 public:
  // `stop_ids`: what ends an answer, at least one. Builds a trie of the vocabulary: a fraction of a second.
  static Result<std::unique_ptr<GrammarCompiler>> make(const Tokenizer& tokenizer, int vocab_size,
                                                       std::span<const int32_t> stop_ids);

  // Errors name no field; the caller knows it.
  Result<GrammarMatcher> compile(GrammarKind kind, std::string_view text);

  size_t mask_words() const { return mask_words_; }

 private:
  struct Close {
    void operator()(tk_vocabulary* handle) const;
  };
  struct Remembered {
    GrammarKind kind;
    std::string text;
    std::shared_ptr<const GrammarMatcher> matcher;  // at its start; nobody moves it
  };
  static constexpr size_t kRemembered = 32;
  static constexpr size_t kRememberedBytes = 64 << 10;  // longer texts are compiled each time

  GrammarCompiler() = default;
  std::shared_ptr<const GrammarMatcher> find(GrammarKind kind, std::string_view text);

  std::unique_ptr<tk_vocabulary, Close> handle_;
  size_t mask_words_ = 0;
  std::mutex mutex_;
  std::list<Remembered> remembered_;  // the latest first
};

}  // namespace jewel

// Tokenizer: text to token ids by the checkpoint's own tokenizer.json, and what each id prints.
//
// The encoding is that of the reference implementation (crate `tokenizers`, through rust/textkit); special
// tokens are found here instead of there, because a prompt is made of text by people, in which nothing is
// special, and text by the template. Immutable after loading: any number of threads may use one Tokenizer.
// Text that is not UTF-8 is read as Python reads it with errors="replace". No BOS is ever added; a chat
// template writes its own.
//
//   JEWEL_ASSIGN(Tokenizer tokenizer, Tokenizer::load(dir + "/tokenizer.json"));
//   JEWEL_ASSIGN(std::vector<int32_t> ids, tokenizer.encode("Hi there", SpecialTokens::kAsText));
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

struct tk_tokenizer;

namespace jewel {

enum class SpecialTokens {
  kParse,   // "<bos>" in the text is one token
  kAsText,  // "<bos>" in the text is five characters
};

// An occurrence of a special token in a text.
struct SpecialMatch {
  size_t position = 0;
  size_t length = 0;
  int32_t id = 0;
};

class Tokenizer {
 public:
  enum class Kind : uint8_t {
    kHole,  // no token has this id
    kText,
    kByte,  // <0xE4>: one byte of a character that the vocabulary lacks
  };

  // The file's bytes, at most 256 MiB. Errors name the file.
  static Result<Tokenizer> load(const std::string& path);
  static Result<Tokenizer> from_json(std::string_view json);

  Result<std::vector<int32_t>> encode(std::string_view text, SpecialTokens special) const;

  // The reference's decoding of a whole sequence, special tokens as their names; the Detokenizer gives the
  // same in pieces.
  Result<std::string> decode(std::span<const int32_t> ids) const;

  // The id of a token by its exact spelling.
  std::optional<int32_t> id_of(std::string_view token) const;

  int32_t vocab_size() const { return static_cast<int32_t>(kinds_.size()); }  // the largest id plus one

  // False, kHole and "" for ids outside the vocabulary.
  bool is_special(int32_t id) const;
  Kind kind(int32_t id) const;
  std::string_view token_bytes(int32_t id) const;  // what the id prints: UTF-8, or one byte when kByte

  // The first special token at or after `from`, the longest where several start at one place.
  std::optional<SpecialMatch> find_special(std::string_view text, size_t from) const;

  // The spellings of all special tokens.
  const std::vector<std::string>& special_tokens() const { return special_texts_; }

 private:
  friend class GrammarCompiler;  // builds its trie from the same handle
  struct Close {
    void operator()(tk_tokenizer* handle) const;
  };
  struct Special {
    std::string text;
    int32_t id;
  };

  Tokenizer() = default;
  Result<void> read_table();
  Result<void> append_plain(std::string_view text, std::vector<int32_t>& ids) const;

  std::unique_ptr<tk_tokenizer, Close> handle_;
  std::string pieces_;                          // every token's bytes, in a row
  std::vector<uint32_t> ends_;                  // [vocab_size] where each token ends in pieces_
  std::vector<uint8_t> kinds_;                  // [vocab_size] TK_TOKEN_* flags
  std::vector<Special> special_by_first_[256];  // by first byte, longest first
  std::vector<std::string> special_texts_;
};

}  // namespace jewel

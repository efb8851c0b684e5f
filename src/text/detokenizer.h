// Detokenizer: token ids to text, one id at a time, never half a character.
//
// The pieces that push() and flush() return, put together, are Tokenizer::decode() of the whole sequence,
// exactly. The price: bytes (<0xE4> tokens) are held back until a token of another kind follows, because the
// reference replaces each byte of a run by U+FFFD if the run as a whole is not UTF-8, so that its first
// complete character is certain only at its end. Ordinary tokens are whole characters and are never held. One
// object belongs to one sequence and one thread; the Tokenizer must outlive it.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace jewel {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  // Text that became certain with this id. An id without a token prints nothing; a special token prints its
  // name.
  std::string push(int32_t id);

  // What was held back; the object then stands at the start of a new sequence.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  std::string bytes_;  // the run of byte tokens so far
};

}  // namespace jewel

// AnswerMask: a grammar as the engine sees it, with the thinking before it.
//
// The grammar begins where the answer does: at once, or behind <channel|> when the model thinks first. While
// it thinks, everything is allowed but what would end the answer before there is one. On the engine's thread
// only.
#pragma once

#include <vector>

#include "engine/request.h"
#include "text/grammar.h"
#include "text/special_ids.h"

namespace jewel {

class AnswerMask final : public TokenMask {
 public:
  enum class Start : uint8_t {
    kAnswer,        // the prompt leads to the answer
    kMaybeThought,  // the model may open a thought first
    kThought,       // the prompt ends inside of one
  };

  // `stop_ids`: what ends an answer; `vocab_size` of the model.
  AnswerMask(GrammarMatcher grammar, Start start, const SpecialIds& special,
             std::span<const TokenId> stop_ids, int vocab_size);

  Result<std::span<const uint32_t>> allowed() override;
  Result<void> accept(TokenId id) override;

 private:
  void allow(TokenId id, bool yes);

  GrammarMatcher grammar_;
  Start state_;
  TokenId thought_open_;
  TokenId thought_close_;
  std::vector<TokenId> not_in_thought_;
  std::vector<uint32_t> words_;
  bool computed_ = false;
};

}  // namespace jewel

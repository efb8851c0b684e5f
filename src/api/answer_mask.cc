#include "api/answer_mask.h"

#include <algorithm>
#include <utility>

namespace jewel {

AnswerMask::AnswerMask(GrammarMatcher grammar, Start start, const SpecialIds& special,
                       std::span<const TokenId> stop_ids, int vocab_size)
    : grammar_(std::move(grammar)),
      state_(start),
      thought_open_(special.channel_open),
      thought_close_(special.channel_close),
      not_in_thought_(stop_ids.begin(), stop_ids.end()),
      words_((static_cast<size_t>(vocab_size) + 31) / 32) {
  for (const TokenId id : {special.tool_call_open, special.turn_open, special.turn_close,
                           special.tool_response_open, special.channel_open}) {
    if (id >= 0) not_in_thought_.push_back(id);
  }
  if (thought_open_ < 0 || thought_close_ < 0) state_ = Start::kAnswer;
}

void AnswerMask::allow(TokenId id, bool yes) {
  uint32_t& word = words_[static_cast<size_t>(id) / 32];
  const uint32_t bit = uint32_t{1} << (id % 32);
  word = yes ? word | bit : word & ~bit;
}

Result<std::span<const uint32_t>> AnswerMask::allowed() {
  if (computed_) return std::span<const uint32_t>(words_);
  if (state_ == Start::kThought) {
    std::ranges::fill(words_, ~uint32_t{0});
    for (const TokenId id : not_in_thought_) allow(id, false);
  } else {
    JEWEL_TRY(grammar_.mask(words_));
    if (state_ == Start::kMaybeThought) allow(thought_open_, true);
  }
  computed_ = true;
  return std::span<const uint32_t>(words_);
}

Result<void> AnswerMask::accept(TokenId id) {
  if (state_ == Start::kThought) {  // its mask stays as it is until the thought ends
    if (id != thought_close_) return {};
    state_ = Start::kAnswer;
    computed_ = false;
    return {};
  }
  computed_ = false;
  if (state_ == Start::kMaybeThought && id == thought_open_) {
    state_ = Start::kThought;
    return {};
  }
  state_ = Start::kAnswer;
  return grammar_.push(id);
}

}  // namespace jewel

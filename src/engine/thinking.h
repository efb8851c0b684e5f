// The thinking budget of one sequence: counts ids between start and end, says when the end has to be forced
// and which id comes next then. One thread at a time.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "engine/request.h"

namespace jewel {

class ThinkingState {
 public:
  ThinkingState(const ThinkingBudget& budget, int vocab_size)
      : budget_(budget), open_(budget.open), mask_((static_cast<size_t>(vocab_size) + 31) / 32) {}

  // The next id is a forced one, or could become one by a token the host has not seen: plan it when every
  // earlier token is known.
  bool needs_host() const { return open_ && n_thought_ + 1 >= budget_.max_tokens; }

  // The mask for the next id; empty = anything. Only with every earlier token known, if needs_host().
  // When the budget is spent and no thought is open, none may be opened again.
  std::span<const uint32_t> allowed() {
    if (open_ && n_thought_ >= budget_.max_tokens) return only(budget_.forced[n_forced_]);
    if (!open_ && n_thought_ >= budget_.max_tokens && budget_.start >= 0) return all_but_start();
    return {};
  }

  void push(TokenId id) {
    if (!open_) {
      open_ = id == budget_.start;
      return;
    }
    if (n_thought_ >= budget_.max_tokens) ++n_forced_;  // of the forced ids
    if (id == budget_.end || n_forced_ == budget_.forced.size()) {
      open_ = false;
      n_forced_ = 0;
    } else if (n_forced_ == 0) {
      ++n_thought_;
    }
  }

 private:
  // Written while no step reads it: rows that are forced are alone in flight, and the other mask never
  // changes.
  std::span<const uint32_t> only(TokenId id) {
    std::fill(mask_.begin(), mask_.end(), 0u);
    mask_[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    return mask_;
  }
  std::span<const uint32_t> all_but_start() {
    if (no_start_.empty()) {
      no_start_.assign(mask_.size(), ~0u);
      no_start_[static_cast<size_t>(budget_.start) / 32] &= ~(1u << (budget_.start % 32));
    }
    return no_start_;
  }

  ThinkingBudget budget_;
  bool open_;
  int n_thought_ = 0;
  size_t n_forced_ = 0;
  std::vector<uint32_t> mask_, no_start_;
};

}  // namespace jewel

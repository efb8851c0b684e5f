// Sees when an answer has begun to say the same thing again and again. For every period p up to a maximum it
// counts how many of the last ids equal the id p places before; O(max_period) a token. One thread at a time.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "engine/request.h"

namespace jewel {

class RepetitionDetector {
 public:
  explicit RepetitionDetector(const RepetitionGuard& guard)
      : guard_(guard), equal_(static_cast<size_t>(std::max(0, guard.max_period))) {}

  // `output` ends with the newest id. True: the last period is there `repeats` times in a row.
  bool push(std::span<const TokenId> output) {
    const size_t n = output.size();
    bool loop = false;
    for (auto period = static_cast<size_t>(std::max(1, guard_.min_period));
         period <= equal_.size() && period < n; ++period) {
      int& equal = equal_[period - 1];
      equal = output[n - 1] == output[n - 1 - period] ? equal + 1 : 0;
      const int length = equal + static_cast<int>(period);  // of the repeating end
      loop = loop || (length >= guard_.repeats * static_cast<int>(period) && length >= guard_.min_tokens);
    }
    return loop;
  }

 private:
  RepetitionGuard guard_;
  std::vector<int> equal_;  // [period - 1]
};

}  // namespace jewel

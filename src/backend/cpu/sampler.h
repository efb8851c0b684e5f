// Sampling: from one row of logits to one token, and log-probabilities.
//
// Order: penalties, logit_bias, masks (never, not_before, allowed), temperature, top_k, top_p, min_p; then
// one uniform number from Philox, keyed by (seed, position of the sampled token), picks from the survivors in
// the order of their ids by the inverse of their cumulative distribution. So a token depends on its row of
// logits, the parameters, the sequence's history and its position, and on nothing else.
//   repetition_penalty   of ids in prompt or output: positive logits divided, others multiplied
//   frequency, presence  of ids in the output: logit -= frequency * count + presence
//   top_k                keeps logits >= the k-th largest, ties included
//   top_p                keeps a token while the tokens before it (descending, ties by id) sum to less than
//   top_p min_p                keeps probabilities >= min_p * the largest
// Temperature 0 is greedy: the lowest id among the largest logits after penalties, bias and masks.
#pragma once

#include <span>
#include <unordered_map>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/result.h"

namespace jewel {

// The log-probability, rank and best alternatives under one row of logits.
class Logprobs {
 public:
  Logprobs(const Kernels& kernels, std::span<const float> logits);
  TokenLogprob of(TokenId id) const;
  // The n best, descending, ties by id.
  std::vector<TokenLogprob> top(int n) const;

 private:
  std::span<const float> logits_;
  double log_sum_;
};

// One sequence's parameters and history. Used by one thread at a time.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt,
          std::span<const TokenId> output = {});

  const SamplingParams& params() const { return params_; }
  // Overwrites `logits`. `allowed`: a bit per id, empty = all. The token is not yet part of the history.
  // Error when no token survives: everything masked, or the logits are not numbers.
  Result<TokenId> sample(const Kernels& kernels, std::span<float> logits, int position,
                         std::span<const uint32_t> allowed) const;
  // Adds a sampled token to the output.
  void append(TokenId id);
  // The last one appended; the sequence must have one.
  TokenId last() const;

 private:
  void penalize(std::span<float> logits) const;
  void mask(std::span<float> logits, int position, std::span<const uint32_t> allowed) const;

  SamplingParams params_;
  struct Seen {
    bool in_output = false;
    int output_count = 0;
  };
  std::unordered_map<TokenId, Seen> seen_;  // ids of prompt and output, while some penalty is on
  bool has_penalties_ = false;
  TokenId last_ = -1;
};

}  // namespace jewel

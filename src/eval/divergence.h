// How far a candidate's next-token distributions Q are from its base's P, over given texts.
//
// kl          mean over tokens of KL(P ‖ Q) = Σ_v P(v) log(P(v) / Q(v)), in nats.
//             Exact when both models run in process: the sum goes over the whole vocabulary. When only each
//             model's k best are known, the sum goes over the tokens known of both (the k best of P that are
//             among the k best of Q or are the text's own token) and one outcome more, "any other token",
//             with the remaining probability of each. Putting outcomes together never raises a KL divergence
//             (the log-sum inequality; Cover & Thomas, "Elements of Information Theory", 2.7), so that figure
//             is a lower bound of the exact one.
// agreement   share of tokens where both find the same next token likeliest
// perplexity  exp(-mean log-probability of the text's own tokens), each model's; exact either way
//
// The first token of a text and the places of pictures are not counted. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "eval/recovery.h"
#include "eval/subject.h"

namespace jewel {

struct TokenDivergence {
  double kl = 0;
  bool agrees = false;
};

// `base_full` and `candidate_full`: rows of log-probabilities of the whole vocabulary, or empty.
TokenDivergence token_divergence(const TokenOdds& base, const TokenOdds& candidate,
                                 std::span<const float> base_full, std::span<const float> candidate_full);

struct Divergence {
  int64_t tokens = 0;
  bool exact = true;  // no token's KL was a lower bound
  double mean_kl = 0;
  RecoveryInterval kl_interval;  // 95 %, bootstrap over texts' means weighted by their tokens
  double kl_p99 = 0;             // 99 % of tokens have at most this
  double kl_most = 0;
  double agreement = 0;
  double base_perplexity = 0;
  double candidate_perplexity = 0;
  std::vector<float> kls;  // of every token
};

class DivergenceSum {
 public:
  // Errors: the models read the text as different tokens.
  Result<void> add(const std::string& id, const TextOdds& base, const TextOdds& candidate);
  Divergence result(int resamples, uint64_t seed) const;
  int64_t tokens() const { return static_cast<int64_t>(kls_.size()); }

 private:
  struct Text {
    double kl = 0;
    int64_t tokens = 0;
  };
  std::vector<float> kls_;
  std::vector<Text> texts_;
  int64_t agreed_ = 0;
  double base_logprob_ = 0;
  double candidate_logprob_ = 0;
  bool exact_ = true;
};

}  // namespace jewel

#include "backend/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/philox.h"
#include "base/check.h"

namespace jewel {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

struct Candidate {
  TokenId id = 0;
  float logit = 0;
  float weight = 0;  // exp((logit - max) / temperature)
};

bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// The k best by (logit descending, id ascending), in that order. One pass with a heap of k.
std::vector<Candidate> best_of(std::span<const float> logits, size_t k) {
  std::vector<Candidate> heap;  // the worst of the kept on top
  heap.reserve(k);
  for (size_t i = 0; i < logits.size() && k > 0; ++i) {
    // A later id loses every tie, so only a strictly larger logit enters a full heap. NaN never does.
    if (heap.size() == k && !(logits[i] > heap.front().logit)) continue;
    if (std::isnan(logits[i])) continue;
    if (heap.size() == k) {
      std::pop_heap(heap.begin(), heap.end(), better);
      heap.pop_back();
    }
    heap.push_back({.id = static_cast<TokenId>(i), .logit = logits[i]});
    std::push_heap(heap.begin(), heap.end(), better);
  }
  std::sort_heap(heap.begin(), heap.end(), better);
  return heap;
}

TokenId argmax(std::span<const float> logits) {
  TokenId best = -1;
  float max = kMasked;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > max) max = logits[i], best = static_cast<TokenId>(i);
  }
  return best;
}

// Tokens with logits >= floor in the order of their ids, with their weights. NaN and masked ones do not
// count.
std::vector<Candidate> candidates_from(const Kernels& kernels, std::span<const float> logits, float floor,
                                       float max, double temperature) {
  std::vector<Candidate> candidates;
  std::vector<float> weights;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] >= floor) || logits[i] == kMasked) continue;
    candidates.push_back({.id = static_cast<TokenId>(i), .logit = logits[i]});
    weights.push_back(static_cast<float>((static_cast<double>(logits[i]) - max) / temperature));
  }
  kernels.exp_sum(weights.data(), static_cast<int64_t>(weights.size()), 0.0f);
  for (size_t i = 0; i < candidates.size(); ++i) candidates[i].weight = weights[i];
  return candidates;
}

double total_weight(const std::vector<Candidate>& candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  return total;
}

// Keeps the head of the descending order until it holds top_p of the weight. Sorts no more than it needs.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  const double wanted = top_p * total_weight(candidates);
  std::vector<Candidate> sorted = candidates;
  size_t kept = 0;
  double sum = 0;
  for (size_t n = 128; kept < sorted.size(); n *= 8) {
    const size_t end = std::min(n, sorted.size());
    const auto from = sorted.begin() + static_cast<std::ptrdiff_t>(kept);
    std::partial_sort(from, sorted.begin() + static_cast<std::ptrdiff_t>(end), sorted.end(), better);
    while (kept < end && (kept == 0 || sum < wanted)) sum += sorted[kept++].weight;
    if (kept < end || sum >= wanted) break;
  }
  const Candidate last = sorted[kept - 1];
  std::erase_if(candidates, [&](const Candidate& c) { return better(last, c); });
}

TokenId pick(const std::vector<Candidate>& candidates, double uniform) {
  const double target = uniform * total_weight(candidates);
  double sum = 0;
  for (const Candidate& c : candidates) {
    sum += c.weight;
    if (sum > target) return c.id;
  }
  return candidates.back().id;
}

}  // namespace

Logprobs::Logprobs(const Kernels& kernels, std::span<const float> logits) : logits_(logits) {
  constexpr size_t kPart = 4096;  // float32 sums of this many terms, double beyond
  const float max = kernels.max(logits.data(), static_cast<int64_t>(logits.size()));
  double sum = 0;
  for (size_t i = 0; i < logits.size(); i += kPart) {
    sum +=
        kernels.sum_of_exp(logits.data() + i, static_cast<int64_t>(std::min(kPart, logits.size() - i)), max);
  }
  log_sum_ = max + std::log(sum);
}

TokenLogprob Logprobs::of(TokenId id) const {
  const float logit = logits_[static_cast<size_t>(id)];
  const auto above = std::count_if(logits_.begin(), logits_.end(), [&](float l) { return l > logit; });
  return {.id = id, .logprob = static_cast<float>(logit - log_sum_), .rank = static_cast<int>(above) + 1};
}

std::vector<TokenLogprob> Logprobs::top(int n) const {
  std::vector<TokenLogprob> top;
  for (const Candidate& c : best_of(logits_, static_cast<size_t>(std::max(n, 0)))) {
    const int place = static_cast<int>(top.size()) + 1;
    const bool tie = !top.empty() && logits_[static_cast<size_t>(top.back().id)] == c.logit;
    top.push_back({.id = c.id,
                   .logprob = static_cast<float>(c.logit - log_sum_),
                   .rank = tie ? top.back().rank : place});
  }
  return top;
}

Sampler::Sampler(const SamplingParams& params, std::span<const TokenId> prompt,
                 std::span<const TokenId> output)
    : params_(params) {
  has_penalties_ =
      params.repetition_penalty != 1 || params.presence_penalty != 0 || params.frequency_penalty != 0;
  if (params.repetition_penalty != 1) {
    for (TokenId id : prompt) seen_.try_emplace(id);
  }
  for (TokenId id : output) append(id);
}

void Sampler::append(TokenId id) {
  last_ = id;
  if (!has_penalties_) return;
  Seen& seen = seen_[id];
  seen.in_output = true;
  ++seen.output_count;
}

TokenId Sampler::last() const {
  JEWEL_CHECK(last_ >= 0, "the sequence has sampled nothing yet");
  return last_;
}

void Sampler::penalize(std::span<float> logits) const {
  const auto repetition = static_cast<float>(params_.repetition_penalty);
  const auto presence = static_cast<float>(params_.presence_penalty);
  const auto frequency = static_cast<float>(params_.frequency_penalty);
  for (const auto& [id, seen] : seen_) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / repetition : logit * repetition;
    if (seen.in_output) logit -= frequency * static_cast<float>(seen.output_count) + presence;
  }
}

void Sampler::mask(std::span<float> logits, int position, std::span<const uint32_t> allowed) const {
  const auto forbid = [&](TokenId id) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] = kMasked;
  };
  std::ranges::for_each(params_.never, forbid);
  if (position < params_.not_before_position) std::ranges::for_each(params_.not_before, forbid);
  if (allowed.empty()) return;
  JEWEL_CHECK(allowed.size() * 32 >= logits.size(), "a mask of {} words for {} ids", allowed.size(),
              logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((allowed[i / 32] >> (i % 32) & 1u) == 0) logits[i] = kMasked;
  }
}

Result<TokenId> Sampler::sample(const Kernels& kernels, std::span<float> logits, int position,
                                std::span<const uint32_t> allowed) const {
  if (has_penalties_) penalize(logits);
  for (const auto& [id, bias] : params_.logit_bias) {
    if (id >= 0 && static_cast<size_t>(id) < logits.size()) logits[static_cast<size_t>(id)] += bias;
  }
  mask(logits, position, allowed);

  const TokenId best = argmax(logits);
  if (best < 0) return internal("no token can be sampled: every logit is masked or not a number");
  if (params_.temperature <= 0) return best;

  float floor = kMasked;
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < logits.size()) {
    floor = best_of(logits, static_cast<size_t>(params_.top_k)).back().logit;
  }
  std::vector<Candidate> candidates =
      candidates_from(kernels, logits, floor, logits[static_cast<size_t>(best)], params_.temperature);
  if (params_.top_p < 1) keep_top_p(candidates, params_.top_p);
  if (params_.min_p > 0) {
    // The largest weight is 1.
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < params_.min_p && c.id != best; });
  }
  return pick(candidates, philox_uniform(params_.seed, static_cast<uint64_t>(position)));
}

}  // namespace jewel

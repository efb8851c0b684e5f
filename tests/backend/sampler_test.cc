#include "backend/cpu/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "backend/cpu/philox.h"
#include "driver.h"

namespace jewel {
namespace {

// From the published known-answer tests of Philox4x32-10 (Random123's kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<float> random_logits(size_t n, uint64_t seed, float deviation = 2) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

TokenId sample(const SamplingParams& params, std::vector<float> logits, int position = 0,
               std::span<const uint32_t> allowed = {}) {
  const Sampler sampler(params, {});
  auto id = sampler.sample(best_kernels(), logits, position, allowed);
  EXPECT_TRUE(id.ok());
  return *id;
}

// The whole chain in double with full sorts: which tokens survive, and how likely each is.
std::map<TokenId, double> naive_distribution(const SamplingParams& params, const std::vector<float>& logits) {
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](TokenId id) { return static_cast<double>(logits[static_cast<size_t>(id)]); };
  std::sort(order.begin(), order.end(),
            [&](TokenId a, TokenId b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < order.size()) {
    const double last = logit(order[static_cast<size_t>(params.top_k) - 1]);
    std::erase_if(order, [&](TokenId id) { return logit(id) < last; });
  }
  std::vector<double> p;
  for (TokenId id : order) p.push_back(std::exp((logit(id) - logit(order[0])) / params.temperature));
  double total = std::accumulate(p.begin(), p.end(), 0.0), before = 0;
  std::map<TokenId, double> kept;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && before >= params.top_p * total) break;
    before += p[i];
    if (p[i] >= params.min_p * p[0]) kept[order[i]] = p[i];
  }
  total = 0;
  for (const auto& [id, weight] : kept) total += weight;
  for (auto& [id, weight] : kept) weight /= total;
  return kept;
}

struct Filters {
  double temperature, top_p, min_p;
  int top_k;
};

TEST(Sampler, DistributionAndSurvivorsMatchTheNaiveChain) {
  constexpr int kDraws = 20000;
  const auto logits = random_logits(50, 1);
  for (const Filters& f :
       {Filters{1, 1, 0, 0}, Filters{0.7, 1, 0, 0}, Filters{1, 1, 0, 5}, Filters{1.3, 0.8, 0, 0},
        Filters{1, 1, 0.1, 0}, Filters{0.9, 0.9, 0.05, 20}, Filters{1, 0, 0, 0}, Filters{1, 1, 1, 0}}) {
    SamplingParams params;
    params.temperature = f.temperature, params.top_p = f.top_p, params.min_p = f.min_p,
    params.top_k = f.top_k;
    params.seed = 1234;
    const auto expected = naive_distribution(params, logits);
    std::map<TokenId, int> counts;
    const Sampler sampler(params, {});
    for (int position = 0; position < kDraws; ++position) {
      auto copy = logits;
      auto id = sampler.sample(best_kernels(), copy, position, {});
      ASSERT_TRUE(id.ok());
      ++counts[*id];
    }
    double chi_square = 0;
    int cells = 0;
    double rare = 0, rare_count = 0;  // cells under 5 expected draws are counted as one
    for (const auto& [id, p] : expected) {
      const double want = p * kDraws, got = counts[id];
      if (want < 5) {
        rare += want, rare_count += got;
        continue;
      }
      chi_square += (got - want) * (got - want) / want;
      ++cells;
    }
    if (rare > 0.5) chi_square += (rare_count - rare) * (rare_count - rare) / rare, ++cells;
    for (const auto& [id, count] : counts)
      EXPECT_TRUE(count == 0 || expected.count(id)) << "token " << id << " must not survive";
    // The mean of chi-square is cells - 1, its deviation sqrt(2 (cells - 1)): five deviations above.
    const double freedom = std::max(cells - 1, 0);
    EXPECT_LE(chi_square, freedom + 5 * std::sqrt(2 * freedom) + 1e-9)
        << f.temperature << " " << f.top_p << " " << f.min_p;
  }
}

TEST(Sampler, FiltersOverALargeVocabulary) {
  const auto logits = random_logits(262144, 2);
  for (double top_p : {0.0, 0.01, 0.5, 0.95, 1.0}) {
    for (int top_k : {0, 1, 64, 1000}) {
      SamplingParams params;
      params.top_p = top_p, params.top_k = top_k, params.min_p = 0.01;
      const auto expected = naive_distribution(params, logits);
      for (uint64_t seed = 0; seed < 20; ++seed) {
        params.seed = seed;
        // The inverse of the cumulative distribution in the order of ids.
        const double uniform = philox_uniform(seed, 3);
        double sum = 0;
        TokenId want = expected.rbegin()->first;
        bool near_an_edge = false;
        for (const auto& [id, p] : expected) {
          sum += p;
          near_an_edge = near_an_edge || std::fabs(sum - uniform) < 1e-6;
          if (sum > uniform) {
            want = id;
            break;
          }
        }
        const TokenId got = sample(params, logits, 3);
        EXPECT_TRUE(expected.count(got));
        if (!near_an_edge)
          EXPECT_EQ(got, want) << "top_p " << top_p << ", top_k " << top_k << ", seed " << seed;
      }
    }
  }
}

TEST(Sampler, TiesAtTheKthSurvive) {
  SamplingParams params;
  params.top_k = 2;
  std::set<TokenId> seen;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    params.seed = seed;
    seen.insert(sample(params, {1, 3, 2, 2, 0, 2}));
  }
  EXPECT_EQ(seen, (std::set<TokenId>{1, 2, 3, 5}));
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  SamplingParams params;
  params.temperature = 0;
  EXPECT_EQ(sample(params, {1, 5, 2, 5}), 1);
  EXPECT_EQ(sample(params, {-3, -2, -2}), 1);
}

TEST(Sampler, SameSeedSameTokenOtherSeedAnother) {
  SamplingParams a, b;
  a.seed = 1, b.seed = 2;
  const auto logits = random_logits(1000, 3, 0.5f);
  int differing_seed = 0, differing_position = 0;
  for (int position = 0; position < 50; ++position) {
    EXPECT_EQ(sample(a, logits, position), sample(a, logits, position));
    differing_seed += sample(a, logits, position) != sample(b, logits, position);
    differing_position += sample(a, logits, position) != sample(a, logits, position + 1);
  }
  EXPECT_GT(differing_seed, 40);
  EXPECT_GT(differing_position, 40);
}

// After penalties the greedy token shows where each logit has gone.
TEST(Sampler, Penalties) {
  const auto greedy = [](SamplingParams params, std::vector<TokenId> prompt, std::vector<TokenId> output,
                         std::vector<float> logits) {
    params.temperature = 0;
    Sampler sampler(params, prompt);
    for (TokenId id : output) sampler.append(id);
    auto id = sampler.sample(best_kernels(), logits, 0, {});
    EXPECT_TRUE(id.ok());
    return *id;
  };
  SamplingParams repetition;
  repetition.repetition_penalty = 2;
  EXPECT_EQ(greedy(repetition, {0}, {}, {3, 1.6f, 0}), 1);  // 3 / 2, by the prompt
  EXPECT_EQ(greedy(repetition, {0}, {}, {3, 1.4f, 0}), 0);
  EXPECT_EQ(greedy(repetition, {}, {0, 0}, {3, 1.4f, 0}), 0);  // once, however often it came
  EXPECT_EQ(greedy(repetition, {}, {0}, {-1, -1.9f, -3}), 1);  // -1 * 2
  SamplingParams presence;
  presence.presence_penalty = 1;
  EXPECT_EQ(greedy(presence, {0}, {}, {3, 2.9f, 0}), 0);  // the prompt does not count
  EXPECT_EQ(greedy(presence, {}, {0, 0}, {3, 1.9f, 0}), 0);
  EXPECT_EQ(greedy(presence, {}, {0, 0}, {3, 2.1f, 0}), 1);
  SamplingParams frequency;
  frequency.frequency_penalty = 0.5;
  EXPECT_EQ(greedy(frequency, {0, 0, 0}, {0}, {3, 2.4f, 0}), 0);
  EXPECT_EQ(greedy(frequency, {}, {0, 0}, {3, 2.1f, 0}), 1);
  SamplingParams bias;
  bias.logit_bias = {{2, 100.0f}};
  EXPECT_EQ(greedy(bias, {}, {}, {3, 2, -50}), 2);
  bias.logit_bias = {{0, -100.0f}, {7, 5.0f}, {-1, 5.0f}};  // ids that do not exist are ignored
  EXPECT_EQ(greedy(bias, {}, {}, {3, 2, -50}), 1);
}

TEST(Sampler, NeverAndAllowedBeatEverything) {
  SamplingParams params;
  params.never = {3};
  params.logit_bias = {{3, 1000.0f}, {40, 500.0f}};
  const auto logits = random_logits(70, 4);
  std::vector<uint32_t> allowed(3);
  const std::set<TokenId> allowed_ids = {3, 31, 32, 69};
  for (TokenId id : allowed_ids) allowed[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
  for (double temperature : {0.0, 1.0, 100.0}) {
    params.temperature = temperature;
    for (uint64_t seed = 0; seed < 100; ++seed) {
      params.seed = seed;
      EXPECT_NE(sample(params, logits), 3);
      const TokenId id = sample(params, logits, 0, allowed);
      EXPECT_TRUE(allowed_ids.count(id) && id != 3) << id;
    }
  }
}

TEST(Sampler, NothingLeftIsAnError) {
  SamplingParams params;
  std::vector<float> logits = random_logits(40, 5);
  const std::vector<uint32_t> nothing(2);
  EXPECT_FALSE(Sampler(params, {}).sample(best_kernels(), logits, 0, nothing).ok());
  std::vector<float> nan(40, NAN);
  EXPECT_FALSE(Sampler(params, {}).sample(best_kernels(), nan, 0, {}).ok());
  nan[17] = 1;  // a single number is enough
  auto id = Sampler(params, {}).sample(best_kernels(), nan, 0, {});
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(*id, 17);
}

TEST(Sampler, ExtremeTemperatures) {
  const auto logits = random_logits(1000, 6);
  const auto best = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  SamplingParams params;
  params.temperature = 1e-6;
  EXPECT_EQ(sample(params, logits), best);
  params.temperature = 1e-300;
  EXPECT_EQ(sample(params, logits), best);
}

TEST(Logprobs, ValuesRanksAndOrder) {
  for (CpuIsa isa : runnable_isas()) {
    auto logits = random_logits(10000, 7);
    logits[77] = logits[4242];  // a tie
    const Logprobs logprobs(*kernels_for(isa), logits);
    double sum = 0;
    for (float logit : logits) sum += std::exp(static_cast<double>(logit));
    std::vector<TokenId> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const auto logit = [&](TokenId id) { return logits[static_cast<size_t>(id)]; };
    std::sort(order.begin(), order.end(),
              [&](TokenId a, TokenId b) { return logit(a) != logit(b) ? logit(a) > logit(b) : a < b; });
    const auto top = logprobs.top(10000);
    ASSERT_EQ(top.size(), 10000u);
    for (size_t i = 0; i < top.size(); ++i) {
      ASSERT_EQ(top[i].id, order[i]);
      const double want = logits[static_cast<size_t>(top[i].id)] - std::log(sum);
      ASSERT_NEAR(top[i].logprob, want, 2e-6 * std::max(1.0, std::fabs(want)));
      const TokenLogprob of = logprobs.of(top[i].id);
      ASSERT_EQ(of.rank, top[i].rank);
      ASSERT_EQ(of.logprob, top[i].logprob);
    }
    EXPECT_EQ(logprobs.of(77).rank, logprobs.of(4242).rank);
    EXPECT_EQ(logprobs.top(3).size(), 3u);
    EXPECT_TRUE(logprobs.top(0).empty());
  }
}

}  // namespace
}  // namespace jewel

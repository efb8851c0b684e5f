#include "eval/divergence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace jewel {
namespace {

using ::testing::HasSubstr;
using Chances = std::vector<double>;

std::vector<float> logs(const Chances& chances) {
  std::vector<float> out;
  for (const double chance : chances) out.push_back(static_cast<float>(std::log(chance)));
  return out;
}

// What a model with these chances says of `id`, showing its k best.
TokenOdds odds(const Chances& chances, int64_t id, size_t k) {
  TokenOdds out{
      .id = id, .logprob = static_cast<float>(std::log(chances[static_cast<size_t>(id)])), .rank = 1};
  for (size_t v = 0; v < chances.size(); ++v) {
    out.rank += chances[v] > chances[static_cast<size_t>(id)] ? 1 : 0;
    out.top.emplace_back(static_cast<int64_t>(v), static_cast<float>(std::log(chances[v])));
  }
  std::ranges::sort(out.top, std::ranges::greater{}, &std::pair<int64_t, float>::second);
  out.top.resize(std::min(k, out.top.size()));
  return out;
}

double kl(const Chances& p, const Chances& q) {
  double sum = 0;
  for (size_t v = 0; v < p.size(); ++v) sum += p[v] * std::log(p[v] / q[v]);
  return sum;
}

TEST(Divergence, ByHand) {
  const Chances p = {0.5, 0.25, 0.25}, q = {0.25, 0.5, 0.25};
  const TokenDivergence one = token_divergence(odds(p, 0, 3), odds(q, 0, 3), logs(p), logs(q));
  EXPECT_NEAR(one.kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_FALSE(one.agrees);
  EXPECT_NEAR(token_divergence(odds(p, 0, 3), odds(q, 0, 3), {}, {}).kl, 0.25 * std::log(2.0), 1e-5)
      << "all are known, so the bound is sharp";
  EXPECT_NEAR(token_divergence(odds(p, 0, 3), odds(p, 0, 3), logs(p), logs(p)).kl, 0, 1e-9);
}

// Over random distributions: what k tokens tell is never more than the whole, and grows to it.
TEST(Divergence, TopIsALowerBound) {
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (int trial = 0; trial < 300; ++trial) {
    Chances p(40), q(40);
    double p_sum = 0, q_sum = 0;
    for (size_t v = 0; v < p.size(); ++v) {
      const double common = 2 * normal(random);
      p_sum += p[v] = std::exp(common + 0.7 * normal(random));
      q_sum += q[v] = std::exp(common + 0.7 * normal(random));
    }
    for (double& chance : p) chance /= p_sum;
    for (double& chance : q) chance /= q_sum;
    const auto id = static_cast<int64_t>(random() % p.size());
    const double exact = kl(p, q);
    EXPECT_NEAR(token_divergence(odds(p, id, 5), odds(q, id, 5), logs(p), logs(q)).kl, exact, 1e-5);
    for (const size_t k : {1, 3, 10, 20}) {
      const double bound = token_divergence(odds(p, id, k), odds(q, id, k), {}, {}).kl;
      EXPECT_LE(bound, exact + 1e-5) << k;
      EXPECT_GE(bound, 0);
    }
    EXPECT_NEAR(token_divergence(odds(p, id, 40), odds(q, id, 40), {}, {}).kl, exact, 1e-4);
  }
}

TEST(Divergence, SumsOverTexts) {
  const Chances p = {0.5, 0.5}, q = {0.25, 0.75};
  DivergenceSum sum;
  TextOdds base{.tokens = {odds(p, 0, 2), odds(p, 1, 2)}},
      candidate{.tokens = {odds(q, 0, 2), odds(q, 1, 2)}};
  ASSERT_TRUE(sum.add("a", base, candidate).ok());
  const Divergence d = sum.result(200, 1);
  EXPECT_EQ(d.tokens, 2);
  EXPECT_FALSE(d.exact);
  EXPECT_NEAR(d.mean_kl, kl(p, q), 1e-5);
  EXPECT_NEAR(d.base_perplexity, 2, 1e-5);
  EXPECT_NEAR(d.candidate_perplexity, 1 / std::sqrt(0.25 * 0.75), 1e-5);
}

TEST(Divergence, OtherTokensAreAnError) {
  DivergenceSum sum;
  const Chances p = {0.5, 0.5};
  const auto added = sum.add("book", {.tokens = {odds(p, 0, 2)}}, {.tokens = {odds(p, 1, 2)}});
  ASSERT_FALSE(added.ok());
  EXPECT_THAT(added.error().message, HasSubstr("book"));
  EXPECT_THAT(added.error().message, HasSubstr("tokenizer"));
}

}  // namespace
}  // namespace jewel

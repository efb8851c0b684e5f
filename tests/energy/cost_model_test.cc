#include "energy/cost_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace jewel {
namespace {

constexpr StepLoad kTrue = {
    .steps = 0.5, .prefill_tokens = 0.009, .decode_tokens = 0.04, .image_patches = 0.0005};

double true_cost(const StepLoad& load) {
  return load.steps * kTrue.steps + load.prefill_tokens * kTrue.prefill_tokens +
         load.decode_tokens * kTrue.decode_tokens + load.image_patches * kTrue.image_patches;
}

StepLoad random_load(std::mt19937& random) {
  std::uniform_real_distribution<double> any(0, 1);
  StepLoad load{.steps = 10 + 40 * any(random)};
  load.decode_tokens = load.steps * (1 + 15 * any(random));
  if (any(random) < 0.5) load.prefill_tokens = 4000 * any(random);
  if (any(random) < 0.3) load.image_patches = 10000 * any(random);
  return load;
}

TEST(CostModel, HasSharesBeforeItHasJoules) {
  const CostModel model;
  EXPECT_FALSE(model.fitted());
  EXPECT_GT(model.cost({.steps = 1}), 10 * model.cost({.decode_tokens = 1}));
  EXPECT_GT(model.cost({.decode_tokens = 1}), model.cost({.prefill_tokens = 1}));
}

TEST(CostModel, FindsThePrices) {
  std::mt19937 random(7);
  std::normal_distribution<double> noise(1, 0.03);
  CostModel model;
  for (int i = 0; i < 400; ++i) {
    const StepLoad load = random_load(random);
    model.add(load, true_cost(load) * noise(random));
  }
  ASSERT_TRUE(model.fitted());
  const StepLoad prices = model.prices();
  EXPECT_NEAR(prices.steps, kTrue.steps, 0.1 * kTrue.steps);
  EXPECT_NEAR(prices.prefill_tokens, kTrue.prefill_tokens, 0.1 * kTrue.prefill_tokens);
  EXPECT_NEAR(prices.decode_tokens, kTrue.decode_tokens, 0.1 * kTrue.decode_tokens);
  EXPECT_NEAR(prices.image_patches, kTrue.image_patches, 0.1 * kTrue.image_patches);
}

TEST(CostModel, OneStretchSetsTheScale) {
  CostModel model;
  const StepLoad load{.steps = 40, .decode_tokens = 320};
  model.add(load, 32);
  ASSERT_TRUE(model.fitted());
  EXPECT_NEAR(model.cost(load), 32, 0.1);
  const CostModel ratios;
  EXPECT_NEAR(model.cost({.image_patches = 2520}) / model.cost({.steps = 1}),
              ratios.cost({.image_patches = 2520}) / ratios.cost({.steps = 1}), 0.1)
      << "a price that was never paid stands in its ratio";
}

TEST(CostModel, FollowsAChange) {
  std::mt19937 random(3);
  CostModel model;
  for (int i = 0; i < 300; ++i) {
    const StepLoad load = random_load(random);
    model.add(load, true_cost(load));
  }
  for (int i = 0; i < 1200; ++i) {  // as with locked clocks
    const StepLoad load = random_load(random);
    model.add(load, 0.7 * true_cost(load));
  }
  const StepLoad load{.steps = 20, .prefill_tokens = 500, .decode_tokens = 80};
  EXPECT_NEAR(model.cost(load), 0.7 * true_cost(load), 0.03 * true_cost(load));
}

TEST(CostModel, NoPriceIsEverNegative) {
  std::mt19937 random(11);
  std::uniform_real_distribution<double> joules(-5, 60);
  CostModel model;
  for (int i = 0; i < 500; ++i) {
    model.add(random_load(random), joules(random), 0.1 + 0.01 * (i % 90));
    const StepLoad prices = model.prices();
    for (const double price :
         {prices.steps, prices.prefill_tokens, prices.decode_tokens, prices.image_patches}) {
      ASSERT_GE(price, 0) << i;
      ASSERT_TRUE(std::isfinite(price)) << i;
    }
  }
}

TEST(CostModel, NothingToLearnFromNothing) {
  CostModel model;
  model.add({}, 10);
  model.add({.steps = 1}, std::nan(""));
  model.add({.steps = 1}, 10, 0);
  EXPECT_FALSE(model.fitted());
}

}  // namespace
}  // namespace jewel

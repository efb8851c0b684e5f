#include "bench/statistics.h"

#include <gtest/gtest.h>

#include <numeric>

namespace jewel {
namespace {

// NumPy's: percentile([15, 20, 35, 40, 50], 40) = 29; of 1…100 the 99th is 99.01.
TEST(Statistics, PercentilesAreNumpys) {
  EXPECT_DOUBLE_EQ(percentile({50, 15, 40, 20, 35}, 0.4), 29);
  std::vector<double> hundred(100);
  std::iota(hundred.begin(), hundred.end(), 1);
  EXPECT_DOUBLE_EQ(percentile(hundred, 0.99), 99.01);
  EXPECT_DOUBLE_EQ(percentile(hundred, 0), 1);
  EXPECT_DOUBLE_EQ(percentile(hundred, 1), 100);
  EXPECT_DOUBLE_EQ(percentile({7}, 0.99), 7);
  EXPECT_DOUBLE_EQ(median({1, 2, 3, 10}), 2.5);
  EXPECT_DOUBLE_EQ(median({3, 1, 2}), 2);
}

TEST(Statistics, DistributionOfNothingIsNothing) {
  EXPECT_FALSE(distribution({}));
  const auto d = distribution({2, 1, 3});
  ASSERT_TRUE(d);
  EXPECT_EQ(d->n, 3);
  EXPECT_DOUBLE_EQ(d->mean, 2);
  EXPECT_DOUBLE_EQ(d->min, 1);
  EXPECT_DOUBLE_EQ(d->max, 3);
}

TEST(Statistics, SpreadOfRuns) {
  EXPECT_FALSE(repeated({}));
  const auto figure = repeated({100, 103, 98, 101, 100});
  ASSERT_TRUE(figure);
  EXPECT_DOUBLE_EQ(figure->median, 100);
  EXPECT_DOUBLE_EQ(figure->relative_spread(), 0.05);
  ASSERT_TRUE(spread_of(figure));
  EXPECT_EQ(spread_of(figure)->what, "min to max of 5 runs");
  EXPECT_FALSE(spread_of(repeated({4})));  // one run has no spread
  EXPECT_DOUBLE_EQ(repeated({0, 0})->relative_spread(), 0);
}

}  // namespace
}  // namespace jewel

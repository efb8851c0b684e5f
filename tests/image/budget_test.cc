// The size rule: the worked examples of the model's documentation, a sweep captured from the reference, and
// its errors.
#include "image/budget.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace jewel {
namespace {

SoftTokenBudget budget_of(int max_soft_tokens) {
  return {.max_soft_tokens = max_soft_tokens};
}

struct Example {
  int width, height;
  TargetSize at[5];  // for the budgets 70, 140, 280, 560, 1120
};

const Example kExamples[] = {
    {640, 480, {{336, 432, 63}, {480, 624, 130}, {672, 912, 266}, {960, 1296, 540}, {1344, 1824, 1064}}},
    {1024, 768, {{336, 432, 63}, {480, 624, 130}, {672, 912, 266}, {960, 1296, 540}, {1344, 1824, 1064}}},
    {4000, 3000, {{336, 432, 63}, {480, 624, 130}, {672, 912, 266}, {960, 1296, 540}, {1344, 1824, 1064}}},
    {1920, 1080, {{288, 528, 66}, {384, 720, 120}, {576, 1056, 264}, {816, 1488, 527}, {1200, 2112, 1100}}},
    {1080, 1920, {{528, 288, 66}, {720, 384, 120}, {1056, 576, 264}, {1488, 816, 527}, {2112, 1200, 1100}}},
    {100, 1000, {{1248, 96, 52}, {1776, 144, 111}, {2496, 240, 260}, {3552, 336, 518}, {5040, 480, 1050}}},
    {1000, 100, {{96, 1248, 52}, {144, 1776, 111}, {240, 2496, 260}, {336, 3552, 518}, {480, 5040, 1050}}},
    {48, 48, {{384, 384, 64}, {528, 528, 121}, {768, 768, 256}, {1104, 1104, 529}, {1584, 1584, 1089}}},
    {1, 1, {{384, 384, 64}, {528, 528, 121}, {768, 768, 256}, {1104, 1104, 529}, {1584, 1584, 1089}}},
    {960, 672, {{336, 480, 70}, {432, 672, 126}, {672, 960, 280}, {912, 1344, 532}, {1344, 1920, 1120}}},
    {3, 900, {{3360, 48, 70}, {6720, 48, 140}, {13440, 48, 280}, {19632, 48, 409}, {27792, 48, 579}}},
};

TEST(Budget, WorkedExamples) {
  for (const Example& example : kExamples) {
    for (int i = 0; i < 5; ++i) {
      auto size = target_size(example.height, example.width, budget_of(kSoftTokenBudgets[i]));
      ASSERT_TRUE(size.ok()) << size.error().message;
      EXPECT_EQ(*size, example.at[i])
          << example.width << " x " << example.height << " at " << kSoftTokenBudgets[i] << ": got "
          << size->height << " x " << size->width;
    }
  }
}

TEST(Budget, SweepEqualsReference) {
  std::ifstream file(JEWEL_SOURCE_DIR "/tests/data/image/budget.txt");
  std::string line;
  std::getline(file, line);  // the head
  int compared = 0;
  while (std::getline(file, line)) {
    std::istringstream in(line);
    int height, width;
    in >> height >> width;
    for (int budget : kSoftTokenBudgets) {
      int target_height, target_width;
      ASSERT_TRUE(in >> target_height >> target_width) << line;
      auto size = target_size(height, width, budget_of(budget));
      ASSERT_TRUE(size.ok()) << size.error().message;
      EXPECT_EQ(size->height, target_height) << line;
      EXPECT_EQ(size->width, target_width) << line;
      EXPECT_EQ(size->soft_tokens, target_height / 48 * (target_width / 48));
      ++compared;
    }
  }
  EXPECT_GE(compared, 9000);
}

TEST(Budget, OtherConfigs) {
  auto size = target_size(64, 64, {.max_soft_tokens = 70, .patch_size = 8, .pooling_kernel_size = 2});
  ASSERT_TRUE(size.ok());
  EXPECT_EQ(*size, (TargetSize{128, 128, 64}));
}

TEST(Budget, Errors) {
  for (int budget : {-1, 0, 1, 71, 256, 281, 2240}) {
    auto size = target_size(100, 100, budget_of(budget));
    ASSERT_FALSE(size.ok()) << budget;
    EXPECT_EQ(size.error().param, "max_soft_tokens");
    EXPECT_NE(size.error().message.find("70, 140, 280, 560, 1120"), std::string::npos)
        << size.error().message;
  }
  EXPECT_FALSE(target_size(0, 10, budget_of(280)).ok());
  EXPECT_FALSE(target_size(10, -1, budget_of(280)).ok());
  EXPECT_EQ(target_size(10, 10, {.patch_size = 0}).error().param, "patch_size");
  EXPECT_EQ(target_size(10, 10, {.pooling_kernel_size = -3}).error().param, "pooling_kernel_size");
  // The largest sizes an int can hold pass through without overflow.
  for (int budget : kSoftTokenBudgets) {
    auto size = target_size(1, 2147483647,
                            {.max_soft_tokens = budget, .patch_size = 1024, .pooling_kernel_size = 64});
    ASSERT_TRUE(size.ok());
    EXPECT_LE(size->soft_tokens, budget);
    EXPECT_TRUE(target_size(2147483647, 2147483647, budget_of(budget)).ok());
  }
}

}  // namespace
}  // namespace jewel

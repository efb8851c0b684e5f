#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace jewel {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return invalid("odd", "n");
  return n / 2;
}

Result<std::unique_ptr<int>> quarter(int n) {
  JEWEL_ASSIGN(const int h, half(n));
  JEWEL_ASSIGN(const int q, half(h));
  return std::make_unique<int>(q);
}

Result<void> must_be_even(int n) {
  JEWEL_TRY(half(n));
  return {};
}

TEST(Result, ValueAndErrorPropagate) {
  EXPECT_EQ(**quarter(8), 2);
  const auto bad = quarter(6);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().message, "odd");
  EXPECT_EQ(bad.error().param, "n");
  EXPECT_TRUE(must_be_even(2).ok());
  EXPECT_EQ(must_be_even(3).error().code, ErrorCode::kInvalid);
}

TEST(ResultDeathTest, ReadingTheWrongSideStops) {
  EXPECT_DEATH(half(3).value(), "odd");
}

}  // namespace
}  // namespace jewel

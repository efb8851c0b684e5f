#include "model/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace jewel {
namespace {

TEST(F8E4M3, EveryCodeDecodesByItsDefinition) {
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const double mantissa = (code & 7) / 8.0;
    double expected = exponent == 0 ? mantissa / 64 : (1 + mantissa) * std::exp2(exponent - 7);
    if (code & 0x80) expected = -expected;
    const float found = f8e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(found)) << code;
    } else {
      EXPECT_EQ(found, expected) << code;
      EXPECT_EQ(f32_to_f8e4m3(found), code) << "does not round-trip";
    }
  }
  EXPECT_EQ(f8e4m3_to_f32(0x7e), 448.0f);
}

// Against a search over all codes: nearest, ties to the even code, beyond 448 clamped.
TEST(F8E4M3, RoundsToNearestEven) {
  for (int i = 0; i <= 70000; ++i) {
    const float value = static_cast<float>(i) * (460.0f / 70000.0f) * (i % 3 == 0 ? 1e-3f : 1.0f);
    int best = 0;
    for (int code = 1; code <= 0x7e; ++code) {
      const double d = std::fabs(static_cast<double>(f8e4m3_to_f32(static_cast<uint8_t>(code))) - value);
      const double d_best = std::fabs(static_cast<double>(f8e4m3_to_f32(static_cast<uint8_t>(best))) - value);
      if (d < d_best || (d == d_best && code % 2 == 0)) best = code;
    }
    ASSERT_EQ(f32_to_f8e4m3(value), best) << value;
    ASSERT_EQ(f32_to_f8e4m3(-value), best | 0x80) << -value;
  }
  for (int code = 0; code < 0x7e; ++code) {  // every tie between neighbours
    const float tie =
        (f8e4m3_to_f32(static_cast<uint8_t>(code)) + f8e4m3_to_f32(static_cast<uint8_t>(code + 1))) / 2;
    EXPECT_EQ(f32_to_f8e4m3(tie), code % 2 == 0 ? code : code + 1);
  }
  EXPECT_EQ(f32_to_f8e4m3(std::numeric_limits<float>::infinity()), 0x7e);
  EXPECT_EQ(f32_to_f8e4m3(-1e30f), 0xfe);
  EXPECT_EQ(f32_to_f8e4m3(NAN), 0x7f);
}

TEST(BF16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, to even
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, to even, up
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(bf16_to_f32(f32_to_bf16(3.4e38f)), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_f32(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) EXPECT_EQ(f32_to_bf16(value), bits);
  }
}

TEST(F16, KnownValues) {
  EXPECT_EQ(f16_to_f32(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_f32(0xc000), -2.0f);
  EXPECT_EQ(f16_to_f32(0x7bff), 65504.0f);
  EXPECT_EQ(f16_to_f32(0x0001), std::exp2(-24.0f));
  EXPECT_TRUE(std::isinf(f16_to_f32(0x7c00)));
  EXPECT_TRUE(std::isnan(f16_to_f32(0x7c01)));
}

}  // namespace
}  // namespace jewel

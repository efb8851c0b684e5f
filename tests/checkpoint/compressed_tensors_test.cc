#include "checkpoint/compressed_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

namespace jewel {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<QuantizationConfig> parse(std::string_view weights,
                                 std::string_view rest = R"("format": "float-quantized")") {
  const std::string text =
      std::string(
          R"({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"],)") +
      R"("weights": )" + std::string(weights) + "}}, " + std::string(rest) + "}";
  return parse_quantization_config(boost::json::parse(text).as_object(), "config.json");
}

constexpr std::string_view kTensor =
    R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "tensor"})";
constexpr std::string_view kChannel =
    R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "channel"})";

TEST(QuantizationConfig, BothFormatNamesAndStrategies) {
  EXPECT_EQ(parse(kTensor)->strategy, ScaleStrategy::kTensor);
  const auto channel = parse(
      kChannel,
      R"("format": "naive-quantized", "ignore": ["lm_head"], "kv_cache_scheme": {"num_bits": 8, "type": "float"})");
  ASSERT_TRUE(channel.ok()) << channel.error().message;
  EXPECT_EQ(channel->strategy, ScaleStrategy::kChannel);
  EXPECT_TRUE(channel->fp8_kv_cache);
  EXPECT_THAT(channel->ignore, ElementsAre("lm_head"));
}

TEST(QuantizationConfig, WhatIsNotLoadedIsNamed) {
  EXPECT_THAT(parse(R"({"num_bits": 4, "type": "int", "strategy": "group"})", R"("format": "pack-quantized")")
                  .error()
                  .message,
              HasSubstr("pack-quantized"));
  EXPECT_THAT(parse(R"({"num_bits": 4, "type": "int", "strategy": "group"})").error().message,
              HasSubstr("4-bit int"));
  EXPECT_THAT(parse(R"({"num_bits": 8, "type": "float", "strategy": "block"})").error().message,
              HasSubstr("'block'"));
  EXPECT_THAT(parse(kTensor, R"("quant_method": "gptq")").error().message, HasSubstr("gptq"));
  EXPECT_FALSE(parse("3").ok());
}

TensorView view_of(const std::vector<float>& values, std::vector<int64_t> shape) {
  return {DType::kF32, std::move(shape), reinterpret_cast<const std::byte*>(values.data()),
          values.size() * sizeof(float)};
}

TEST(WeightScale, ShapesOfSpec) {
  const std::vector<float> one = {0.5f};
  const std::vector<float> rows = {1, 2, 3};
  EXPECT_THAT(*read_weight_scale(view_of(one, {}), 3, "t"), ElementsAre(0.5f));
  EXPECT_THAT(*read_weight_scale(view_of(one, {1}), 3, "t"), ElementsAre(0.5f));
  EXPECT_THAT(*read_weight_scale(view_of(rows, {3}), 3, "t"), ElementsAre(1, 2, 3));
  EXPECT_THAT(*read_weight_scale(view_of(rows, {3, 1}), 3, "t"), ElementsAre(1, 2, 3));
  EXPECT_THAT(read_weight_scale(view_of(rows, {1, 3}), 3, "t").error().message,
              HasSubstr("expected [], [1], [3] or [3, 1]"));
  const std::vector<float> bad = {1, -1, 3};
  EXPECT_THAT(read_weight_scale(view_of(bad, {3}), 3, "t").error().message, HasSubstr("scale 1 is -1"));
  const std::vector<float> nan = {NAN};
  EXPECT_FALSE(read_weight_scale(view_of(nan, {}), 3, "t").ok());
}

}  // namespace
}  // namespace jewel

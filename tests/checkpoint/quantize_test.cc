#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "checkpoint/checkpoint.h"
#include "checkpoint/fp8_quantize.h"
#include "checkpoint/quantizer.h"
#include "checkpoint/tiny_model.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using ::testing::HasSubstr;

// The rules of tools/goldens_quantize/capture.py.
std::vector<uint16_t> golden_case(std::string_view name, size_t n) {
  std::vector<uint16_t> bits(n);
  for (uint64_t i = 0; i < n; ++i) {
    uint64_t b = 0;
    if (name == "zeros") {
      b = (i & 1) << 15;
    } else if (name == "every_finite_pattern") {
      b = i & 0xffff;
      if ((b & 0x7f80) == 0x7f80) b = 0x3f80;
    } else if (name == "subnormals") {
      b = (i % 0x80) | ((i & 1) << 15);
    } else if (name == "ties") {
      b = i == 0 ? 0x43e0 : 0x3b00 + i % 0x08e1;
    } else {
      uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u + 7;
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      b = (z & 0x807f) | ((115 + (z >> 20) % 9) << 7);
    }
    bits[i] = static_cast<uint16_t>(b);
  }
  return bits;
}

std::string fnv1a(std::span<const uint8_t> bytes) {
  uint64_t value = 0xcbf29ce484222325u;
  for (const uint8_t byte : bytes) value = (value ^ byte) * 0x100000001b3u;
  char text[17];
  std::snprintf(text, sizeof(text), "%016lx", value);
  return text;
}

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

TEST(Fp8Quantize, TheLibrarysOwnScalesAndCodes) {
  const json::object goldens =
      json::parse(read(JEWEL_SOURCE_DIR "/tests/data/quantize/goldens.json")).as_object();
  int compared = 0;
  for (const json::value& value : goldens.at("cases").as_array()) {
    const json::object& golden = value.as_object();
    const std::string_view name = golden.at("name").as_string();
    const auto rows = static_cast<size_t>(golden.at("rows").as_int64());
    const auto columns = static_cast<size_t>(golden.at("columns").as_int64());
    const bool per_row = golden.at("strategy") == "channel";
    const std::vector<uint16_t> values = golden_case(name, rows * columns);
    std::vector<uint8_t> codes(values.size());
    const size_t step = per_row ? columns : values.size();
    const json::array& scale_bits = golden.at("scale_bits").as_array();
    ASSERT_EQ(scale_bits.size(), values.size() / step);
    for (size_t at = 0; at < values.size(); at += step) {
      const auto part = std::span(values).subspan(at, step);
      const float scale = fp8_scale(bf16_range(part).amax);
      EXPECT_EQ(f32_to_bf16(scale), scale_bits[at / step].as_int64()) << name << " row " << at / step;
      quantize_fp8(part, scale, std::span(codes).subspan(at, step));
    }
    EXPECT_EQ(fnv1a(codes), golden.at("codes_fnv1a").as_string()) << name << " " << golden.at("strategy");
    ++compared;
  }
  EXPECT_EQ(compared, 10);
}

TEST(Fp8Quantize, RangeFindsWhatIsNotFinite) {
  EXPECT_EQ(bf16_range(std::vector<uint16_t>{0x3f80, 0xc000}).amax, 2.0f);
  EXPECT_TRUE(bf16_range(std::vector<uint16_t>{0x7f7f}).all_finite);
  EXPECT_FALSE(bf16_range(std::vector<uint16_t>{0, 0x7f80}).all_finite);
  EXPECT_FALSE(bf16_range(std::vector<uint16_t>{0, 0xffc1}).all_finite);
}

TEST(Fp8Quantize, ErrorsOfARow) {
  const std::vector<uint16_t> values = {f32_to_bf16(448), f32_to_bf16(1), 0};
  std::vector<uint8_t> codes(3);
  quantize_fp8(values, 1.0f, codes);
  Fp8Error error = fp8_row_error(values, codes, 1.0f);
  EXPECT_EQ(error.noise, 0);
  EXPECT_TRUE(std::isinf(error.sqnr_db()));
  EXPECT_EQ(error.saturated_rows, 1);
  EXPECT_EQ(error.zero_rows, 0);
  quantize_fp8(values, 0.5f, codes);  // too small a scale: 448 / 0.5 is clipped
  error = fp8_row_error(values, codes, 0.5f);
  EXPECT_EQ(error.clipped, 1);
  EXPECT_EQ(error.max_error, 224.0f);
}

class Quantize : public testing::Test {
 protected:
  Quantize() {
    model.save();
    model.write("tokenizer.json", "{}");
    model.write("README.md", "the source's card");
    destination = model.directory() + "-fp8";
  }
  ~Quantize() override { fs::remove_all(destination); }

  Result<QuantizeReport> run(const QuantizeOptions& options = {}) {
    return quantize_checkpoint(model.directory(), destination, options, true, cancel, {},
                               [](const QuantizeReport&, const std::string&) { return std::string("card"); });
  }
  // Nothing of a failed run may stay behind: neither the destination nor what was built beside it.
  void expect_no_trace() {
    EXPECT_FALSE(fs::exists(destination));
    for (const auto& entry : fs::directory_iterator(fs::path(destination).parent_path())) {
      EXPECT_EQ(entry.path().filename().string().find("." + fs::path(destination).filename().string()),
                std::string::npos)
          << entry.path();
    }
  }

  TinyModel model;
  std::string destination;
  std::atomic<bool> cancel = false;
};

TEST_F(Quantize, ResultOpensWithEveryFile) {
  const auto report = run({.n_threads = 2});
  ASSERT_TRUE(report.ok()) << report.error().message;
  // Two owning layers of seven linears and two sharing ones of five.
  EXPECT_EQ(report->plan.n_quantized, 24);
  EXPECT_EQ(report->verified.size(), 24u + 4u) << "and the inert K and V, which belong to fused modules";
  EXPECT_EQ(read(destination + "/tokenizer.json"), "{}");
  EXPECT_EQ(read(destination + "/README.md"), "card");
  const auto opened = Checkpoint::open(destination);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const DecoderLayerWeights& layer = (*opened)->weights().layers[0];
  EXPECT_EQ(layer.q_proj.weight.dtype, DType::kF8E4M3);
  EXPECT_EQ(layer.per_layer_input_gate.weight.dtype, DType::kBF16);
  EXPECT_EQ((*opened)->weights().vision->layers[0].q_proj.linear.weight.dtype, DType::kBF16);
  const std::vector<std::string>& ignore = (*opened)->quantization()->ignore;
  for (const char* name :
       {"lm_head", "model.vision_tower.patch_embedder.input_proj", "model.embed_vision.embedding_projection",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear",
        "model.language_model.layers.0.per_layer_input_gate",
        "model.language_model.per_layer_model_projection"}) {
    EXPECT_THAT(ignore, testing::Contains(name));
  }
  EXPECT_THAT(ignore, testing::Not(testing::Contains(HasSubstr("q_proj'"))));
  size_t bytes = 0;
  for (const auto& [name, tensor] : (*opened)->files().tensors()) bytes += tensor.entry->view.bytes;
  EXPECT_EQ(bytes, report->plan.result_bytes);
  EXPECT_EQ((*opened)->files().file_bytes(), report->result_file_bytes);
}

TEST_F(Quantize, ChannelShardsDropAndIgnore) {
  const auto report = run({.strategy = ScaleStrategy::kChannel,
                           .ignore = {"layers\\.1\\.mlp"},
                           .ple_linears = PleLinears::kFp8,
                           .unused = Unused::kDrop,
                           .shard_bytes = 100'000,
                           .kv_scales = {{0, {0.5f, 0.25f}}}});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->plan.n_quantized, 24 - 3 + 4 * 2 + 1);
  EXPECT_TRUE(fs::exists(destination + "/model.safetensors.index.json"));
  const auto opened = Checkpoint::open(destination);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const ModelWeights& weights = (*opened)->weights();
  EXPECT_EQ(weights.layers[0].q_proj.scale.size(), 256u);
  EXPECT_EQ(weights.layers[1].up_proj.weight.dtype, DType::kBF16);
  EXPECT_EQ(weights.per_layer_model_projection.weight.dtype, DType::kF8E4M3);
  EXPECT_EQ((*opened)->files().find("model.language_model.layers.2.self_attn.k_proj.weight").entry, nullptr);
  EXPECT_TRUE((*opened)->quantization()->fp8_kv_cache);
  EXPECT_EQ(weights.layers[0].k_scale, 0.5f);
  EXPECT_EQ(weights.layers[0].v_scale, 0.25f);
}

TEST_F(Quantize, NaNNamesTheTensorAndLeavesNoTrace) {
  TinyTensor& weight = model.tensors.at("model.language_model.layers.1.mlp.up_proj.weight");
  weight.bytes[64 * 2 * 3] = 0xc0;
  weight.bytes[64 * 2 * 3 + 1] = 0x7f;
  model.save();
  const auto report = run();
  ASSERT_FALSE(report.ok());
  EXPECT_THAT(report.error().message,
              HasSubstr("tensor 'model.language_model.layers.1.mlp.up_proj.weight': row 3 holds a NaN"));
  expect_no_trace();
}

TEST_F(Quantize, RefusesWhatItMust) {
  ASSERT_TRUE(run().ok());
  EXPECT_THAT(run().error().message, HasSubstr("exists already"));
  const auto again =
      quantize_checkpoint(destination, destination + "2", {}, true, cancel, {},
                          [](const QuantizeReport&, const std::string&) { return std::string(); });
  EXPECT_THAT(again.error().message, HasSubstr("is quantized already"));
  fs::remove_all(destination);
  EXPECT_THAT(run({.ignore = {"("}}).error().message, HasSubstr("not a regular expression"));
  expect_no_trace();
}

TEST_F(Quantize, InterruptedLeavesNoTrace) {
  cancel = true;
  const auto report = run();
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kCancelled);
  expect_no_trace();
}

}  // namespace
}  // namespace jewel

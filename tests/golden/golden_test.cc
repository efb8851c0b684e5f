// The CPU backend against Transformers, stage by stage and end to end, on random models of E4B's and E2B's
// widths.
//
// Tolerances. FP32: relative L2 1e-5. A product of 10,240 terms summed in another order differs by about
// sqrt(10240) * 2^-24 / 2 = 3e-6 of its terms' size, and every sum here is at most that long; a wrong factor,
// frequency or index shows at 1e-3 and above. BF16: 1e-2, four roundings of up to 2^-8 each (a stage rounds
// its input, its inner products' inputs, and the reference value is of FP32). docs/goldens.md tells more.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <functional>

#include "golden_run.h"

namespace jewel {
namespace {

constexpr double kF32Tolerance = 1e-5;
constexpr double kBf16StageTolerance = 1e-2;
constexpr double kBf16DistanceFactor = 1.2;

const std::string kGoldens = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden";
const std::string kDemo = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";

// One model at a time in memory: drawing the weights takes longer than most tests.
struct Loaded {
  std::string name;
  RandomScheme scheme;
  std::unique_ptr<GoldenFile> golden;
  GoldenModel model;
};

Loaded& load(const std::string& name, RandomScheme scheme = RandomScheme::kBF16) {
  static std::unique_ptr<Loaded> loaded;
  if (!loaded || loaded->name != name || loaded->scheme != scheme) {
    loaded.reset();
    auto golden = GoldenFile::open(kGoldens, name);
    GoldenModel model = GoldenModel::of(*golden, kDemo, scheme);
    loaded = std::make_unique<Loaded>(name, scheme, std::move(golden), std::move(model));
  }
  return *loaded;
}

void expect_within(const StageTap& tap, double tolerance, bool vision) {
  for (const StageError& error : tap.errors()) {
    if (error.rows == 0) continue;
    EXPECT_LE(error.relative(), tolerance) << stage_name(error.stage) << " of layer " << error.layer;
  }
  EXPECT_THAT(tap.unseen(vision), testing::IsEmpty());
  if (testing::Test::HasFailure()) std::fputs(stage_table(tap.errors(), tolerance).c_str(), stderr);
  const StageError& worst = worst_stage(tap.errors());
  testing::Test::RecordProperty(
      "worst", fmt::format("{} {} {:.2e}", stage_name(worst.stage), worst.layer, worst.relative()));
}

class Golden : public testing::TestWithParam<const char*> {};

// Python wrote the checkpoint that Transformers read; C++ draws it again. Equal digests: equal bits.
TEST_P(Golden, weights_are_the_bits_that_python_drew) {
  Loaded& loaded = load(GetParam());
  if (!loaded.model.random) GTEST_SKIP() << "stored weights";
  const auto& digests = loaded.golden->manifest().at("digests").as_object();
  ModelWeights table_only;
  size_t required = 0;
  for (const TensorSpec& spec : tensor_table(loaded.model.config(), NamePrefix::kMultimodal, table_only)) {
    if (!spec.required) continue;
    ++required;
    const auto* digest = digests.if_contains(spec.name);
    ASSERT_TRUE(digest) << spec.name << " is in the table of tensors, not among those that Python drew";
    EXPECT_EQ(std::string(digest->as_string()),
              fmt::format("{:016x}", random_tensor_digest(spec.name, spec.shape,
                                                          loaded.golden->manifest().at("seed").as_int64())))
        << spec.name;
  }
  EXPECT_EQ(required, digests.size());
}

// Every stage from the reference's own input, through the forward pass that serves requests.
TEST_P(Golden, each_stage_in_float32) {
  Loaded& loaded = load(GetParam());
  auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), DType::kF32);
  for (const Chunking chunking : {Chunking::kWhole, Chunking::kAtKeptRows}) {
    expect_within(run_fed(*backend, loaded.model.config(), *loaded.golden, chunking), kF32Tolerance, true);
  }
}

TEST_P(Golden, each_stage_in_bf16) {
  Loaded& loaded = load(GetParam());
  auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), DType::kBF16);
  for (const Chunking chunking : {Chunking::kWhole, Chunking::kAtKeptRows}) {
    expect_within(run_fed(*backend, loaded.model.config(), *loaded.golden, chunking), kBf16StageTolerance,
                  true);
  }
}

// Every path of the kernels, on the small model: other vector widths sum in other orders.
TEST(GoldenIsa, each_stage_on_every_instruction_set) {
  Loaded& loaded = load("demo");
  for (const CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512Bf16}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), dtype, isa);
      if (!backend) continue;
      SCOPED_TRACE(backend->info().name);
      const double tolerance = dtype == DType::kF32 ? kF32Tolerance : kBf16StageTolerance;
      expect_within(run_fed(*backend, loaded.model.config(), *loaded.golden, Chunking::kWhole), tolerance,
                    true);
      fmt::print("{}\n", backend->info().name);
    }
  }
}

TEST_P(Golden, end_to_end_in_float32) {
  Loaded& loaded = load(GetParam());
  auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), DType::kF32);
  for (const GoldenCase& golden_case : loaded.golden->cases()) {
    SCOPED_TRACE(golden_case.name);
    for (const Chunking chunking : {Chunking::kWhole, Chunking::kAtKeptRows}) {
      const StageTap tap = run_case(*backend, loaded.model.config(), *loaded.golden, golden_case, chunking);
      expect_within(tap, kF32Tolerance, golden_case.grid_h > 0);
    }
  }
}

// How far BF16 is from FP32, in units of how far Transformers' BF16 is.
TEST_P(Golden, bf16_is_as_near_to_float32_as_transformers_bf16) {
  Loaded& loaded = load(GetParam());
  auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), DType::kBF16);
  for (const GoldenCase& golden_case : loaded.golden->cases()) {
    SCOPED_TRACE(golden_case.name);
    const StageTap tap =
        run_case(*backend, loaded.model.config(), *loaded.golden, golden_case, Chunking::kAtKeptRows);
    const double logits = error_of_stage(tap.errors(), Stage::kLogits).relative();
    EXPECT_LE(logits, kBf16DistanceFactor * golden_case.bf16_logits_distance);
    fmt::print("{} {}: logits {:.4f}, Transformers {:.4f}", GetParam(), golden_case.name, logits,
               golden_case.bf16_logits_distance);
    if (golden_case.grid_h > 0) {
      const double soft = error_of_stage(tap.errors(), Stage::kVisionProject).relative();
      EXPECT_LE(soft, kBf16DistanceFactor * golden_case.bf16_soft_distance);
      fmt::print("; soft tokens {:.4f}, Transformers {:.4f}", soft, golden_case.bf16_soft_distance);
    }
    fmt::print("\n");
  }
}

// A model that is wrong in one respect must be noticed: what follows keeps the goldens able to fail.
struct Mistake {
  const char* name;
  const char* golden_case;
  std::function<void(ModelConfig&, ModelWeights&)> make;
};

const std::vector<Mistake>& mistakes() {
  static const std::vector<Mistake> list = {
      {"window one key short", "long", [](ModelConfig& c, ModelWeights&) { c.text.sliding_window -= 1; }},
      {"window one key long", "long", [](ModelConfig& c, ModelWeights&) { c.text.sliding_window += 1; }},
      {"K and V of layer i - k", "text",
       [](ModelConfig& c, ModelWeights&) { c.text.layers[5].kv_source = 0; }},
      {"full RoPE not proportional", "text",
       [](ModelConfig& c, ModelWeights&) { c.text.rope_full.proportional = false; }},
      {"sliding theta in full layers", "text",
       [](ModelConfig& c, ModelWeights&) { c.text.rope_full.theta = 1e4; }},
      {"no softcap", "text", [](ModelConfig& c, ModelWeights&) { c.text.final_logit_softcapping = 0; }},
      {"layer_scalar left out", "text", [](ModelConfig&, ModelWeights& w) { w.layers[2].layer_scalar = 1; }},
      {"k_norm left out", "text",
       [](ModelConfig&, ModelWeights& w) { std::ranges::fill(w.layers[1].k_norm, 1.0f); }},
      {"placeholders look up their own per-layer row", "image",
       [](ModelConfig& c, ModelWeights&) { c.placeholder_token_ids.clear(); }},
      {"a clip bound ignored", "image",
       [](ModelConfig&, ModelWeights& w) { w.vision->layers[0].down_proj.input_max = 1e9f; }},
      {"vision theta of the decoder", "image",
       [](ModelConfig& c, ModelWeights&) { c.vision->rope_theta = 1e4; }},
  };
  return list;
}

TEST_P(Golden, notices_a_wrong_model) {
  if (std::string(GetParam()) != "e2b") GTEST_SKIP() << "one model is enough";
  Loaded& loaded = load(GetParam());
  for (const Mistake& mistake : mistakes()) {
    ModelConfig config = loaded.model.config();
    ModelWeights weights =
        loaded.model.weights();  // views and small vectors: the large tensors are not copied
    mistake.make(config, weights);
    auto backend = golden_backend(config, weights, DType::kF32);
    const StageTap tap = run_case(*backend, config, *loaded.golden,
                                  loaded.golden->find_case(mistake.golden_case), Chunking::kWhole);
    const StageError& worst = worst_stage(tap.errors());
    EXPECT_GT(worst.relative(), 10 * kF32Tolerance) << mistake.name;
    fmt::print("{}: {} {:.1e}\n", mistake.name, stage_name(worst.stage), worst.relative());
  }
}

// The decoder's linears as E4M3 codes with scales; the reference multiplied float(code) * scale in FP32.
TEST_P(Golden, fp8_weights_in_float32) {
  auto golden = GoldenFile::open(kGoldens, GetParam());
  if (!golden->manifest().contains("fp8")) GTEST_SKIP() << "no FP8 golden";
  const auto& fp8 = golden->manifest().at("fp8").as_object();
  const bool per_tensor = fp8.at("strategy").as_string() == "tensor";
  Loaded& loaded = load(GetParam(), per_tensor ? RandomScheme::kFp8PerTensor : RandomScheme::kFp8PerChannel);
  ASSERT_EQ(loaded.model.weights().layers[0].q_proj.weight.dtype, DType::kF8E4M3);
  const GoldenCase& golden_case = golden->find_case(std::string(fp8.at("case").as_string()));
  const GoldenArray expected = golden->array("fp8/logits/-1");
  auto backend = golden_backend(loaded.model.config(), loaded.model.weights(), DType::kF32);
  double difference = 0;
  double reference = 0;
  int row = 0;
  backend->observe_stages([&](Stage stage, int, std::span<float> values, int rows, int columns) {
    if (stage != Stage::kLogits) return;
    ASSERT_EQ(rows, 1);
    for (int j = 0; j < expected.columns; ++j) {
      const double value = expected.row(row)[static_cast<size_t>(j)];
      const double found = values[static_cast<size_t>(sampled_column(row, j, expected.columns, columns))];
      difference += (found - value) * (found - value);
      reference += value * value;
    }
    ++row;
  });
  GoldenPrompt prompt{.ids = golden_case.ids, .chunk_ends = {}, .feature = {}};
  for (const int kept : golden_case.rows) prompt.chunk_ends.push_back(kept + 1);
  run_prompt(*backend, loaded.model.config(), prompt, nullptr);
  EXPECT_EQ(row, expected.rows);
  EXPECT_LE(std::sqrt(difference / reference), kF32Tolerance);
}

// One suite a model, so that each is loaded once (and once more with FP8 weights).
std::string test_name(const testing::TestParamInfo<const char*>& info) {
  return info.param;
}
INSTANTIATE_TEST_SUITE_P(e4b, Golden, testing::Values("e4b"), test_name);
INSTANTIATE_TEST_SUITE_P(e2b, Golden, testing::Values("e2b"), test_name);
INSTANTIATE_TEST_SUITE_P(demo, Golden, testing::Values("demo"), test_name);

}  // namespace
}  // namespace jewel

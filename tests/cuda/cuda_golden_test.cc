// The CUDA backend against Transformers: stages alone and end to end, on random models of E4B's and E2B's
// widths and on the demo model (docs/goldens.md). The same goldens and the same bounds as the CPU's BF16.
//
// Needs a device, as cuda_test.cc.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "backend/cuda/cuda_backend.h"
#include "golden_run.h"
#include "needs_device.h"

namespace jewel {
namespace {

// A stage rounds its input and its inner products' inputs, each by up to 2^-8 (golden_test.cc). Where a whole
// layer is one stage, from the residual stream to the next, some six such errors add up in their squares.
constexpr double kStageTolerance = 1e-2;
constexpr double kLayerTolerance = 2e-2;
constexpr double kDistanceFactor = 1.2;  // of Transformers' own distance in BF16

const std::string kGoldens = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden";
const std::string kDemo = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";

struct Mode {
  const char* model;
  bool portable;
};

struct Loaded {
  std::string name;
  std::unique_ptr<GoldenFile> golden;
  GoldenModel model;
};

Loaded& load(const std::string& name) {
  static std::unique_ptr<Loaded> loaded;
  if (!loaded || loaded->name != name) {
    loaded.reset();
    auto golden = GoldenFile::open(kGoldens, name);
    GoldenModel model = GoldenModel::of(*golden, kDemo);
    loaded = std::make_unique<Loaded>(name, std::move(golden), std::move(model));
  }
  return *loaded;
}

class CudaGolden : public testing::TestWithParam<Mode> {
 protected:
  std::unique_ptr<Backend> open(const Loaded& loaded) {
    CudaOptions options{.kv_dtype = DType::kBF16, .max_slots = 4, .max_step_tokens = 1024};
    options.portable = GetParam().portable;
    auto backend = make_cuda_backend(loaded.model.config(), loaded.model.weights(), options);
    if (backend.ok()) {
      auto allocated = (*backend)->allocate_kv({.n_full_pages = 64, .n_sliding_pages = 64});
      JEWEL_CHECK(allocated.ok(), "{}", allocated.error().message);
      return std::move(*backend);
    }
    reason_ = without_device(backend.error().message);
    return nullptr;
  }
  // Without a device there is no need to draw gigabytes of weights.
  bool no_device() {
    static const Result<std::unique_ptr<CudaBackend>> probe = make_cuda_backend({}, {}, {});
    const bool without = probe.error().code == ErrorCode::kUnavailable;
    if (without && !device_required()) reason_ = probe.error().message;
    return !reason_.empty();
  }
  std::string reason_;
};

// In BF16, as far from FP32 as Transformers' own BF16, or nearer.
TEST_P(CudaGolden, AsNearToFloat32AsTransformers) {
  if (no_device()) GTEST_SKIP() << reason_;
  Loaded& loaded = load(GetParam().model);
  auto backend = open(loaded);
  if (!backend) GTEST_SKIP() << reason_;
  for (const GoldenCase& golden_case : loaded.golden->cases()) {
    SCOPED_TRACE(golden_case.name);
    const StageTap tap =
        run_case(*backend, loaded.model.config(), *loaded.golden, golden_case, Chunking::kAtKeptRows);
    const double logits = error_of_stage(tap.errors(), Stage::kLogits).relative();
    EXPECT_LE(logits, kDistanceFactor * golden_case.bf16_logits_distance);
    fmt::print("{} {}: logits {:.4f}, Transformers {:.4f}", GetParam().model, golden_case.name, logits,
               golden_case.bf16_logits_distance);
    if (golden_case.grid_h > 0) {
      const double soft = error_of_stage(tap.errors(), Stage::kVisionProject).relative();
      EXPECT_LE(soft, kDistanceFactor * golden_case.bf16_soft_distance);
      fmt::print("; soft tokens {:.4f}, Transformers {:.4f}", soft, golden_case.bf16_soft_distance);
    }
    fmt::print("\n");
    if (testing::Test::HasFailure()) std::fputs(stage_table(tap.errors(), kLayerTolerance).c_str(), stderr);
  }
}

// Every stage that the kernels show, from the reference's own input.
TEST_P(CudaGolden, EachStage) {
  if (no_device()) GTEST_SKIP() << reason_;
  Loaded& loaded = load(GetParam().model);
  auto backend = open(loaded);
  if (!backend) GTEST_SKIP() << reason_;
  const TextConfig& text = loaded.model.config().text;
  for (const Chunking chunking : {Chunking::kWhole, Chunking::kAtKeptRows}) {
    const StageTap tap = run_fed(*backend, loaded.model.config(), *loaded.golden, chunking);
    int shown = 0;
    for (const StageError& error : tap.errors()) {
      if (error.rows == 0) continue;
      ++shown;
      // The vision tower shows its last stage alone, a free run of all its layers.
      if (error.stage == Stage::kVisionProject) continue;
      const bool whole_layer = error.layer >= text.first_shared_layer() || error.stage == Stage::kLogits;
      EXPECT_LE(error.relative(), whole_layer ? kLayerTolerance : kStageTolerance)
          << stage_name(error.stage) << " of layer " << error.layer;
    }
    // Six stages of each layer that owns K and V, one of each that does not; embeddings, logits, soft tokens.
    EXPECT_EQ(shown, 6 * text.first_shared_layer() + (text.n_layers - text.first_shared_layer()) + 3);
    const StageError& worst = worst_stage(tap.errors());
    fmt::print("{}: {} stages, worst {} {} {:.1e}\n", GetParam().model, shown, stage_name(worst.stage),
               worst.layer, worst.relative());
    if (testing::Test::HasFailure()) std::fputs(stage_table(tap.errors(), kLayerTolerance).c_str(), stderr);
  }
}

INSTANTIATE_TEST_SUITE_P(demo, CudaGolden, testing::Values(Mode{"demo", false}, Mode{"demo", true}),
                         [](const auto& info) { return info.param.portable ? "portable" : "best"; });
INSTANTIATE_TEST_SUITE_P(e2b, CudaGolden, testing::Values(Mode{"e2b", false}, Mode{"e2b", true}),
                         [](const auto& info) { return info.param.portable ? "portable" : "best"; });
INSTANTIATE_TEST_SUITE_P(e4b, CudaGolden, testing::Values(Mode{"e4b", false}, Mode{"e4b", true}),
                         [](const auto& info) { return info.param.portable ? "portable" : "best"; });

}  // namespace
}  // namespace jewel

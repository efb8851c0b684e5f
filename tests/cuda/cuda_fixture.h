// The CUDA backend over small random models, in each of its modes.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "driver.h"
#include "needs_device.h"

namespace jewel {

struct Mode {
  const char* name;
  DType weights;
  DType kv;
  bool portable;
  bool graphs;
};

inline constexpr Mode kModes[] = {
    {"bf16", DType::kBF16, DType::kBF16, false, true},
    {"fp8", DType::kF8E4M3, DType::kF8E4M3, false, true},
    {"fp8_without_graphs", DType::kF8E4M3, DType::kBF16, false, false},
    {"fp8_portable", DType::kF8E4M3, DType::kF8E4M3, true, true},
};

// wide: with E2B's hidden size and per-layer inputs, which have kernels of their own, and a gate-up product
// for the kernel of more than 32 rows.
inline std::unique_ptr<RandomModel> model_for(const Mode& mode, bool vision = false, bool wide = false,
                                              float norm_factor = 1) {
  RandomModelOptions options;
  options.hidden_size = wide ? 1536 : 128;
  options.intermediate_size = wide ? 4608 : 192;
  options.head_dim = 256;
  options.global_head_dim = 512;
  options.per_layer_input = wide ? 256 : 64;
  options.fp8_as_published = wide;  // per-layer linears in BF16
  options.vocab_size = 64;          // small enough to ask for the log-probabilities of all ids
  options.weight_dtype = mode.weights;
  options.scale =
      mode.weights == DType::kF8E4M3 ? RandomModelOptions::Scale::kRow : RandomModelOptions::Scale::kNone;
  options.norm_factor = norm_factor;
  options.vision = vision;
  options.vision_hidden = 128;
  options.vision_heads = 2;
  options.patch_size = 8;
  return random_model(options);
}

class CudaTest : public testing::TestWithParam<Mode> {
 protected:
  // Null, with the test skipped or failed, where there is no device.
  std::unique_ptr<Backend> open(const RandomModel& model, std::function<void(CudaOptions&)> change = {}) {
    CudaOptions options{.kv_dtype = GetParam().kv, .max_slots = 40, .max_step_tokens = 256};
    options.portable = GetParam().portable;
    options.graphs = GetParam().graphs;
    if (change) change(options);
    auto backend = make_cuda_backend(model.config, model.weights, options);
    if (backend.ok()) return std::move(*backend);
    reason_ = without_device(backend.error().message);
    return nullptr;
  }
  std::string reason_;
};

#define OPEN_OR_SKIP(driver, model, ...)                          \
  auto driver##_backend = open(model __VA_OPT__(, ) __VA_ARGS__); \
  if (!driver##_backend) GTEST_SKIP() << reason_;                 \
  Driver driver(model, std::move(driver##_backend), 1024, 1024)

using Rows = std::vector<std::vector<float>>;

}  // namespace jewel

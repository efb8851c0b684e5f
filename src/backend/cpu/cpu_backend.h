// The CPU backend: a readable forward pass over float32 activations, fast by the kernels under it.
//
// Weights stay where the checkpoint maps them (BF16, FP8 or F32, widened in registers); nothing of the model
// is copied.
#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"
#include "model/weights.h"

namespace jewel {

enum class CpuIsa : uint8_t { kPortable, kAvx2, kAvx512Bf16 };

struct CpuOptions {
  DType dtype = DType::kBF16;     // kBF16: inputs of products are rounded to bf16; kF32: nothing is (tests)
  DType kv_dtype = DType::kBF16;  // kBF16, kF8E4M3 or kF32
  int n_threads = 0;              // 0 = usable_cores()
  int max_slots = 4;
  int max_step_tokens = 2048;
  std::optional<CpuIsa> isa;  // none: the best this machine has
};

// `config` and `weights` must outlive the backend.
Result<std::unique_ptr<Backend>> make_cpu_backend(const ModelConfig& config, const ModelWeights& weights,
                                                  const CpuOptions& options);

}  // namespace jewel

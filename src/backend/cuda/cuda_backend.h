// The CUDA backend: E4B's weights in fragment tiles, prompts by large tensor-core products, decoding by
// kernels that read every weight once, sampling on the device (docs/cuda.md).
//
// This header needs no CUDA: a program built without it links the same calls to an error that says so
// (create.h chooses).
#pragma once

#include <functional>
#include <memory>

#include "backend/backend.h"
#include "model/weights.h"

namespace jewel {

enum class PleTable : uint8_t { kAuto, kDevice, kHost };

struct CudaOptions {
  int device = 0;
  DType kv_dtype = DType::kBF16;  // kBF16 or kF8E4M3
  bool head_fp8 = false;          // the head in FP8 with a scale a row, made while loading
  PleTable ple = PleTable::kAuto;
  bool prefill_fp8 = false;              // FP8 activations in prompts (sm_89 and up)
  bool prefill_fp8_if_possible = false;  // an older device takes BF16 instead of an error
  int max_slots = 32;
  int max_step_tokens = 2048;
  bool portable = false;  // the kernels of sm_80 and sm_89 on any device
  bool graphs = true;
  size_t kv_bytes_wanted = 0;  // for kAuto: what the table must leave free
  std::function<void(size_t done, size_t total)> progress;
};

struct CudaMemory {
  size_t total_bytes = 0;    // of the card
  size_t free_bytes = 0;     // with weights and activations in place, before KV pages
  size_t weights_bytes = 0;  // on the device
  size_t host_bytes = 0;     // page-locked
};

class CudaBackend : public Backend {
 public:
  virtual CudaMemory memory() const = 0;
};

// `config` must outlive the backend; `weights` are not looked at after this returns. Errors: kUnavailable
// (no driver, no device, too little memory), kUnsupported (the device, the model's shapes or dtypes), each
// one line that says what to do.
Result<std::unique_ptr<CudaBackend>> make_cuda_backend(const ModelConfig& config, const ModelWeights& weights,
                                                       const CudaOptions& options);

// Resets the device's primary context, with everything this process ever made in it, so that the card can go
// down to what it draws alone. Does nothing while a CudaBackend on that device lives; one may be made after.
void release_cuda_device(int device);

}  // namespace jewel

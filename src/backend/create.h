// Which backend a program runs on: the CPU's, or CUDA's where it was built in and a device can be had.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device_rates.h"
#include "base/result.h"
#include "model/weights.h"

namespace jewel {

struct BackendChoice {
  std::string device = "auto";  // auto, cpu, cuda, cuda:N
  DType dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  int n_threads = 0;
  int max_slots = 0;  // 0: 32 on CUDA, 4 on a CPU
  int max_step_tokens = 2048;
  double gpu_memory_utilization = 0.92;
  std::string lm_head_dtype = "auto";        // auto (the checkpoint's), fp8 (CUDA)
  std::string ple = "auto";                  // auto, device, host (CUDA)
  std::string prefill_activations = "auto";  // auto, bf16, fp8 (CUDA)
  bool fp8_activations = false;              // what auto means: the checkpoint asks for them
  bool portable_kernels = false;             // CUDA: those of sm_80 and sm_89 on any device
  std::function<void(size_t done, size_t total)> progress;
};

struct CreatedBackend {
  std::unique_ptr<Backend> backend;
  size_t kv_memory_bytes = 0;       // what KV pages may take
  bool on_cpu = true;               // weights are read where they are mapped: reading ahead pays
  std::vector<std::string> notes;   // why auto is not on the GPU
  std::function<void()> give_back;  // the device to the machine, once no backend is left; empty on the CPU
};

// "cuda" is device 0, "cuda:1" is device 1; what names no GPU is an Error.
Result<int> cuda_index(const std::string& device);

// `config` and `weights` must outlive the backend. Errors name the flag: device, dtype, ple …
Result<CreatedBackend> create_backend(const ModelConfig& config, const ModelWeights& weights,
                                      const BackendChoice& choice);

// The same as a ReleasableBackend: on the same device whenever it is made again, and from the same weights.
Result<CreatedBackend> create_releasable_backend(const ModelConfig& config, const ModelWeights& weights,
                                                 const BackendChoice& choice);

// What the GPU that `device` names can read and multiply; nothing where it names none or this program was
// built without CUDA. `bytes`: how much memory to read. Not while a backend there has work under way.
std::optional<CudaRates> measure_gpu_rates(const std::string& device, size_t bytes);

}  // namespace jewel

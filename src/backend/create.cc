#include "backend/create.h"

#include <fmt/format.h>

#include <charconv>
#include <fstream>
#include <string_view>

#include "backend/cpu/cpu_backend.h"
#include "backend/releasable_backend.h"
#ifdef JEWEL_HAS_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace jewel {
namespace {

constexpr int kCpuSlots = 4;

// What the machine says it could hand out, without its swap.
size_t available_memory_bytes() {
  std::ifstream words("/proc/meminfo");
  std::string word;
  size_t kib = 0;
  while (words >> word) {
    if (word == "MemAvailable:" && words >> kib) return kib << 10;
  }
  return size_t{4} << 30;
}

Result<CreatedBackend> create_cpu(const ModelConfig& config, const ModelWeights& weights,
                                  const BackendChoice& choice) {
  CpuOptions options{.dtype = choice.dtype, .kv_dtype = choice.kv_dtype, .n_threads = choice.n_threads};
  options.max_slots = choice.max_slots > 0 ? choice.max_slots : kCpuSlots;
  options.max_step_tokens = choice.max_step_tokens;
  CreatedBackend out;
  JEWEL_ASSIGN(out.backend, make_cpu_backend(config, weights, options));
  out.kv_memory_bytes = available_memory_bytes() / 2;  // the other half: activations, pictures, page cache
  return out;
}

#ifdef JEWEL_HAS_CUDA
constexpr int kCudaSlots = 32;

Result<CreatedBackend> create_cuda(const ModelConfig& config, const ModelWeights& weights,
                                   const BackendChoice& choice) {
  if (choice.dtype == DType::kF32) {
    return unsupported("dtype: float32 runs on the CPU alone; use --device cpu, or bfloat16", "dtype");
  }
  CudaOptions options;
  JEWEL_ASSIGN(options.device, cuda_index(choice.device));
  options.kv_dtype = choice.kv_dtype;
  options.head_fp8 = choice.lm_head_dtype == "fp8";
  options.ple = choice.ple == "device" ? PleTable::kDevice
                : choice.ple == "host" ? PleTable::kHost
                                       : PleTable::kAuto;
  options.prefill_fp8 =
      choice.prefill_activations == "fp8" || (choice.prefill_activations == "auto" && choice.fp8_activations);
  options.prefill_fp8_if_possible = choice.prefill_activations == "auto";
  options.max_slots = choice.max_slots > 0 ? choice.max_slots : kCudaSlots;
  options.max_step_tokens = choice.max_step_tokens;
  options.portable = choice.portable_kernels;
  options.progress = choice.progress;
  JEWEL_ASSIGN(auto backend, make_cuda_backend(config, weights, options));
  const CudaMemory memory = backend->memory();
  const auto kept_free =
      static_cast<size_t>((1 - choice.gpu_memory_utilization) * static_cast<double>(memory.total_bytes));
  CreatedBackend out;
  out.kv_memory_bytes = memory.free_bytes > kept_free ? memory.free_bytes - kept_free : 0;
  out.on_cpu = false;
  out.backend = std::move(backend);
  out.give_back = [device = options.device] { release_cuda_device(device); };
  return out;
}
#endif

}  // namespace

Result<int> cuda_index(const std::string& device) {
  if (device == "cuda" || device == "auto") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  int index = -1;
  if (device.starts_with(kPrefix)) {
    const char* end = device.data() + device.size();
    const auto [parsed, error] = std::from_chars(device.data() + kPrefix.size(), end, index);
    if (error != std::errc() || parsed != end) index = -1;
  }
  if (index >= 0) return index;
  return invalid(fmt::format("device: found '{}', expected auto, cpu, cuda or cuda:N", device), "device");
}

Result<CreatedBackend> create_backend(const ModelConfig& config, const ModelWeights& weights,
                                      const BackendChoice& choice) {
  if (choice.device == "cpu") return create_cpu(config, weights, choice);
  JEWEL_ASSIGN([[maybe_unused]] const int index, cuda_index(choice.device));
#ifdef JEWEL_HAS_CUDA
  if (choice.device == "auto" && choice.dtype == DType::kF32) return create_cpu(config, weights, choice);
  auto on_gpu = create_cuda(config, weights, choice);
  if (on_gpu.ok() || choice.device != "auto") return on_gpu;
  JEWEL_ASSIGN(CreatedBackend out, create_cpu(config, weights, choice));
  out.notes.push_back(fmt::format("running on the CPU: {}", on_gpu.error().message));
  return out;
#else
  if (choice.device != "auto") {
    return unsupported(
        fmt::format("device: found '{}', and this program was built without CUDA; build it with "
                    "'make cuda', or use --device cpu",
                    choice.device),
        "device");
  }
  return create_cpu(config, weights, choice);
#endif
}

std::optional<CudaRates> measure_gpu_rates([[maybe_unused]] const std::string& device,
                                           [[maybe_unused]] size_t bytes) {
#ifdef JEWEL_HAS_CUDA
  const auto index = cuda_index(device);
  if (!index.ok()) return std::nullopt;
  auto measured = measure_cuda_rates(*index, bytes);
  if (!measured.ok()) return std::nullopt;
  return std::move(*measured);
#else
  return std::nullopt;
#endif
}

Result<CreatedBackend> create_releasable_backend(const ModelConfig& config, const ModelWeights& weights,
                                                 const BackendChoice& choice) {
  JEWEL_ASSIGN(CreatedBackend created, create_backend(config, weights, choice));
  BackendChoice again = choice;
  if (created.on_cpu) again.device = "cpu";
  if (!created.on_cpu && choice.device == "auto") again.device = "cuda";
  again.progress = {};
  auto make_again = [&config, &weights, again]() -> Result<std::unique_ptr<Backend>> {
    JEWEL_ASSIGN(CreatedBackend made, create_backend(config, weights, again));
    return std::move(made.backend);
  };
  created.backend = std::make_unique<ReleasableBackend>(std::move(created.backend), std::move(make_again),
                                                        created.give_back);
  return created;
}

}  // namespace jewel

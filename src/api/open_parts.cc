#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <utility>

#include "api/engine_parts.h"
#include "backend/cpu/cpu_backend.h"
#include "checkpoint/checkpoint.h"

namespace jewel {
namespace {

constexpr int kCpuSlots = 4;

Result<DType> activation_dtype(const std::string& name) {
  if (name == "auto" || name == "bfloat16") return DType::kBF16;
  if (name == "float32") return DType::kF32;
  return invalid(fmt::format("--dtype: found '{}', expected auto, bfloat16 or float32", name), "dtype");
}

Result<DType> kv_dtype(const std::string& name, DType activations,
                       const std::optional<QuantizationConfig>& quantization) {
  if (name == "auto") {
    if (activations == DType::kF32) return DType::kF32;
    return quantization && quantization->fp8_kv_cache ? DType::kF8E4M3 : DType::kBF16;
  }
  if (name == "bfloat16") return DType::kBF16;
  if (name == "fp8" || name == "fp8_e4m3") return DType::kF8E4M3;
  if (name == "float32") return DType::kF32;
  return invalid(fmt::format("--kv-cache-dtype: found '{}', expected auto, bfloat16, fp8 or float32", name),
                 "kv_cache_dtype");
}

// What the machine says it could hand out, without its swap.
size_t available_memory_bytes() {
  std::ifstream lines("/proc/meminfo");
  for (std::string line; std::getline(lines, line);) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) return static_cast<size_t>(kib) << 10;
  }
  return size_t{4} << 30;
}

}  // namespace

Result<EngineParts> open_parts(const std::string& directory, const EngineOptions& options) {
  if (options.device != "auto" && options.device != "cpu") {
    return unsupported(fmt::format("--device: found '{}', this build runs on: auto, cpu", options.device),
                       "device");
  }
  JEWEL_ASSIGN(auto opened, Checkpoint::open(directory));
  const std::shared_ptr<Checkpoint> checkpoint = std::move(opened);
  JEWEL_ASSIGN(PromptBuilder prompts, PromptBuilder::load(directory));
  JEWEL_ASSIGN(const DType dtype, activation_dtype(options.dtype));
  JEWEL_ASSIGN(const DType kv, kv_dtype(options.kv_cache_dtype, dtype, checkpoint->quantization()));
  const TextConfig& text = checkpoint->config().text;
  if (prompts.tokenizer().vocab_size() > text.vocab_size) {
    return invalid(fmt::format(
        "{}: tokenizer.json has {} ids, config.json's vocab_size is {}; they belong to different models",
        directory, prompts.tokenizer().vocab_size(), text.vocab_size));
  }
  if (options.progress) checkpoint->read_ahead(options.progress);
  CpuOptions cpu{.dtype = dtype, .kv_dtype = kv, .n_threads = options.n_threads};
  cpu.max_slots = options.max_num_seqs > 0 ? options.max_num_seqs : kCpuSlots;
  cpu.max_step_tokens = options.max_num_batched_tokens;
  JEWEL_ASSIGN(auto backend, make_cpu_backend(checkpoint->config(), checkpoint->weights(), cpu));
  EngineParts parts;
  parts.directory = directory;
  parts.owner = checkpoint;
  parts.config = checkpoint->config();
  parts.generation = checkpoint->generation();
  parts.processor = checkpoint->processor();
  parts.stop_token_ids = checkpoint->stop_token_ids();
  parts.notes = checkpoint->notes();
  parts.prompts = std::make_shared<PromptBuilder>(std::move(prompts));
  parts.backend = std::move(backend);
  parts.kv_memory_bytes = available_memory_bytes() / 2;  // the other half: activations, pictures, page cache
  return parts;
}

}  // namespace jewel

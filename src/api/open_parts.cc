#include <fmt/format.h>

#include <utility>

#include "api/engine_parts.h"
#include "backend/create.h"
#include "checkpoint/checkpoint.h"

namespace jewel {
namespace {

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

}  // namespace

Result<EngineParts> open_parts(const std::string& directory, const EngineOptions& options) {
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
  BackendChoice choice{
      .device = options.device, .dtype = dtype, .kv_dtype = kv, .n_threads = options.n_threads};
  choice.max_slots = options.max_num_seqs;
  choice.max_step_tokens = options.max_num_batched_tokens;
  choice.gpu_memory_utilization = options.gpu_memory_utilization;
  choice.lm_head_dtype = options.lm_head_dtype;
  choice.ple = options.ple;
  choice.prefill_activations = options.prefill_activations;
  choice.fp8_activations = checkpoint->quantization() && checkpoint->quantization()->dynamic_activations;
  choice.progress = options.progress;
  JEWEL_ASSIGN(CreatedBackend created, create_backend(checkpoint->config(), checkpoint->weights(), choice));
  if (created.on_cpu && options.progress) checkpoint->read_ahead(options.progress);
  EngineParts parts;
  parts.directory = directory;
  parts.owner = checkpoint;
  parts.config = checkpoint->config();
  parts.generation = checkpoint->generation();
  parts.processor = checkpoint->processor();
  parts.stop_token_ids = checkpoint->stop_token_ids();
  parts.notes = checkpoint->notes();
  parts.prompts = std::make_shared<PromptBuilder>(std::move(prompts));
  parts.notes.insert(parts.notes.end(), created.notes.begin(), created.notes.end());
  parts.backend = std::move(created.backend);
  parts.kv_memory_bytes = created.kv_memory_bytes;
  parts.one_ahead = !created.on_cpu;
  return parts;
}

}  // namespace jewel

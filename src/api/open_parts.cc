#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>
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

Result<void> check_word(const std::string& name, const std::string& field,
                        std::initializer_list<std::string_view> words) {
  if (std::ranges::find(words, name) != words.end()) return {};
  return invalid(fmt::format("{}: found '{}', expected {}", field, name, fmt::join(words, ", ")), field);
}

// Sampling defaults. "vllm" leaves the ids that end an answer and those that are never said as they are.
Result<GenerationConfig> generation_config(const std::string& word, const GenerationConfig& model) {
  if (word == "auto") return model;
  if (word == "vllm") {
    return GenerationConfig{
        .eos_token_ids = model.eos_token_ids, .suppress_tokens = model.suppress_tokens, .do_sample = true};
  }
  const std::string path = word + "/generation_config.json";
  auto json = read_json_object(path);
  if (!json.ok()) {
    return invalid(fmt::format("generation_config: found '{}', expected auto, vllm or a directory with "
                               "generation_config.json ({})",
                               word, json.error().message),
                   "generation_config");
  }
  JEWEL_ASSIGN(GenerationConfig config, parse_generation_config(*json, path));
  if (config.eos_token_ids.empty()) config.eos_token_ids = model.eos_token_ids;
  return config;
}

// Waking an H200 costs as much as some 4 s of a context that does nothing; longer, so that who talks in turns
// seldom waits for it (docs/idle.md). A CPU draws no less without its backend.
constexpr double kGpuIdleReleaseSeconds = 30;

Result<double> idle_release(double asked, bool on_cpu) {
  if (asked == kIdleReleaseAuto) return on_cpu ? 0 : kGpuIdleReleaseSeconds;
  if (asked >= 0) return asked;
  return invalid(fmt::format("idle_release_s: found {}, expected seconds, or 0 for never", asked),
                 "idle_release_s");
}

// What was asked of a GPU and has no meaning on a CPU, said once.
void note_gpu_options(const EngineOptions& options, std::vector<std::string>& notes) {
  const auto note = [&](std::string_view flag, std::string_view value, std::string_view instead) {
    notes.push_back(fmt::format("{} {} is about GPUs; on the CPU {}", flag, value, instead));
  };
  if (options.lm_head_dtype == "fp8")
    note("lm_head_dtype", options.lm_head_dtype, "the head is computed as the checkpoint stores it");
  if (options.ple == "device")
    note("ple", options.ple, "the per-layer table is read where its file is mapped");
  if (options.prefill_activations == "fp8")
    note("prefill_activations", options.prefill_activations, "activations of prompts are bfloat16");
}

}  // namespace

Result<EngineParts> open_parts(const std::string& directory, const EngineOptions& options) {
  JEWEL_ASSIGN(auto opened, Checkpoint::open(directory));
  const std::shared_ptr<Checkpoint> checkpoint = std::move(opened);
  const std::string& tokenizer = options.tokenizer.empty() ? directory : options.tokenizer;
  JEWEL_ASSIGN(PromptBuilder prompts, PromptBuilder::load(tokenizer, options.chat_template));
  JEWEL_ASSIGN(GenerationConfig generation,
               generation_config(options.generation_config, checkpoint->generation()));
  if (options.max_new_tokens > 0) generation.max_new_tokens = options.max_new_tokens;
  JEWEL_TRY(check_word(options.lm_head_dtype, "lm_head_dtype", {"auto", "fp8"}));
  JEWEL_TRY(check_word(options.ple, "ple", {"auto", "device", "host"}));
  JEWEL_TRY(check_word(options.prefill_activations, "prefill_activations", {"auto", "bf16", "fp8"}));
  JEWEL_ASSIGN(const DType dtype, activation_dtype(options.dtype));
  JEWEL_ASSIGN(const DType kv, kv_dtype(options.kv_cache_dtype, dtype, checkpoint->quantization()));
  const TextConfig& text = checkpoint->config().text;
  if (prompts.tokenizer().vocab_size() > text.vocab_size) {
    return invalid(fmt::format(
        "{}: tokenizer.json has {} ids, config.json's vocab_size is {}; they belong to different models",
        tokenizer, prompts.tokenizer().vocab_size(), text.vocab_size));
  }
  JEWEL_TRY(check_word(options.meter, "meter", {"auto", "none", "nvml", "rapl"}));
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
  const auto create = options.idle_release_s == 0 ? create_backend : create_releasable_backend;
  JEWEL_ASSIGN(CreatedBackend created, create(checkpoint->config(), checkpoint->weights(), choice));
  JEWEL_ASSIGN(const double idle_release_s, idle_release(options.idle_release_s, created.on_cpu));
  if (created.on_cpu && options.progress) checkpoint->read_ahead(options.progress);
  EngineParts parts;
  parts.directory = directory;
  parts.owner = checkpoint;
  parts.config = checkpoint->config();
  parts.generation = std::move(generation);
  parts.processor = checkpoint->processor();
  parts.stop_token_ids =
      parts.generation.eos_token_ids.empty() ? checkpoint->stop_token_ids() : parts.generation.eos_token_ids;
  parts.notes = checkpoint->notes();
  parts.prompts = std::make_shared<PromptBuilder>(std::move(prompts));
  parts.notes.insert(parts.notes.end(), created.notes.begin(), created.notes.end());
  if (created.on_cpu) note_gpu_options(options, parts.notes);
  parts.backend = std::move(created.backend);
  parts.kv_memory_bytes = created.kv_memory_bytes;
  parts.one_ahead = !created.on_cpu;
  parts.idle_release_s = idle_release_s;
  const auto gpu = cuda_index(options.device);  // it has been opened: an Error is "cpu"
  parts.energy =
      find_counter({.which = options.meter, .on_gpu = !created.on_cpu, .cuda_index = gpu.ok() ? *gpu : 0});
  if (parts.energy.counter == nullptr && (options.meter == "nvml" || options.meter == "rapl")) {
    return unsupported(fmt::format("meter: {} was asked for, and there is none: {}; use auto or none",
                                   options.meter, parts.energy.why),
                       "meter");
  }
  return parts;
}

}  // namespace jewel

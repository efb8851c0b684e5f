#include "cli/local_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "engine/pages.h"
#include "image/prepare.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

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

Result<std::vector<uint8_t>> read_image_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream) return not_found(fmt::format("{}: cannot be opened", path), "image");
  const auto size = static_cast<int64_t>(stream.tellg());
  const auto limit = static_cast<int64_t>(ImageLimits{}.max_bytes);
  if (size < 0) return invalid(fmt::format("{}: is not a regular file", path), "image");
  if (size > limit)
    return too_large(fmt::format("{}: found {} bytes, the limit is {}", path, size, limit), "image");
  std::vector<uint8_t> bytes(static_cast<size_t>(size));
  stream.seekg(0);
  if (!stream.read(reinterpret_cast<char*>(bytes.data()), size))
    return invalid(fmt::format("{}: could not be read", path), "image");
  return bytes;
}

}  // namespace

// The soft tokens of one answer's images; given back to the backend at the end.
struct LocalModel::EncodedImages {
  explicit EncodedImages(Backend& owner) : backend(owner) {}
  ~EncodedImages() {
    for (const FeatureId feature : features) backend.release_feature(feature);
  }
  EncodedImages(const EncodedImages&) = delete;
  EncodedImages& operator=(const EncodedImages&) = delete;

  Result<void> encode(const std::string& path, int max_soft_tokens, const VisionConfig& config) {
    JEWEL_ASSIGN(const std::vector<uint8_t> bytes, read_image_file(path));
    auto prepared = prepare_image(bytes, max_soft_tokens, ImageLimits{}, config);
    if (!prepared.ok()) {
      Error error = std::move(prepared).error();
      error.message = fmt::format("{}: {}", path, error.message);
      return error;
    }
    JEWEL_ASSIGN(const FeatureId feature, backend.encode_image(prepared->patches));
    features.push_back(feature);
    soft_tokens.push_back(prepared->size.soft_tokens);
    return {};
  }

  Backend& backend;
  std::vector<FeatureId> features;
  std::vector<int> soft_tokens;
};

Result<std::unique_ptr<LocalModel>> LocalModel::load(const std::string& directory, const LoadOptions& options,
                                                     const std::function<void(size_t, size_t)>& progress) {
  JEWEL_ASSIGN(auto checkpoint, Checkpoint::open(directory));
  JEWEL_ASSIGN(PromptBuilder prompts, PromptBuilder::load(directory));
  JEWEL_ASSIGN(const DType dtype, activation_dtype(options.dtype));
  JEWEL_ASSIGN(const DType kv, kv_dtype(options.kv_cache_dtype, dtype, checkpoint->quantization()));
  const int model_limit = checkpoint->config().text.max_position_embeddings;
  if (options.max_model_len < 0 || options.max_model_len > model_limit) {
    return invalid(fmt::format("--max-model-len: found {}, expected 1 to {}, the model's own",
                               options.max_model_len, model_limit),
                   "max_model_len");
  }
  if (prompts.tokenizer().vocab_size() > checkpoint->config().text.vocab_size) {
    return invalid(fmt::format(
        "{}: tokenizer.json has {} ids, config.json's vocab_size is {}; they belong to different models",
        directory, prompts.tokenizer().vocab_size(), checkpoint->config().text.vocab_size));
  }
  if (progress) checkpoint->read_ahead(progress);
  JEWEL_ASSIGN(auto backend,
               make_cpu_backend(checkpoint->config(), checkpoint->weights(),
                                {.dtype = dtype, .kv_dtype = kv, .n_threads = options.n_threads}));
  std::unique_ptr<LocalModel> model(new LocalModel(std::move(prompts)));
  model->checkpoint_ = std::move(checkpoint);
  model->backend_ = std::move(backend);
  model->max_model_len_ = options.max_model_len > 0 ? options.max_model_len : model_limit;
  return model;
}

SamplingParams LocalModel::default_sampling() const {
  const GenerationConfig& generation = checkpoint_->generation();
  SamplingParams params;
  params.temperature = generation.do_sample ? generation.temperature : 0;
  params.top_k = generation.top_k;
  params.top_p = generation.top_p;
  params.never = checkpoint_->config().multimodal_token_ids;
  params.never.insert(params.never.end(), generation.suppress_tokens.begin(),
                      generation.suppress_tokens.end());
  return params;
}

// Pages for one sequence of that many tokens; kept and grown, since memory is only taken when a page is first
// written.
Result<void> LocalModel::reserve_kv(int tokens) {
  const KvSizes needed = SequencePages::needed(tokens, backend_->info().max_step_tokens,
                                               checkpoint_->config().text.sliding_window);
  if (needed.n_full_pages <= kv_.n_full_pages && needed.n_sliding_pages <= kv_.n_sliding_pages) return {};
  JEWEL_TRY(backend_->allocate_kv(needed));
  kv_ = needed;
  return {};
}

Result<Answer> LocalModel::answer(const ChatInput& input, const SamplingParams& sampling, int max_tokens,
                                  const std::function<void(const OutputEvent&)>& on_event) {
  const Clock::time_point start = Clock::now();
  const ModelConfig& config = checkpoint_->config();
  Answer answer;

  EncodedImages images(*backend_);
  if (!input.images.empty() && !config.vision) {
    return unsupported(
        fmt::format("{}: this checkpoint has no vision tower; leave --image out", checkpoint_->directory()),
        "image");
  }
  const int max_soft_tokens =
      input.image_tokens > 0 ? input.image_tokens : checkpoint_->processor().max_soft_tokens;
  for (const std::string& path : input.images) {
    JEWEL_TRY(images.encode(path, max_soft_tokens, *config.vision));
  }
  answer.image_s = input.images.empty() ? 0 : seconds_since(start);

  RenderOptions render;
  if (input.think) render.enable_thinking = true;
  JEWEL_ASSIGN(const Prompt prompt,
               input.raw ? prompts_.raw(*input.raw, images.soft_tokens)
                         : prompts_.chat(input.messages, input.tools, render, images.soft_tokens));
  answer.prompt_tokens = static_cast<int>(prompt.ids.size());
  JEWEL_TRY(check_length(prompt.ids.size(), max_tokens, max_model_len_));
  JEWEL_TRY(reserve_kv(answer.prompt_tokens + max_tokens));

  GenerateRequest request{.prompt = prompt.ids,
                          .sampling = sampling,
                          .stop_token_ids = checkpoint_->stop_token_ids(),
                          .max_tokens = max_tokens};
  for (const ImageSpan& span : prompt.images) {
    request.images.push_back({.feature = images.features[static_cast<size_t>(span.image)],
                              .position = span.position,
                              .count = span.count});
    answer.image_tokens += span.count;
  }

  OutputParser parser(prompts_.tokenizer(), prompts_.special(), prompt.ids);
  const auto take = [&](const std::vector<OutputEvent>& events) {
    for (const OutputEvent& event : events) {
      answer.output.add(event);
      if (on_event) on_event(event);
    }
  };
  const auto on_token = [&](const SampledToken& token) {
    if (answer.token_ids.empty()) answer.ttft_s = seconds_since(start);
    answer.token_ids.push_back(token.id);
    const bool was_reasoning = parser.in_reasoning();
    take(parser.push(token.id));
    if (was_reasoning || parser.in_reasoning()) ++answer.reasoning_tokens;
    return Continue::kYes;
  };
  JEWEL_ASSIGN(const GenerateResult result,
               generate(*backend_, config, kv_, request, max_model_len_, on_token));
  take(parser.finish());

  answer.prefill_s = result.prefill_s;
  answer.decode_s = result.decode_s;
  const bool stopped = result.finish_reason == FinishReason::kStop;
  answer.finish_reason = !stopped ? "length" : answer.output.tool_calls.empty() ? "stop" : "tool_calls";
  return answer;
}

}  // namespace jewel

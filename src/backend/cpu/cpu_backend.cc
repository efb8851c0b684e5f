#include "backend/cpu/cpu_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <map>
#include <new>

#include "backend/cpu/decoder.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/kv_cache.h"
#include "backend/cpu/sampler.h"
#include "backend/cpu/vision.h"
#include "base/check.h"
#include "base/threads.h"

namespace jewel {
namespace {

// submit() does the work at once and queues the result for collect().
class CpuBackend : public Backend {
 public:
  CpuBackend(const ModelConfig& config, const ModelWeights& weights, const CpuOptions& options,
             const Kernels& kernels)
      : config_(config),
        pool_(options.n_threads),
        compute_{.kernels = &kernels, .pool = &pool_, .dtype = options.dtype},
        cache_(config.text, weights, options.kv_dtype, kernels),
        decoder_(config, weights, compute_, cache_),
        slots_(static_cast<size_t>(options.max_slots)) {
    if (config.vision && weights.vision) vision_.emplace(config, weights, compute_);
    info_.name = fmt::format("cpu ({}, {} thread{})", kernels.name, pool_.n_threads(),
                             pool_.n_threads() == 1 ? "" : "s");
    info_.activation_dtype = options.dtype;
    info_.kv_dtype = options.kv_dtype;
    info_.full_page_bytes = cache_.page_bytes(LayerType::kFull);
    info_.sliding_page_bytes = cache_.page_bytes(LayerType::kSliding);
    info_.max_slots = options.max_slots;
    info_.max_step_tokens = options.max_step_tokens;
  }

  const BackendInfo& info() const override { return info_; }

  Result<void> allocate_kv(const KvSizes& sizes) override { return cache_.allocate(sizes); }

  Result<FeatureId> encode_image(const ImagePatches& patches) override {
    if (!vision_) return unsupported("image: this model has no vision tower");
    try {
      JEWEL_ASSIGN(std::vector<float> soft_tokens, vision_->encode(patches));
      features_[next_feature_] = std::move(soft_tokens);
    } catch (const std::bad_alloc&) {
      return unavailable(
          fmt::format("image: no memory to encode {} x {} patches", patches.grid_w, patches.grid_h));
    }
    return next_feature_++;
  }

  void release_feature(FeatureId feature) override {
    JEWEL_CHECK(features_.erase(feature) == 1, "feature {} is not held", feature);
  }

  void begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                      std::span<const TokenId> output) override {
    check_slot(slot);
    JEWEL_CHECK(!slots_[static_cast<size_t>(slot)], "slot {} is taken", slot);
    slots_[static_cast<size_t>(slot)].emplace(params, prompt, output);
  }

  void end_sequence(SlotId slot) override {
    sampler(slot);
    slots_[static_cast<size_t>(slot)].reset();
  }

  void submit(std::span<const StepChunk> chunks) override {
    try {
      finished_.push_back(run(chunks));
    } catch (const std::bad_alloc&) {
      finished_.emplace_back(
          unavailable("no memory for the activations of a step; allow fewer tokens in a step"));
    }
  }

  Result<StepResult> collect() override {
    JEWEL_CHECK(!finished_.empty(), "no step was submitted");
    Result<StepResult> result = std::move(finished_.front());
    finished_.pop_front();
    return result;
  }

  Result<void> read_pages(LayerType pool, std::span<const PageId> pages, std::span<std::byte> out) override {
    cache_.read_pages(pool, pages, out);
    return Ok{};
  }

  Result<void> write_pages(LayerType pool, std::span<const PageId> pages,
                           std::span<const std::byte> in) override {
    cache_.write_pages(pool, pages, in);
    return Ok{};
  }

  void observe_stages(StageObserver observer) override {
    if (vision_) vision_->observe_stages(observer);
    decoder_.observe_stages(std::move(observer));
  }

 private:
  // An asked row of a step: which chunk, which of its tokens.
  struct Asked {
    size_t chunk = 0;
    int token = 0;
  };

  void check_slot(SlotId slot) const {
    JEWEL_CHECK(slot >= 0 && slot < info_.max_slots, "slot {} of {}", slot, info_.max_slots);
  }
  Sampler& sampler(SlotId slot) {
    check_slot(slot);
    JEWEL_CHECK(slots_[static_cast<size_t>(slot)].has_value(), "slot {} has no sequence", slot);
    return *slots_[static_cast<size_t>(slot)];
  }

  Result<StepResult> run(std::span<const StepChunk> chunks) {
    check_step(chunks);
    std::vector<TokenId> last_tokens(chunks.size());
    std::vector<DecoderChunk> work(chunks.size());
    std::vector<Asked> asked;
    StepResult result;
    std::vector<size_t> sampled_at(chunks.size()), prompt_at(chunks.size());  // places in the result
    for (size_t i = 0; i < chunks.size(); ++i) {
      const StepChunk& chunk = chunks[i];
      work[i].position = chunk.position;
      work[i].tokens = chunk.tokens;
      if (chunk.tokens.empty()) {
        last_tokens[i] = sampler(chunk.slot).last();
        work[i].tokens = {&last_tokens[i], 1};
      }
      work[i].soft_tokens = soft_tokens_of(chunk);
      work[i].full_pages = chunk.full_pages;
      work[i].sliding_pages = chunk.sliding_pages;
      work[i].asked = chunk.n_prompt_logprobs >= 0 ? AskedRows::kAll
                      : chunk.sample               ? AskedRows::kLast
                                                   : AskedRows::kNone;
      const int n = chunk.n_tokens();
      for (int token = n - work[i].n_asked(); token < n; ++token) asked.push_back({i, token});
      if (chunk.sample) {
        sampled_at[i] = result.sampled.size();
        result.sampled.emplace_back().slot = chunk.slot;
      }
      if (chunk.n_prompt_logprobs >= 0) {
        prompt_at[i] = result.prompt_logprobs.size();
        PromptLogprobs& prompt = result.prompt_logprobs.emplace_back();
        prompt.slot = chunk.slot;
        prompt.token.resize(static_cast<size_t>(n - 1));
        prompt.top.resize(static_cast<size_t>(n));
      }
    }

    std::vector<std::optional<Error>> errors(asked.size());
    decoder_.forward(work, [&](int64_t first, const Matrix& logits) {
      pool_.parallel_for(logits.rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const std::span<float> values(logits.row(row), static_cast<size_t>(logits.columns));
          const auto at = static_cast<size_t>(first + row);
          const auto [chunk_index, token] = asked[at];
          const StepChunk& chunk = chunks[chunk_index];
          if (chunk.n_prompt_logprobs >= 0) {
            fill_prompt_logprobs(chunk, token, values, result.prompt_logprobs[prompt_at[chunk_index]]);
          }
          if (chunk.sample && token == chunk.n_tokens() - 1) {
            errors[at] = sample(chunk, values, result.sampled[sampled_at[chunk_index]]);
          }
        }
      });
    });
    for (std::optional<Error>& error : errors) {
      if (error) return std::move(*error);
    }
    for (const SampledToken& token : result.sampled) sampler(token.slot).append(token.id);
    return result;
  }

  void fill_prompt_logprobs(const StepChunk& chunk, int token, std::span<const float> logits,
                            PromptLogprobs& out) {
    const Logprobs logprobs(*compute_.kernels, logits);
    const auto i = static_cast<size_t>(token);
    if (token + 1 < chunk.n_tokens()) out.token[i] = logprobs.of(chunk.tokens[i + 1]);
    out.top[i] = logprobs.top(chunk.n_prompt_logprobs);
  }

  std::optional<Error> sample(const StepChunk& chunk, std::span<float> logits, SampledToken& out) {
    const Sampler& sequence = sampler(chunk.slot);
    const int n_logprobs = sequence.params().n_logprobs;
    std::vector<float> before;  // sampling overwrites the logits
    if (n_logprobs >= 0) before.assign(logits.begin(), logits.end());
    auto id =
        sequence.sample(*compute_.kernels, logits, chunk.position + chunk.n_tokens(), chunk.allowed_tokens);
    if (!id.ok()) return std::move(id).error();
    out.id = *id;
    out.logprob.id = *id;
    if (n_logprobs >= 0) {
      const Logprobs logprobs(*compute_.kernels, before);
      out.logprob = logprobs.of(*id);
      out.top = logprobs.top(n_logprobs);
    }
    return std::nullopt;
  }

  std::vector<SoftTokens> soft_tokens_of(const StepChunk& chunk) const {
    std::vector<SoftTokens> soft_tokens;
    const auto hidden = static_cast<size_t>(config_.text.hidden_size);
    for (const SoftTokenRun& run : chunk.soft_tokens) {
      const auto feature = features_.find(run.feature);
      JEWEL_CHECK(feature != features_.end(), "feature {} is not held", run.feature);
      const auto rows = static_cast<int>(feature->second.size() / hidden);
      JEWEL_CHECK(run.row >= 0 && run.count >= 0 && run.row <= rows - run.count,
                  "rows {} + {} of a feature of {}", run.row, run.count, rows);
      JEWEL_CHECK(run.offset >= 0 && run.offset <= chunk.n_tokens() - run.count,
                  "soft tokens at {} + {} of {} tokens", run.offset, run.count, chunk.n_tokens());
      soft_tokens.push_back({.values = feature->second.data() + static_cast<size_t>(run.row) * hidden,
                             .offset = run.offset,
                             .count = run.count});
    }
    return soft_tokens;
  }

  // The engine's books are checked once here, so that the loops below need not.
  void check_step(std::span<const StepChunk> chunks) {
    int64_t tokens = 0;
    std::vector<bool> used(slots_.size());
    for (const StepChunk& chunk : chunks) {
      sampler(chunk.slot);
      JEWEL_CHECK(!used[static_cast<size_t>(chunk.slot)], "slot {} appears twice in a step", chunk.slot);
      used[static_cast<size_t>(chunk.slot)] = true;
      tokens += chunk.n_tokens();
      JEWEL_CHECK(chunk.position >= 0, "position {}", chunk.position);
      for (TokenId id : chunk.tokens) {
        JEWEL_CHECK(id >= 0 && id < config_.text.vocab_size, "token {} of {}", id, config_.text.vocab_size);
      }
      const int end = chunk.position + chunk.n_tokens();
      check_pages(chunk, chunk.full_pages, LayerType::kFull, 0, end);
      check_pages(chunk, chunk.sliding_pages, LayerType::kSliding,
                  std::max(0, chunk.position - config_.text.sliding_window + 1), end);
    }
    JEWEL_CHECK(tokens <= info_.max_step_tokens, "{} tokens in a step of at most {}", tokens,
                info_.max_step_tokens);
  }

  void check_pages(const StepChunk& chunk, std::span<const PageId> pages, LayerType type, int begin,
                   int end) const {
    if (cache_.page_bytes(type) == 0) return;  // no layer of this type owns K and V
    const char* name = type == LayerType::kFull ? "full" : "sliding";
    const int last = (end - 1) / kPageTokens;
    JEWEL_CHECK(last < static_cast<int>(pages.size()), "slot {}: {} {} pages for positions up to {}",
                chunk.slot, pages.size(), name, end);
    for (int i = begin / kPageTokens; i <= last; ++i) {
      const PageId page = pages[static_cast<size_t>(i)];
      JEWEL_CHECK(page >= 0 && page < cache_.n_pages(type), "slot {}: {} page {} at entry {}, of {}",
                  chunk.slot, name, page, i, cache_.n_pages(type));
    }
  }

  const ModelConfig& config_;
  ThreadPool pool_;
  Compute compute_;
  KvCache cache_;
  Decoder decoder_;
  std::optional<VisionTower> vision_;
  BackendInfo info_;
  std::vector<std::optional<Sampler>> slots_;
  std::map<FeatureId, std::vector<float>> features_;  // [soft tokens, hidden]
  FeatureId next_feature_ = 1;
  std::deque<Result<StepResult>> finished_;
};

Result<void> check_options(const ModelConfig& config, const CpuOptions& options) {
  if (options.dtype != DType::kBF16 && options.dtype != DType::kF32) {
    return unsupported(
        fmt::format("cpu backend: activations in {}, expected BF16 or F32", dtype_name(options.dtype)));
  }
  if (options.kv_dtype != DType::kBF16 && options.kv_dtype != DType::kF32 &&
      options.kv_dtype != DType::kF8E4M3) {
    return unsupported(fmt::format("cpu backend: a KV cache in {}, expected BF16, F8_E4M3 or F32",
                                   dtype_name(options.kv_dtype)));
  }
  JEWEL_CHECK(options.max_slots > 0 && options.max_step_tokens > 0, "{} slots, {} tokens in a step",
              options.max_slots, options.max_step_tokens);
  const TextConfig& text = config.text;
  for (const LayerConfig& layer : text.layers) {
    if (layer.head_dim % 16 != 0 || layer.n_kv_heads <= 0 || text.n_heads % layer.n_kv_heads != 0) {
      return unsupported(
          fmt::format("config: {} heads of {} over {} K/V heads; the CPU backend wants head_dim in "
                      "multiples of 16 and heads in multiples of K/V heads",
                      text.n_heads, layer.head_dim, layer.n_kv_heads));
    }
  }
  return check_per_layer_vocabulary(text);
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cpu_backend(const ModelConfig& config, const ModelWeights& weights,
                                                  const CpuOptions& options) {
  JEWEL_TRY(check_options(config, options));
  const Kernels* kernels = options.isa ? kernels_for(*options.isa) : &best_kernels();
  if (kernels == nullptr) {
    return unsupported(
        "cpu backend: this machine lacks the instruction set that was asked for; leave the choice to Jewel");
  }
  std::unique_ptr<Backend> backend = std::make_unique<CpuBackend>(config, weights, options, *kernels);
  return backend;
}

}  // namespace jewel

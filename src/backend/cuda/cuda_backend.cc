#include "backend/cuda/cuda_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <deque>
#include <map>
#include <optional>

#include "backend/cuda/device.h"
#include "backend/cuda/device_weights.h"
#include "backend/cuda/features.h"
#include "backend/cuda/kv_pools.h"
#include "backend/cuda/passes.h"
#include "backend/cuda/slot_sampling.h"
#include "backend/cuda/step_memory.h"
#include "backend/cuda/step_ops.h"

namespace jewel {
namespace cuda {
namespace {

constexpr int kTailRows = 128;  // of one pass
constexpr int kStepsInFlight = 3;
constexpr int kMaxUpdates = 1 << 14;

int round_up(int value, int unit) {
  return (value + unit - 1) / unit * unit;
}

// Decode rows are padded to one of a few counts, each with its graph.
int rows_bucket(int rows) {
  return rows <= 8 ? rows : round_up(rows, 8);
}

// The bound on positions that a graph is captured for.
int context_bucket(int context) {
  int bucket = 1024;
  while (bucket < context) bucket *= 2;
  return bucket;
}

// A step between submit() and collect().
struct InFlight {
  int ring = 0;
  StepResult result;             // with places for what comes back
  std::vector<int> decode_rows;  // of result.sampled[i]: its decode row, or -1
  std::vector<int> asked_rows;   // the same among asked rows
  struct PromptPart {
    int first_asked = 0;
    int n = 0;
  };
  std::vector<PromptPart> prompt_parts;  // of result.prompt_logprobs
  bool with_logprobs = false;
  std::optional<Error> error;
};

class Cuda final : public CudaBackend {
 public:
  Cuda(const ModelConfig& config, const CudaOptions& options, const DeviceInfo& device, DeviceUse use)
      : use_(std::move(use)), config_(config), options_(options), device_(device) {}
  ~Cuda() override { enter(); }  // what goes next belongs to the device that is current

  Result<void> open(const ModelWeights& weights) {
    JEWEL_ASSIGN(stream_, Stream::make(StreamPriority::kHigh));
    const TextConfig& text = config_.text;
    LoadOptions load{
        .head_fp8 = options_.head_fp8, .portable = options_.portable, .progress = options_.progress};
    load.ple = options_.ple == PleTable::kAuto     ? PlePlace::kAuto
               : options_.ple == PleTable::kDevice ? PlePlace::kDevice
                                                   : PlePlace::kHost;
    load.wanted_free_bytes = options_.kv_bytes_wanted + (size_t{2} << 30);  // and activations
    JEWEL_ASSIGN(weights_, DeviceWeights::load(config_, weights, load));
    const KvFormat kv = options_.kv_dtype == DType::kF8E4M3 ? KvFormat::kF8E4M3 : KvFormat::kBF16;
    pools_.emplace(config_, *weights_, kv, options_.max_slots);
    sizes_ = {.max_slots = options_.max_slots,
              .max_rows = options_.max_step_tokens,
              .max_updates = kMaxUpdates,
              .mask_words = (text.vocab_size + 31) / 32};
    JEWEL_ASSIGN(inputs_memory_, DeviceBuffer::make(StepInputs(sizes_, nullptr).bytes, "a step's rows"));
    JEWEL_ASSIGN(outputs_memory_, DeviceBuffer::make(StepOutputs(sizes_, nullptr).bytes, "a step's results"));
    inputs_.emplace(sizes_, inputs_memory_.data());
    outputs_.emplace(sizes_, outputs_memory_.data());
    for (Ring& ring : rings_) {
      JEWEL_ASSIGN(ring.inputs, PinnedBuffer::make(StepInputs(sizes_, nullptr).bytes));
      JEWEL_ASSIGN(ring.outputs, PinnedBuffer::make(StepOutputs(sizes_, nullptr).bytes));
      JEWEL_ASSIGN(ring.done, Event::make(true));
    }
    tail_rows_ = std::min(kTailRows, rows_bucket(std::min(options_.max_slots, kTailRows)));
    logits_bytes_ = sizeof(float) * static_cast<size_t>(tail_rows_) * static_cast<size_t>(text.vocab_size);
    JEWEL_ASSIGN(logits_, DeviceBuffer::make(logits_bytes_, "logits"));
    const auto tiles = static_cast<size_t>(logit_tile_stride(text.vocab_size));
    JEWEL_ASSIGN(tile_max_,
                 DeviceBuffer::make(sizeof(float) * static_cast<size_t>(kTileMaxRows) * tiles, "logits"));
    JEWEL_CUDA_TRY(cudaMemset(tile_max_.data(), 0xff, tile_max_.bytes()), "logits");  // NaN
    JEWEL_ASSIGN(sample_workspace_, DeviceBuffer::make(sample_workspace(tail_rows_), "sampling"));
    JEWEL_CUDA_TRY(cudaMemset(sample_workspace_.data(), 0, sample_workspace_.bytes()), "sampling");
    JEWEL_ASSIGN(rows_memory_, DeviceBuffer::make(StepRows(sizes_, nullptr).bytes, "decoding rows"));
    rows_.emplace(sizes_, rows_memory_.data());
    JEWEL_ASSIGN(sampling_, SlotSamplings::make(options_.max_slots, text.vocab_size));
    if (weights_->vision) {
      JEWEL_ASSIGN(features_, Features::make(config_, *weights_->vision, options_.portable, options_.graphs));
    }

    info_.name = fmt::format("cuda ({}, sm_{}{}{})", device_.name, device_.major, device_.minor,
                             options_.portable ? ", portable kernels" : "");
    info_.activation_dtype = DType::kBF16;
    info_.kv_dtype = options_.kv_dtype;
    info_.full_page_bytes = pools_->page_bytes(LayerType::kFull);
    info_.sliding_page_bytes = pools_->page_bytes(LayerType::kSliding);
    info_.max_slots = options_.max_slots;
    info_.max_step_tokens = options_.max_step_tokens;
    info_.max_logprobs = kMaxTopLogprobs;
    slot_live_.assign(static_cast<size_t>(options_.max_slots), false);

    const PassContext context = pass_context();
    JEWEL_ASSIGN(prompts_, PromptPass::make(context, options_.max_step_tokens, options_.max_step_tokens));
    JEWEL_ASSIGN(tail_, TailPass::make(context, tail_rows_));
    JEWEL_CUDA_TRY(cudaDeviceSynchronize(), "opening the backend");
    return {};
  }

  const BackendInfo& info() const override { return info_; }

  CudaMemory memory() const override {
    enter();
    CudaMemory out{.weights_bytes = weights_->device_bytes(), .host_bytes = weights_->host_bytes()};
    cudaMemGetInfo(&out.free_bytes, &out.total_bytes);
    return out;
  }

  Result<void> allocate_kv(const KvSizes& sizes) override {
    enter();
    JEWEL_CUDA_TRY(cudaStreamSynchronize(stream_.get()), "waiting for steps");
    graphs_.clear();
    JEWEL_TRY(pools_->allocate(sizes));
    // The pass remembers where pages are.
    JEWEL_ASSIGN(tail_, TailPass::make(pass_context(), tail_rows_));
    return {};
  }

  Result<FeatureId> encode_image(const ImagePatches& patches) override {
    enter();
    if (!features_) return unsupported("image: this model has no vision tower");
    JEWEL_ASSIGN(const FeatureId feature, features_->add(patches));
    if (stages_.on()) {
      features_->start();
      JEWEL_TRY(features_->await({&feature, 1}, stream_.get()));
      const int cell = config_.vision->pooling_kernel_size * config_.vision->pooling_kernel_size;
      const int n = patches.grid_h * patches.grid_w / cell;
      JEWEL_TRY(stages_.show(Stage::kVisionProject, -1, features_->rows(feature, 0, n), StageForm::kF32, n,
                             config_.text.hidden_size, stream_.get()));
    }
    return feature;
  }
  void release_feature(FeatureId feature) override {
    enter();
    features_->release(feature, stream_.get());
  }

  void begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                      std::span<const TokenId> output) override {
    check_slot(slot);
    JEWEL_CHECK(!slot_live_[static_cast<size_t>(slot)], "slot {} is taken", slot);
    enter();
    slot_live_[static_cast<size_t>(slot)] = true;
    pools_->begin(slot);
    sampling_->begin(slot, params, prompt, output, stream_.get());
  }

  void end_sequence(SlotId slot) override {
    check_slot(slot);
    JEWEL_CHECK(slot_live_[static_cast<size_t>(slot)], "slot {} has no sequence", slot);
    slot_live_[static_cast<size_t>(slot)] = false;
  }

  void submit(std::span<const StepChunk> chunks) override {
    enter();
    JEWEL_CHECK(static_cast<int>(in_flight_.size()) < kStepsInFlight, "{} steps in flight",
                in_flight_.size());
    JEWEL_CHECK(pools_->allocated(), "allocate_kv() comes first");
    in_flight_.emplace_back();
    InFlight& step = in_flight_.back();
    step.ring = next_ring_;
    next_ring_ = (next_ring_ + 1) % kStepsInFlight;
    if (auto enqueued = enqueue(chunks, step); !enqueued.ok()) step.error = std::move(enqueued).error();
    const cudaError_t recorded =
        cudaEventRecord(rings_[static_cast<size_t>(step.ring)].done.get(), stream_.get());
    if (recorded != cudaSuccess && !step.error) step.error = cuda_error(recorded, "ending a step");
  }

  Result<StepResult> collect() override {
    enter();
    JEWEL_CHECK(!in_flight_.empty(), "no step was submitted");
    InFlight step = std::move(in_flight_.front());
    in_flight_.pop_front();
    Ring& ring = rings_[static_cast<size_t>(step.ring)];
    JEWEL_CUDA_TRY(cudaEventSynchronize(ring.done.get()), "a step");
    if (step.error) return *std::move(step.error);
    const StepOutputs out(sizes_, ring.outputs.data());
    for (size_t i = 0; i < step.result.sampled.size(); ++i) {
      SampledToken& token = step.result.sampled[i];
      const int row = step.decode_rows[i], asked = step.asked_rows[i];
      token.id = row >= 0 ? out.decode_ids[row] : out.asked_ids[asked];
      if (token.id < 0) return internal("no token can be sampled: every logit is masked or not a number");
      token.logprob.id = token.id;
      if (sampling_->n_logprobs(token.slot) >= 0) {
        fill(row >= 0 ? out.decode_logprobs[row] : out.asked_logprobs[asked], token.logprob, token.top);
      }
    }
    for (size_t i = 0; i < step.result.prompt_logprobs.size(); ++i) {
      PromptLogprobs& prompt = step.result.prompt_logprobs[i];
      for (int t = 0; t < step.prompt_parts[i].n; ++t) {
        const RowLogprobs& row = out.prompt_logprobs[step.prompt_parts[i].first_asked + t];
        TokenLogprob token;
        fill(row, token, prompt.top[static_cast<size_t>(t)]);
        if (t + 1 < step.prompt_parts[i].n) prompt.token[static_cast<size_t>(t)] = token;
      }
    }
    return std::move(step.result);
  }

  Result<void> read_pages(LayerType pool, std::span<const PageId> pages, std::span<std::byte> out) override {
    enter();
    return pools_->read_pages(pool, pages, out, stream_.get());
  }
  Result<void> write_pages(LayerType pool, std::span<const PageId> pages,
                           std::span<const std::byte> in) override {
    enter();
    return pools_->write_pages(pool, pages, in, stream_.get());
  }

  // Shown are the stages that some kernel leaves in memory: of prompt rows below the first shared layer all
  // but the per-layer inputs, K and V; of decoding and asked rows embeddings, whole layers and logits; of
  // images the soft tokens.
  void observe_stages(StageObserver observer) override { stages_.set(std::move(observer)); }

 private:
  struct Ring {
    PinnedBuffer inputs, outputs;
    Event done;
  };

  PassContext pass_context() const {
    return {.config = config_,
            .weights = *weights_,
            .pools = *pools_,
            .stages = stages_,
            .portable = options_.portable,
            .prefill_fp8 = options_.prefill_fp8};
  }

  // The current device is a thread's own, and the engine's thread is not the one that opened the backend.
  void enter() const { cudaSetDevice(device_.index); }

  void check_slot(SlotId slot) const {
    JEWEL_CHECK(slot >= 0 && slot < info_.max_slots, "slot {} of {}", slot, info_.max_slots);
  }

  static void fill(const RowLogprobs& row, TokenLogprob& token, std::vector<TokenLogprob>& top) {
    token = {.id = row.id, .logprob = row.logprob, .rank = row.rank};
    top.clear();
    for (int i = 0; i < row.n_top; ++i) {
      const bool tie = i > 0 && row.top_logprobs[i] == row.top_logprobs[i - 1];
      top.push_back(
          {.id = row.top_ids[i], .logprob = row.top_logprobs[i], .rank = tie ? top.back().rank : i + 1});
    }
  }

  bool is_placeholder(TokenId id) const {
    return std::ranges::find(config_.placeholder_token_ids, id) != config_.placeholder_token_ids.end();
  }

  // Fills the host's block and enqueues copies, passes and sampling.
  Result<void> enqueue(std::span<const StepChunk> chunks, InFlight& step) {
    Ring& ring = rings_[static_cast<size_t>(step.ring)];
    StepInputs host(sizes_, ring.inputs.data());
    Plan plan;
    for (const StepChunk& chunk : chunks) add_chunk(chunk, host, plan, step);
    host.chunk_rows[plan.n_chunks] = plan.n_rows;
    const int n_padded = plan.n_decode > 0 ? padded_rows(plan.n_decode) : 0;
    for (int r = plan.n_decode; r < n_padded; ++r) {
      host.decode[r] = {};
    }

    const cudaStream_t stream = stream_.get();
    const auto copy = [&](size_t begin, size_t end) {
      return cudaMemcpyAsync(inputs_memory_.data() + begin, ring.inputs.data() + begin, end - begin,
                             cudaMemcpyHostToDevice, stream);
    };
    if (plan.n_rows > 0) JEWEL_CUDA_TRY(copy(host.prompt_begin, host.prompt_end), "sending prompts");
    if (plan.n_masks > 0) {
      const size_t begin = reinterpret_cast<std::byte*>(host.masks) - ring.inputs.data();
      JEWEL_CUDA_TRY(
          copy(begin, begin + sizeof(uint32_t) * static_cast<size_t>(plan.n_masks * sizes_.mask_words)),
          "sending masks");
    }
    for (size_t first = 0; first < plan.updates.size(); first += kMaxUpdates) {  // mostly none, never many
      const size_t n = std::min<size_t>(kMaxUpdates, plan.updates.size() - first);
      if (first > 0) JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "sending page tables");
      std::copy_n(plan.updates.begin() + static_cast<std::ptrdiff_t>(first), n, host.updates);
      const size_t begin = reinterpret_cast<std::byte*>(host.updates) - ring.inputs.data();
      JEWEL_CUDA_TRY(copy(begin, begin + n * sizeof(PageUpdate)), "sending page tables");
      JEWEL_CUDA_TRY(launch_page_updates(pools_->tables(), inputs_->updates, static_cast<int>(n), stream),
                     "page tables");
    }
    if (plan.n_decode > 0) JEWEL_TRY(enqueue_decode(plan, host, ring));
    // Behind the rows that decode, which need not wait for images.
    if (features_) features_->start();
    if (!plan.features.empty()) JEWEL_TRY(features_->await(plan.features, stream));
    if (plan.n_rows > 0) JEWEL_TRY(enqueue_prompts(plan));
    return enqueue_readback(plan, ring, step);
  }

  struct Plan {
    int n_decode = 0;
    int n_rows = 0;
    int n_chunks = 0;
    int n_asked = 0;
    int n_masks = 0;
    int decode_context = 0;
    int asked_context = 0;
    bool decode_logprobs = false;
    bool asked_logprobs = false;
    bool asked_soft = false;  // soft tokens among them
    bool prompt_logprobs = false;
    bool decode_by_tiles = true, asked_by_tiles = true;  // all that sample (SampleRows::all_by_tiles)
    std::vector<PageUpdate> updates;
    std::vector<FeatureId> features;
  };

  static int padded_rows(int rows) {
    return rows / kTailRows * kTailRows + (rows % kTailRows ? rows_bucket(rows % kTailRows) : 0);
  }

  // Null where sampling reads all logits: of many rows, and where an observer may change them.
  float* tile_max(int rows) const {
    return rows <= kTileMaxRows && !stages_.on() ? tile_max_.as<float>() : nullptr;
  }

  bool by_tiles(const uint32_t* mask, SlotId slot) const {
    return mask == nullptr && sampling_->by_tiles(slot);
  }

  // The device's copy of a mask, or null.
  const uint32_t* place_mask(const StepChunk& chunk, StepInputs& host, Plan& plan) {
    if (chunk.allowed_tokens.empty()) return nullptr;
    const auto words = static_cast<size_t>(sizes_.mask_words);
    JEWEL_CHECK(chunk.allowed_tokens.size() >= words, "a mask of {} words for {}",
                chunk.allowed_tokens.size(), words);
    const size_t at = static_cast<size_t>(plan.n_masks++) * words;
    std::copy_n(chunk.allowed_tokens.begin(), words, host.masks + at);
    return inputs_->masks + at;
  }

  void add_chunk(const StepChunk& chunk, StepInputs& host, Plan& plan, InFlight& step) {
    check_slot(chunk.slot);
    JEWEL_CHECK(slot_live_[static_cast<size_t>(chunk.slot)], "slot {} has no sequence", chunk.slot);
    JEWEL_CHECK(chunk.position >= 0, "position {}", chunk.position);
    pools_->update(chunk.slot, LayerType::kFull, chunk.full_pages, plan.updates);
    pools_->update(chunk.slot, LayerType::kSliding, chunk.sliding_pages, plan.updates);
    const int n_logprobs = sampling_->n_logprobs(chunk.slot);
    if (chunk.sample) {
      step.result.sampled.emplace_back().slot = chunk.slot;
      step.decode_rows.push_back(chunk.phase == Phase::kDecode ? plan.n_decode : -1);
      step.asked_rows.push_back(-1);
    }
    if (chunk.phase == Phase::kDecode) {
      JEWEL_CHECK(chunk.n_tokens() == 1 && chunk.soft_tokens.empty() && chunk.n_prompt_logprobs < 0,
                  "a decode chunk of slot {} has one token and nothing else", chunk.slot);
      const int row = plan.n_decode++;
      host.decode[row] = {.given = chunk.tokens.empty() ? -1 : chunk.tokens[0],
                          .position = chunk.position,
                          .slot = chunk.slot,
                          .sampled_at = chunk.sample ? chunk.position : -1,
                          .allowed = place_mask(chunk, host, plan),
                          .n_top = chunk.sample ? n_logprobs : -1};
      plan.decode_logprobs |= chunk.sample && n_logprobs >= 0;
      plan.decode_by_tiles &= !chunk.sample || by_tiles(host.decode[row].allowed, chunk.slot);
      plan.decode_context = std::max(plan.decode_context, chunk.position + 1);
      return;
    }
    const int first = plan.n_rows, n = chunk.n_tokens();
    JEWEL_CHECK(first + n <= sizes_.max_rows && !chunk.tokens.empty(), "{} tokens in a step of at most {}",
                first + n, sizes_.max_rows);
    host.chunk_rows[plan.n_chunks++] = first;
    for (int t = 0; t < n; ++t) {
      const TokenId id = chunk.tokens[static_cast<size_t>(t)];
      JEWEL_CHECK(id >= 0 && id < config_.text.vocab_size, "token {} of {}", id, config_.text.vocab_size);
      host.ids[first + t] = is_placeholder(id) ? config_.text.pad_token_id : id;
      host.positions[first + t] = chunk.position + t;
      host.row_slots[first + t] = chunk.slot;
      host.soft_rows[first + t] = nullptr;
    }
    for (const SoftTokenRun& run : chunk.soft_tokens) {
      JEWEL_CHECK(run.offset >= 0 && run.offset <= n - run.count, "soft tokens at {} + {} of {} tokens",
                  run.offset, run.count, n);
      const float* soft = features_->rows(run.feature, run.row, run.count);
      plan.features.push_back(run.feature);
      for (int i = 0; i < run.count; ++i) {
        host.ids[first + run.offset + i] = -1;
        host.soft_rows[first + run.offset + i] = soft + static_cast<int64_t>(i) * config_.text.hidden_size;
      }
    }
    plan.n_rows += n;

    const bool all = chunk.n_prompt_logprobs >= 0;
    if (all) {
      PromptLogprobs& prompt = step.result.prompt_logprobs.emplace_back();
      prompt.slot = chunk.slot;
      prompt.token.resize(static_cast<size_t>(n - 1));
      prompt.top.resize(static_cast<size_t>(n));
      step.prompt_parts.push_back({.first_asked = plan.n_asked, .n = n});
      plan.prompt_logprobs = true;
    }
    for (int t = all ? 0 : chunk.sample ? n - 1 : n; t < n; ++t) {
      const int row = plan.n_asked++;
      const bool sampled = chunk.sample && t == n - 1;
      host.asked[row] = first + t;
      host.asked_ids[row] = host.ids[first + t];
      plan.asked_soft |= host.asked_ids[row] < 0;
      host.asked_positions[row] = chunk.position + t;
      host.asked_slots[row] = chunk.slot;
      host.asked_sampled_at[row] = sampled ? chunk.position + t : -1;
      host.asked_allowed[row] = sampled ? place_mask(chunk, host, plan) : nullptr;
      host.asked_n_top[row] = sampled ? n_logprobs : -1;
      host.asked_next_ids[row] = t + 1 < n ? chunk.tokens[static_cast<size_t>(t) + 1] : -1;
      host.asked_prompt_n_top[row] = all ? chunk.n_prompt_logprobs : -1;
      plan.asked_logprobs |= sampled && n_logprobs >= 0;
      plan.asked_by_tiles &= !sampled || by_tiles(host.asked_allowed[row], chunk.slot);
      plan.asked_context = std::max(plan.asked_context, chunk.position + t + 1);
      if (sampled) step.asked_rows.back() = row;
    }
  }

  // Tokens go straight to the host's block; with log-probabilities sampling stands apart.
  Result<void> enqueue_decode(const Plan& plan, const StepInputs& host, const Ring& ring) {
    const bool samples = !plan.decode_logprobs;
    const StepOutputs results(sizes_, ring.outputs.data());
    for (int first = 0; first < plan.n_decode; first += tail_rows_) {
      const int n = std::min(tail_rows_, plan.n_decode - first);
      const int rows = stages_.on() ? n : rows_bucket(n), context = context_bucket(plan.decode_context);
      const bool by_tiles = plan.decode_by_tiles && tile_max(rows) != nullptr;
      const DecodeRows decode = rows_->decode.from(first);
      // All that differs from step to step, so a graph is launched with it.
      BeginRows begin{.n = rows,
                      .to = decode,
                      .last_tokens = sampling_->last_tokens(),
                      .also_ids = results.decode_ids + first,
                      .also_ids_at = rows_->also_ids};
      std::copy_n(host.decode + first, rows, begin.rows);
      tail_->describe(begin);
      if (options_.graphs && !stages_.on()) {
        Graph& graph = graphs_[{first, rows, context, !samples ? 0 : by_tiles ? 2 : 1}];
        if (graph.get()) {
          JEWEL_CUDA_TRY(graph.launch_with(begin, stream_.get()), "a decode step");
        } else {  // the first step of its shape goes without, and all, where there is no memory for a graph
          const auto enqueue = [&] { return decode_rows(begin, first, context, samples, by_tiles); };
          JEWEL_TRY(enqueue());
          const auto captured = graph.capture(stream_.get(), "a decode step's graph", enqueue);
          if (!captured.ok()) cudaGetLastError();
        }
      } else {
        JEWEL_TRY(decode_rows(begin, first, context, samples, by_tiles));
      }
      if (samples) continue;
      JEWEL_TRY(sample({.n = n,
                        .slots = decode.slots,
                        .sampled_at = decode.sampled_at,
                        .allowed = decode.allowed,
                        .n_top = decode.n_top,
                        .ids = outputs_->decode_ids + first,
                        .logprobs = outputs_->decode_logprobs + first,
                        .all_by_tiles = by_tiles}));
    }
    return {};
  }

  Result<void> decode_rows(const BeginRows& begin, int first, int context, bool samples, bool by_tiles) {
    const DecodeRows rows = rows_->decode.from(first);
    const int n = begin.n;
    JEWEL_CUDA_TRY(launch_begin_rows(begin, stream_.get()), "a step's rows");
    JEWEL_TRY(tail_->enqueue({.n = n,
                              .ids = rows.ids,
                              .positions = rows.positions,
                              .slots = rows.slots,
                              .max_context = context,
                              .logits = logits_.as<float>(),
                              .tile_max = tile_max(n)},
                             stream_.get()));
    if (!samples) return {};
    return sample({.n = n,
                   .slots = rows.slots,
                   .sampled_at = rows.sampled_at,
                   .allowed = rows.allowed,
                   .ids = outputs_->decode_ids + first,
                   .also_ids = rows_->also_ids,
                   .overlap = true,
                   .all_by_tiles = by_tiles});
  }

  Result<void> enqueue_prompts(const Plan& plan) {
    JEWEL_TRY(prompts_->enqueue({.n = plan.n_rows,
                                 .ids = inputs_->ids,
                                 .soft_rows = plan.features.empty() ? nullptr : inputs_->soft_rows,
                                 .positions = inputs_->positions,
                                 .slots = inputs_->row_slots,
                                 .chunk_rows = inputs_->chunk_rows,
                                 .n_chunks = plan.n_chunks,
                                 .asked = inputs_->asked,
                                 .n_asked = plan.n_asked},
                                stream_.get()));
    const int hidden = config_.text.hidden_size;
    for (int first = 0; first < plan.n_asked; first += tail_rows_) {
      const int n = std::min(tail_rows_, plan.n_asked - first);
      const int64_t at = int64_t{first} * hidden;
      JEWEL_TRY(
          tail_->enqueue({.n = n,
                          .ids = inputs_->asked_ids + first,
                          .positions = inputs_->asked_positions + first,
                          .slots = inputs_->asked_slots + first,
                          .max_context = context_bucket(plan.asked_context),
                          .residuals = prompts_->asked_residuals() + at,
                          .soft_embeddings = plan.asked_soft ? prompts_->asked_embeddings() + at : nullptr,
                          .logits = logits_.as<float>(),
                          .tile_max = tile_max(n)},
                         stream_.get()));
      if (plan.prompt_logprobs) {
        JEWEL_CUDA_TRY(launch_logprob_rows({.logits = logits_.as<float>(),
                                            .vocab = config_.text.vocab_size,
                                            .n = n,
                                            .ids = inputs_->asked_next_ids + first,
                                            .n_top = inputs_->asked_prompt_n_top + first,
                                            .out = outputs_->prompt_logprobs + first},
                                           stream_.get()),
                       "log-probabilities of a prompt");
      }
      JEWEL_TRY(sample({.n = n,
                        .slots = inputs_->asked_slots + first,
                        .sampled_at = inputs_->asked_sampled_at + first,
                        .allowed = inputs_->asked_allowed + first,
                        .n_top = plan.asked_logprobs ? inputs_->asked_n_top + first : nullptr,
                        .ids = outputs_->asked_ids + first,
                        .logprobs = outputs_->asked_logprobs + first,
                        .all_by_tiles = plan.asked_by_tiles}));
    }
    return {};
  }

  struct SampleCall {
    int n = 0;
    const int32_t* slots = nullptr;
    const int32_t* sampled_at = nullptr;
    const uint32_t* const* allowed = nullptr;
    const int32_t* n_top = nullptr;  // null: no row wants log-probabilities
    int32_t* ids = nullptr;
    RowLogprobs* logprobs = nullptr;
    int32_t* const* also_ids = nullptr;
    bool overlap = false;
    bool all_by_tiles = false;
  };

  Result<void> sample(const SampleCall& call) {
    const int vocab = config_.text.vocab_size;
    if (call.n_top) {  // sampling overwrites the logits
      if (!kept_logits_.data()) {
        JEWEL_ASSIGN(kept_logits_, DeviceBuffer::make(logits_bytes_, "logits for log-probabilities"));
      }
      JEWEL_CUDA_TRY(cudaMemcpyAsync(kept_logits_.data(), logits_.data(),
                                     sizeof(float) * static_cast<size_t>(call.n) * static_cast<size_t>(vocab),
                                     cudaMemcpyDeviceToDevice, stream_.get()),
                     "keeping logits");
    }
    JEWEL_CUDA_TRY(launch_sample_rows({.logits = logits_.as<float>(),
                                       .tile_max = tile_max(call.n),
                                       .all_by_tiles = call.all_by_tiles,
                                       .vocab = vocab,
                                       .n = call.n,
                                       .slots = call.slots,
                                       .positions = call.sampled_at,
                                       .sampling = sampling_->slots(),
                                       .allowed = call.allowed,
                                       .ids = call.ids,
                                       .last_tokens = sampling_->last_tokens(),
                                       .also_ids = call.also_ids,
                                       .overlap = call.overlap,
                                       .workspace = sample_workspace_.data(),
                                       .workspace_rows = tail_rows_},
                                      stream_.get()),
                   "sampling");
    if (!call.n_top) return {};
    JEWEL_CUDA_TRY(launch_logprob_rows({.logits = kept_logits_.as<float>(),
                                        .vocab = vocab,
                                        .n = call.n,
                                        .ids = call.ids,
                                        .n_top = call.n_top,
                                        .out = call.logprobs},
                                       stream_.get()),
                   "log-probabilities");
    return {};
  }

  Result<void> enqueue_readback(const Plan& plan, Ring& ring, InFlight& step) {
    const StepOutputs host(sizes_, ring.outputs.data());
    const auto read = [&](const auto* device, size_t count) {
      const size_t at =
          static_cast<size_t>(reinterpret_cast<const std::byte*>(device) - outputs_memory_.data());
      return count == 0 ? cudaSuccess
                        : cudaMemcpyAsync(ring.outputs.data() + at, device, count * sizeof(*device),
                                          cudaMemcpyDeviceToHost, stream_.get());
    };
    const auto n_decode = static_cast<size_t>(plan.n_decode), n_asked = static_cast<size_t>(plan.n_asked);
    JEWEL_CUDA_TRY(read(outputs_->decode_ids, plan.decode_logprobs ? n_decode : 0), "reading tokens");
    JEWEL_CUDA_TRY(read(outputs_->asked_ids, n_asked), "reading tokens");
    step.with_logprobs = plan.decode_logprobs || plan.asked_logprobs || plan.prompt_logprobs;
    JEWEL_CUDA_TRY(read(outputs_->decode_logprobs, plan.decode_logprobs ? n_decode : 0),
                   "reading log-probabilities");
    JEWEL_CUDA_TRY(read(outputs_->asked_logprobs, plan.asked_logprobs ? n_asked : 0),
                   "reading log-probabilities");
    JEWEL_CUDA_TRY(read(outputs_->prompt_logprobs, plan.prompt_logprobs ? n_asked : 0),
                   "reading log-probabilities");
    return {};
  }

  const DeviceUse use_;  // first, so that it goes last
  const ModelConfig& config_;
  const CudaOptions options_;
  const DeviceInfo device_;
  StageView stages_;
  Stream stream_;
  std::unique_ptr<DeviceWeights> weights_;
  std::optional<KvPools> pools_;
  std::unique_ptr<Features> features_;
  std::unique_ptr<SlotSamplings> sampling_;
  std::unique_ptr<PromptPass> prompts_;
  std::unique_ptr<TailPass> tail_;
  BackendInfo info_;
  StepSizes sizes_;
  DeviceBuffer inputs_memory_, rows_memory_, outputs_memory_, logits_, tile_max_, kept_logits_,
      sample_workspace_;
  size_t logits_bytes_ = 0;
  int tail_rows_ = 0;
  std::optional<StepInputs> inputs_;  // on the device
  std::optional<StepRows> rows_;
  std::optional<StepOutputs> outputs_;  // on the device
  std::array<Ring, kStepsInFlight> rings_;
  int next_ring_ = 0;
  std::deque<InFlight> in_flight_;
  std::map<std::array<int, 4>, Graph> graphs_;  // by first row, rows, context, how it samples
  std::vector<bool> slot_live_;
};

Result<void> check_options(const ModelConfig& config, const CudaOptions& options, const DeviceInfo& device) {
  if (options.kv_dtype != DType::kBF16 && options.kv_dtype != DType::kF8E4M3) {
    return unsupported(fmt::format("cuda backend: a KV cache in {}, expected BF16 or F8_E4M3",
                                   dtype_name(options.kv_dtype)));
  }
  if (options.prefill_fp8 && !device.has_fp8()) {
    return unsupported(fmt::format("prefill_activations fp8: {} (sm_{}{}) has no FP8 tensor cores; use bf16",
                                   device.name, device.major, device.minor));
  }
  JEWEL_CHECK(options.max_slots > 0 && options.max_step_tokens > 0, "{} slots, {} tokens in a step",
              options.max_slots, options.max_step_tokens);
  JEWEL_TRY(check_per_layer_vocabulary(config.text));
  for (const LayerConfig& layer : config.text.layers) {
    const int group = config.text.n_heads / layer.n_kv_heads;
    const bool has_kernels = (layer.head_dim == 256 || layer.head_dim == 512) &&
                             group * layer.n_kv_heads == config.text.n_heads &&
                             (group == 1 || group == 2 || group == 4 || group == 8);
    if (!has_kernels) {
      return unsupported(
          fmt::format("config: {} heads of {} over {} K/V heads; the CUDA backend has kernels for head_dim "
                      "256 and 512 and 1, 2, 4 or 8 heads to a K/V head; use --device cpu",
                      config.text.n_heads, layer.head_dim, layer.n_kv_heads));
    }
  }
  return {};
}

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<CudaBackend>> make_cuda_backend(const ModelConfig& config, const ModelWeights& weights,
                                                       const CudaOptions& options) {
  cuda::DeviceUse use(options.device);
  JEWEL_ASSIGN(const cuda::DeviceInfo device, cuda::open_device(options.device));
  CudaOptions chosen = options;
  chosen.portable = options.portable || !device.sm90();
  if (options.prefill_fp8_if_possible) chosen.prefill_fp8 = options.prefill_fp8 && device.has_fp8();
  JEWEL_TRY(cuda::check_options(config, chosen, device));
  auto backend = std::make_unique<cuda::Cuda>(config, chosen, device, std::move(use));
  JEWEL_TRY(backend->open(weights));
  return std::unique_ptr<CudaBackend>(std::move(backend));
}

void release_cuda_device(int device) {
  cuda::reset_device(device);
}

}  // namespace jewel

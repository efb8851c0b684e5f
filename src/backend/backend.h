// Backend: the one narrow interface between the engine and the arithmetic.
//
// The line is drawn at the step, not at the op. A backend holds the weights, owns the bytes of the KV pages,
// encodes images, and runs one step over a mixed batch (rows of decoding sequences, chunks of prefilling
// ones), sampling included. The engine owns the books: which page belongs to whom, which slot is whose.
// Backends are free to fuse.
//
// One thread (the engine's) calls a backend. submit() may return before the step is done: the engine may
// submit step n+1, with decode rows whose token is still on the device, before it collects step n. Steps
// finish in order. Arguments of submit() must stay valid until the step is collected.
//
// What must hold: the tokens and logits of a sequence do not depend, bitwise, on the other rows of the batch,
// on how its prompt was cut into chunks, or on which pages it was given.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "model/config.h"
#include "model/dtype.h"
#include "model/stages.h"

namespace jewel {

// An image ready for the encoder: resized, cut into patches, still uint8.
struct ImagePatches {
  int grid_h = 0;  // patches; both are multiples of pooling_kernel_size
  int grid_w = 0;
  std::vector<uint8_t>
      pixels;  // [grid_h * grid_w, patch_size * patch_size * 3], raster order, (py, px, channel)
};

inline constexpr int kPageTokens = 16;  // positions per KV page, in both pools
using PageId = int32_t;
inline constexpr PageId kNoPage = -1;

using SlotId = int32_t;     // a live sequence, chosen by the engine, in [0, max_slots)
using FeatureId = int64_t;  // soft tokens of an encoded image, held by the backend

// Order of use: penalties, logit_bias, temperature, top_k, top_p, min_p. temperature 0 is greedy (lowest id
// on a tie).
struct SamplingParams {
  double temperature = 1;
  int top_k = 0;  // 0 = off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;  // over prompt and output
  double presence_penalty = 0;    // over output
  double frequency_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::vector<TokenId> never;  // ids that are never sampled
  std::vector<TokenId>
      not_before;  // ids that are not sampled at positions < not_before_position (min_tokens)
  int not_before_position = 0;
  uint64_t seed = 0;    // random numbers are Philox4x32-10, keyed by (seed, position of the sampled token)
  int n_logprobs = -1;  // -1: none; 0: of the sampled token; k: also the k best
};

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;  // of the softcapped logits, before penalties and temperature
  int rank = 0;       // 1 = most likely
};

// A run of soft tokens inside a chunk: rows [row, row + count) of the feature replace the embeddings of the
// chunk's tokens [offset, offset + count).
struct SoftTokenRun {
  FeatureId feature = 0;
  int row = 0;
  int offset = 0;
  int count = 0;
};

// Which kernels compute a chunk. A backend chooses kernels by phase, never by batch size or chunk length, so
// a position must be computed in the same phase whenever it is computed again (preemption by replay): prompt
// tokens in kPrefill, sampled ones in kDecode. On the CPU both phases are bitwise the same.
enum class Phase : uint8_t { kPrefill, kDecode };

// The part of one sequence in a step.
struct StepChunk {
  SlotId slot = 0;
  Phase phase = Phase::kPrefill;  // kDecode: exactly one token, no soft tokens, no prompt log-probabilities
  int position = 0;               // absolute position of the first token; chunks of a sequence follow each
                                  // other, but one with prompt log-probabilities may repeat the position
                                  // before it (its successor was not in the last chunk), with the same result
  std::span<const TokenId>
      tokens;  // empty: one token, the one this slot sampled last (it may not be read back yet)
  std::span<const SoftTokenRun> soft_tokens;
  // Page tables. Between begin_sequence and end_sequence a table only grows, and an entry only ever changes
  // to kNoPage, so a backend may keep its own copy and look at what is new.
  std::span<const PageId> full_pages;     // entry i holds positions [i * kPageTokens, (i + 1) * kPageTokens)
  std::span<const PageId> sliding_pages;  // the same for sliding layers; kNoPage once behind the window
  bool sample = false;                    // sample the token that follows the chunk's last
  int n_prompt_logprobs = -1;             // >= 0: log-probabilities of every token of the chunk's successors
  std::span<const uint32_t> allowed_tokens;  // bit per id, empty = all; a grammar's mask

  int n_tokens() const { return tokens.empty() ? 1 : static_cast<int>(tokens.size()); }
};

struct SampledToken {
  SlotId slot = 0;
  TokenId id = 0;
  TokenLogprob logprob;           // filled when n_logprobs >= 0
  std::vector<TokenLogprob> top;  // n_logprobs best, descending
};

// Row i describes the chunk's token i + 1 given everything before it (the last row has no token: only its
// top).
struct PromptLogprobs {
  SlotId slot = 0;
  std::vector<TokenLogprob> token;             // [tokens - 1]
  std::vector<std::vector<TokenLogprob>> top;  // [tokens]
};

struct StepResult {
  std::vector<SampledToken> sampled;  // in the order of the chunks that asked
  std::vector<PromptLogprobs> prompt_logprobs;
};

struct KvSizes {
  int n_full_pages = 0;
  int n_sliding_pages = 0;
};

struct BackendInfo {
  std::string name;  // "cpu (avx512-bf16, 2 threads)"
  DType activation_dtype = DType::kBF16;
  DType kv_dtype = DType::kBF16;
  size_t full_page_bytes = 0;     // over all full-attention layers that own K and V
  size_t sliding_page_bytes = 0;  // over all sliding layers that own K and V
  int max_slots = 0;
  int max_step_tokens = 0;
  int max_logprobs = 1 << 20;  // most of SamplingParams::n_logprobs and StepChunk::n_prompt_logprobs
};

// Sees values of a stage as they are computed, in float32: rows x columns. For goldens and diff tools; makes
// a step slow. `layer` is -1 for stages outside layers. With fast prefill, layers that own no K and V see
// sampled rows only. The pass goes on with what the observer leaves in `values` (K and V are seen before they
// are stored in their pages), so a test can feed every stage the reference's input through the real forward
// pass.
using StageObserver =
    std::function<void(Stage stage, int layer, std::span<float> values, int rows, int columns)>;

class Backend {
 public:
  virtual ~Backend() = default;

  virtual const BackendInfo& info() const = 0;

  // Before the first step, and again whenever no sequence is live: what the pages held is lost. Page contents
  // are undefined until written.
  virtual Result<void> allocate_kv(const KvSizes& sizes) = 0;

  // Runs the vision tower and the projection; the result stays in the backend until released. May return
  // before they ran (a backend may batch the images of a step); a failure of the device then shows in
  // collect().
  virtual Result<FeatureId> encode_image(const ImagePatches& patches) = 0;
  virtual void release_feature(FeatureId feature) = 0;

  // A sequence takes a free slot: its sampling state starts here. `prompt` feeds the repetition penalty only.
  // `output`: tokens it sampled in an earlier life (preemption); the last of them is what a chunk without
  // tokens continues from.
  virtual void begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                              std::span<const TokenId> output) = 0;
  virtual void end_sequence(SlotId slot) = 0;

  // The sum of the chunks' tokens must not pass max_step_tokens; a slot appears at most once.
  virtual void submit(std::span<const StepChunk> chunks) = 0;
  // The oldest step not yet collected; blocks until it is done. An Error means the device failed: every
  // sequence of that step is lost, the backend may be used on.
  virtual Result<StepResult> collect() = 0;

  // Copies whole pages between the pools and host memory (preemption, prefix checkpoints). Bytes per page as
  // in info().
  virtual Result<void> read_pages(LayerType pool, std::span<const PageId> pages,
                                  std::span<std::byte> out) = 0;
  virtual Result<void> write_pages(LayerType pool, std::span<const PageId> pages,
                                   std::span<const std::byte> in) = 0;

  // Empty function: off.
  virtual void observe_stages(StageObserver observer) = 0;

  // Deep idle: release() gives up everything that restore() can make again, the device itself included. No
  // sequence, feature or step may be alive then, what the pages held is lost, and until restore() has
  // succeeded only info() may be called. After it the pages are allocated as before. Only a
  // ReleasableBackend can (releasable_backend.h).
  virtual bool can_release() const { return false; }
  virtual void release() {}
  virtual Result<void> restore() { return {}; }
};

}  // namespace jewel

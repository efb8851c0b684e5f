// The text decoder's forward pass over one step: the story of model/stages.h, from token ids to logits.
//
// All rows of a step go through the layers together, in blocks of kRowBlock rows so that working memory stays
// small; results do not depend on the blocks. Rows whose logits nobody asked for stop before the layers that
// own no K and V
// ("fast prefill"), and only the columns of the per-layer inputs that a row will use are computed for it.
//
// With an observer the same rows and layers run, in one block, and every row's per-layer inputs are computed
// in full. Not thread-safe: one forward at a time.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention.h"
#include "backend/cpu/kv_cache.h"
#include "backend/cpu/ops.h"

namespace jewel {

// Whose logits are wanted.
enum class AskedRows : uint8_t { kNone, kLast, kAll };

struct SoftTokens {
  const float* values = nullptr;  // [count, hidden]
  int offset = 0;                 // in the chunk
  int count = 0;
};

struct DecoderChunk {
  int position = 0;
  std::span<const TokenId> tokens;
  std::vector<SoftTokens> soft_tokens;
  std::span<const PageId> full_pages;
  std::span<const PageId> sliding_pages;
  AskedRows asked = AskedRows::kNone;

  int n_asked() const {
    return asked == AskedRows::kNone ? 0 : asked == AskedRows::kLast ? 1 : static_cast<int>(tokens.size());
  }
};

class Decoder {
 public:
  Decoder(const ModelConfig& config, const ModelWeights& weights, const Compute& compute, KvCache& cache);

  // Receives the softcapped logits of the asked rows, [rows, vocab], in the order of chunks and tokens, some
  // rows at a time; `first` counts asked rows. The values may be overwritten.
  using LogitsSink = std::function<void(int64_t first, const Matrix& logits)>;

  void forward(std::span<const DecoderChunk> chunks, const LogitsSink& sink);
  void observe_stages(StageObserver observer) { observer_ = std::move(observer); }

 private:
  // Rows of the step that are still alive.
  struct Rows {
    std::vector<int> positions;
    std::vector<QuerySpan> full;  // the same rows as spans of positions, with the page table of each pool
    std::vector<QuerySpan> sliding;
    RopeTable rope_full;
    RopeTable rope_sliding;
  };
  void set_rows(Rows& rows, std::span<const DecoderChunk> chunks, bool asked_only);
  std::vector<int64_t> asked_rows(std::span<const DecoderChunk> chunks) const;

  void embed(std::span<const DecoderChunk> chunks);
  void per_layer_inputs(std::span<const int64_t> asked);
  void project_per_layer(const Matrix& embeddings, std::span<const TokenId> ids, int first_layer,
                         const Matrix& out);
  void keep_asked_rows(std::span<const DecoderChunk> chunks, std::span<const int64_t> asked);
  void run_layer(int layer, int64_t begin, int64_t n);
  void write_kv(int layer, int64_t begin, int64_t n);
  void attend(int layer, int64_t begin, int64_t n, const Matrix& out);
  void add_mlp(int layer, const Matrix& h);
  void add_per_layer_input(int layer, int64_t begin, const Matrix& h);
  void head(const LogitsSink& sink);

  int64_t row_block(int64_t rows) const;
  const RopeTable& rope(LayerType type) const {
    return type == LayerType::kFull ? rows_.rope_full : rows_.rope_sliding;
  }
  void observe(Stage stage, int layer, const Matrix& values) const {
    if (observer_) {
      observer_(stage, layer, values.values(), static_cast<int>(values.rows),
                static_cast<int>(values.columns));
    }
  }

  const ModelConfig& config_;
  const TextConfig& text_;
  const ModelWeights& weights_;
  const Compute& compute_;
  KvCache& cache_;
  StageObserver observer_;
  std::vector<float> frequencies_full_;
  std::vector<float> frequencies_sliding_;

  Rows rows_;
  Matrix h_;  // [rows, hidden], the residual stream
  std::vector<TokenId> per_layer_ids_;
  Matrix per_layer_;         // [rows, (layers that own K and V) * P] in layers before first_shared_layer()
  Matrix per_layer_shared_;  // [asked rows, (layers that do not) * P] after
  ProductInput input_;
  Buffer<float> h_buffer_, per_layer_buffer_, per_layer_shared_buffer_, asked_embeddings_buffer_;
  Buffer<float> a_buffer_, q_buffer_, k_buffer_, v_buffer_, attention_buffer_, gate_buffer_, up_buffer_,
      logits_buffer_;
};

}  // namespace jewel

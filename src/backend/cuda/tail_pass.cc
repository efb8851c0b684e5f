#include <algorithm>

#include "backend/cuda/decode_step.h"
#include "backend/cuda/passes.h"
#include "backend/cuda/per_layer_table.h"

namespace jewel::cuda {
namespace {

TiledWeight tiled(const DeviceLinear& w, bool portable) {
  const bool as_f16 = w.fp8 && w.f16_scale > 0 && !portable;
  return {.tiles = w.tiles,
          .row_scale = w.row_scale,
          .n = w.n,
          .k = w.k,
          .format = !w.fp8   ? TileFormat::kBF16
                    : as_f16 ? TileFormat::kF8E4M3F16
                             : TileFormat::kF8E4M3,
          .x_scale = as_f16 ? w.f16_scale : 1};
}

class Tail final : public TailPass {
 public:
  Tail(const PassContext& context, int max_rows)
      : c_(context),
        text_(context.config.text),
        max_rows_(std::min(max_rows, kMaxDecodeRows)),
        design_(context.portable ? AttentionDesign::kPortable : AttentionDesign::kSm90) {}

  Result<void> allocate() {
    const AttentionShape widest = widest_shape();
    const size_t workspace = decode_attention_workspace(widest, max_rows_, design_);
    Carver count(nullptr);
    carve(count, workspace);
    JEWEL_ASSIGN(memory_, DeviceBuffer::make(count.used(), "activations of decoding rows"));
    Carver take(memory_.data());
    carve(take, workspace);
    buffers_.attention_workspace_rows = max_rows_;
    JEWEL_CUDA_TRY(cudaMemset(buffers_.attention_workspace, 0, workspace), "clearing attention's workspace");
    return {};
  }

  void describe(BeginRows& begin) const override {
    JEWEL_CHECK(begin.n > 0 && begin.n <= max_rows_, "{} rows of {}", begin.n, max_rows_);
    begin.table = c_.weights.embed_tokens;
    begin.scale = embedding_scale(text_);
    begin.hidden = text_.hidden_size;
    begin.h = buffers_.h[0];
    begin.per_layer_table = c_.weights.per_layer_table;
    begin.per_layer_scale = c_.weights.per_layer_scale;
    begin.per_layer_columns = per_layer_columns(text_);
    begin.per_layer_inputs = ple_;
  }

  Result<void> enqueue(const TailRows& rows, cudaStream_t stream) override {
    JEWEL_CHECK(rows.n > 0 && rows.n <= max_rows_, "{} rows of {}", rows.n, max_rows_);
    if (layers_.empty()) describe_layers();  // once the pools have their memory
    const int hidden = text_.hidden_size, p = text_.hidden_size_per_layer_input;
    const int first = rows.residuals ? text_.first_shared_layer() : 0;
    const int n_layers = text_.n_layers - first;
    float* h = buffers_.h[0];
    if (!rows.residuals && c_.stages.on()) {
      JEWEL_TRY(c_.stages.show(Stage::kEmbed, -1, h, StageForm::kF32, rows.n, hidden, stream));
    }
    if (rows.residuals && p > 0 && n_layers > 0) {
      if (rows.soft_embeddings) {
        DecodeProduct product{.w = projection(first),
                              .rows = rows.n,
                              .x_scratch = buffers_.x,
                              .out = ple_,
                              .portable = c_.portable};
        product.norm.h = rows.soft_embeddings;
        JEWEL_CUDA_TRY(launch_decode_product(product, stream), "the per-layer projection");
      }
      JEWEL_CUDA_TRY(enqueue_per_layer_inputs({.context = c_,
                                               .c = ple_,
                                               .ids = rows.ids,
                                               .n = rows.n,
                                               .first_layer = first,
                                               .n_layers = n_layers},
                                              stream),
                     "per-layer inputs");
    }
    if (rows.residuals) {
      JEWEL_CUDA_TRY(cudaMemcpyAsync(h, rows.residuals, sizeof(float) * static_cast<size_t>(rows.n * hidden),
                                     cudaMemcpyDeviceToDevice, stream),
                     "residual streams");
    }
    DecodeStep step{.layers = std::span(layers_).subspan(static_cast<size_t>(first)),
                    .hidden = hidden,
                    .eps = text_.rms_norm_eps,
                    .rows = {.positions = rows.positions, .slots = rows.slots, .n = rows.n},
                    .max_context = rows.max_context,
                    .attention_design = design_,
                    .per_layer_inputs = ple_,
                    .per_layer_stride = int64_t{n_layers} * p,
                    .head = tiled(c_.weights.lm_head, c_.portable),
                    .final_norm = c_.weights.norm,
                    .softcap = text_.final_logit_softcapping,
                    .logits = rows.logits,
                    .tile_max = rows.tile_max,
                    .buffers = buffers_,
                    .portable = c_.portable};
    if (c_.stages.on()) return enqueue_shown(step, first, stream);
    JEWEL_CUDA_TRY(launch_decode_step(step, stream), "decoding");
    return {};
  }

 private:
  // One layer after another, then the head.
  Result<void> enqueue_shown(const DecodeStep& step, int first, cudaStream_t stream) const {
    const int hidden = text_.hidden_size, rows = step.rows.n;
    float* h = buffers_.h[0];
    for (size_t i = 0; i < step.layers.size(); ++i) {
      DecodeStep one = step;
      one.layers = step.layers.subspan(i, 1);
      one.head.n = 0;
      if (one.per_layer_inputs) one.per_layer_inputs += static_cast<int64_t>(i) * step.layers[i].ple_gate.n;
      float* end = nullptr;
      JEWEL_CUDA_TRY(launch_decode_step(one, stream, &end), "decoding");
      if (end != h) {
        JEWEL_CUDA_TRY(cudaMemcpyAsync(h, end, sizeof(float) * static_cast<size_t>(rows * hidden),
                                       cudaMemcpyDeviceToDevice, stream),
                       "decoding");
      }
      JEWEL_TRY(c_.stages.show(Stage::kLayer, first + static_cast<int>(i), h, StageForm::kF32, rows, hidden,
                               stream));
    }
    DecodeStep head = step;
    head.layers = {};
    JEWEL_CUDA_TRY(launch_decode_step(head, stream), "the head");
    return c_.stages.show(Stage::kLogits, -1, step.logits, StageForm::kF32, rows, step.head.n, stream);
  }

  // The per-layer projection of layers from `first` on.
  TiledWeight projection(int first) const {
    const int p = text_.hidden_size_per_layer_input;
    return tiled(c_.weights.per_layer_model_projection.rows(first * p, (text_.n_layers - first) * p),
                 c_.portable);
  }

  AttentionShape widest_shape() const {
    AttentionShape widest;
    for (int i = 0; i < text_.n_layers; ++i) {
      const AttentionShape shape = c_.pools.shape(i);
      if (shape.head_dim > widest.head_dim) widest = shape;
    }
    widest.window = 0;
    return widest;
  }

  void carve(Carver& carver, size_t workspace) {
    const auto rows = static_cast<size_t>(max_rows_), hidden = static_cast<size_t>(text_.hidden_size);
    size_t qkv = 0, attended = 0, wide = hidden;
    for (const DeviceLayer& layer : c_.weights.layers) {
      qkv = std::max(qkv, static_cast<size_t>(layer.qkv.n));
      attended = std::max(attended, static_cast<size_t>(layer.o.k));
      wide = std::max(wide, static_cast<size_t>(layer.down.k));
    }
    const auto p = static_cast<size_t>(text_.hidden_size_per_layer_input);
    buffers_.h[0] = carver.take<float>(rows * hidden);
    buffers_.h[1] = carver.take<float>(rows * hidden);
    buffers_.y = carver.take<float>(4 * rows * hidden);
    buffers_.qkv = carver.take<float>(rows * qkv);
    const auto padded = static_cast<size_t>(wide_rows(max_rows_));  // what comes in wide order
    buffers_.attended = carver.take<uint16_t>(padded * attended);
    buffers_.x = carver.take<uint16_t>(padded * hidden);
    buffers_.wide = carver.take<uint16_t>(padded * wide);
    buffers_.ple_mid = carver.take<uint16_t>(rows * p);
    buffers_.attention_workspace = carver.take<std::byte>(workspace);
    ple_ = carver.take<float>(rows * p * static_cast<size_t>(text_.n_layers));
  }

  void describe_layers() {
    for (int i = 0; i < text_.n_layers; ++i) {
      const DeviceLayer& w = c_.weights.layers[static_cast<size_t>(i)];
      const AttentionShape shape = c_.pools.shape(i);
      const bool full = shape.window == 0;
      layers_.push_back({.qkv = tiled(w.qkv, c_.portable),
                         .o = tiled(w.o, c_.portable),
                         .gate_up = tiled(w.gate_up, c_.portable),
                         .down = tiled(w.down, c_.portable),
                         .ple_gate = tiled(w.ple_gate, c_.portable),
                         .ple_up = tiled(w.ple_up, c_.portable),
                         .input_norm = w.input_norm,
                         .post_attention_norm = w.post_attention_norm,
                         .pre_feedforward_norm = w.pre_feedforward_norm,
                         .post_feedforward_norm = w.post_feedforward_norm,
                         .post_ple_norm = w.post_ple_norm,
                         .layer_scalar = w.layer_scalar,
                         .attention = shape,
                         .kv = c_.pools.kv(i),
                         .rope = {.frequencies = full ? c_.weights.rope_full : c_.weights.rope_sliding,
                                  .n_rotating = full ? c_.weights.n_rope_full : c_.weights.n_rope_sliding},
                         .head_norms = {.q = w.q_norm, .k = w.k_norm, .eps = text_.rms_norm_eps},
                         .owns_kv = text_.layers[static_cast<size_t>(i)].owns_kv});
    }
  }

  const PassContext c_;
  const TextConfig& text_;
  const int max_rows_;
  const AttentionDesign design_;
  DeviceBuffer memory_;
  DecodeBuffers buffers_;
  float* ple_ = nullptr;  // [rows, layers * P]
  std::vector<DecodeLayer> layers_;
};

}  // namespace

Result<std::unique_ptr<TailPass>> TailPass::make(const PassContext& context, int max_rows) {
  auto pass = std::make_unique<Tail>(context, max_rows);
  JEWEL_TRY(pass->allocate());
  return std::unique_ptr<TailPass>(std::move(pass));
}

}  // namespace jewel::cuda

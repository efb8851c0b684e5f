#include <algorithm>

#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/passes.h"
#include "backend/cuda/per_layer_table.h"
#include "backend/cuda/prefill_product.h"
#include "backend/cuda/prefill_rows.h"
#include "backend/cuda/product_weight.h"
#include "backend/cuda/qkv_post.h"
#include "backend/cuda/quantize_rows.h"
#include "backend/cuda/step_ops.h"

namespace jewel::cuda {
namespace {

// A product's input, in the form that its weights take.
struct Input {
  void* data = nullptr;
  float* scale = nullptr;  // not null: FP8
};

class Prompts final : public PromptPass {
 public:
  Prompts(const PassContext& context, int max_rows, int max_asked)
      : c_(context),
        text_(context.config.text),
        max_rows_(max_rows),
        max_asked_(max_asked),
        n_layers_(text_.first_shared_layer()) {}

  Result<void> allocate() {
    Carver count(nullptr);
    carve(count);
    JEWEL_ASSIGN(memory_, DeviceBuffer::make(count.used(), "activations of prompts"));
    Carver take(memory_.data());
    carve(take);
    return {};
  }

  const float* asked_embeddings() const override { return asked_embeddings_; }
  const float* asked_residuals() const override { return asked_residuals_; }

  Result<void> enqueue(const PromptRows& rows, cudaStream_t stream) override {
    JEWEL_CHECK(rows.n <= max_rows_ && rows.n_asked <= max_asked_, "{} rows, {} asked", rows.n, rows.n_asked);
    rows_ = rows;
    stream_ = stream;
    error_ = cudaSuccess;
    shown_ = {};
    const int hidden = text_.hidden_size, p = text_.hidden_size_per_layer_input;
    keep(launch_embed_rows({.ids = rows.ids,
                            .soft_rows = rows.soft_rows,
                            .table = c_.weights.embed_tokens,
                            .scale = embedding_scale(text_),
                            .rows = rows.n,
                            .hidden = hidden,
                            .h = h_,
                            .input = {.form = InputForm::kBF16ProductOrder, .data = x_, .stride = hidden}},
                           stream));
    show(Stage::kEmbed, -1, h_, StageForm::kF32, hidden);
    if (rows.soft_rows) keep(enqueue_gather(h_, hidden, rows.asked, rows.n_asked, asked_embeddings_, stream));
    if (p > 0) {
      if (rows.soft_rows) {
        if (c_.stages.on()) residual(nullptr, nullptr, 1, &c_.weights.per_layer_model_projection, nullptr);
        product(c_.weights.per_layer_model_projection.rows(0, n_layers_ * p), {.data = x_}, ple_);
      }
      keep(enqueue_per_layer_inputs(
          {.context = c_, .c = ple_, .ids = rows.ids, .n = rows.n, .n_layers = n_layers_}, stream));
    }
    for (int layer = 0; layer < n_layers_; ++layer) run_layer(layer);
    keep(enqueue_gather(h_, hidden, rows.asked, rows.n_asked, asked_residuals_, stream));
    JEWEL_CUDA_TRY(error_, "a prompt's layers");
    return std::move(shown_);
  }

 private:
  void show(Stage stage, int layer, void* values, StageForm form, int columns) {
    if (!c_.stages.on() || !shown_.ok() || error_ != cudaSuccess) return;
    shown_ = c_.stages.show(stage, layer, values, form, rows_.n, columns, stream_);
  }

  void carve(Carver& carver) {
    const auto rows = static_cast<size_t>(max_rows_), asked = static_cast<size_t>(max_asked_);
    const auto hidden = static_cast<size_t>(text_.hidden_size);
    size_t qkv = 0, attended = 0, wide = 0;
    for (int i = 0; i < n_layers_; ++i) {
      const DeviceLayer& layer = c_.weights.layers[static_cast<size_t>(i)];
      qkv = std::max(qkv, static_cast<size_t>(layer.qkv.n));
      attended = std::max(attended, static_cast<size_t>(layer.o.k));
      wide = std::max(wide, static_cast<size_t>(layer.down.k));
    }
    h_ = carver.take<float>(rows * hidden);
    y_ = carver.take<float>(rows * hidden);
    x_ = carver.take<__nv_bfloat16>(rows * hidden);
    qkv_ = carver.take<float>(rows * qkv);
    q_ = carver.take<__nv_bfloat16>(rows * attended);
    attended_ = carver.take<__nv_bfloat16>(rows * attended);
    wide_ = carver.take<__nv_bfloat16>(rows * wide);
    const auto p = static_cast<size_t>(text_.hidden_size_per_layer_input);
    ple_ = carver.take<float>(rows * p * static_cast<size_t>(n_layers_));
    ple_mid_ = carver.take<__nv_bfloat16>(rows * p);
    if (c_.prefill_fp8) {
      x8_ = carver.take<std::byte>(rows * std::max({hidden, attended, wide}));
      x8_scale_ = carver.take<float>(rows);
    }
    asked_embeddings_ = carver.take<float>(asked * hidden);
    asked_residuals_ = carver.take<float>(asked * hidden);
  }

  void keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  bool takes_fp8(const DeviceLinear& w) const { return c_.prefill_fp8 && w.fp8; }

  void product(const DeviceLinear& w, const Input& x, float* out) { run(w, x, ProductOut::kF32, out, w.n); }

  void run(const DeviceLinear& w, const Input& x, ProductOut form, void* out, int out_stride,
           const float* factor = nullptr, int64_t factor_stride = 0) {
    PrefillProduct product{.weight = product_weight(w),
                           .x = x.data,
                           .x_scale = x.scale,
                           .x_stride = w.k,
                           .rows = rows_.n,
                           .form = form,
                           .out = out,
                           .out_stride = out_stride,
                           .factor = factor,
                           .factor_stride = factor_stride};
    keep(launch_prefill_product(product, c_.portable ? ProductDesign::kPortable : ProductDesign::kSm90,
                                stream_));
  }

  // h += RMS(x; post), h *= scalar, then the input that `next` takes: RMS(h; norm), or h itself.
  Input residual(const float* x, const float* post, float scalar, const DeviceLinear* next,
                 const float* norm) {
    ResidualNorm r{.x = x,
                   .x_stride = text_.hidden_size,
                   .post_weight = post,
                   .h = h_,
                   .scalar = scalar,
                   .next_weight = norm,
                   .next_is_norm = norm != nullptr,
                   .rows = rows_.n,
                   .columns = text_.hidden_size,
                   .eps = text_.rms_norm_eps};
    Input input;
    if (next) {
      const bool fp8 = takes_fp8(*next);
      input = fp8 ? Input{x8_, x8_scale_} : Input{x_, nullptr};
      r.input = {.form = fp8 ? InputForm::kF8 : InputForm::kBF16ProductOrder,
                 .data = input.data,
                 .stride = text_.hidden_size,
                 .scale = input.scale};
    }
    keep(launch_residual_norm(r, stream_));
    return input;
  }

  // The same, with the residual stream shown before the next input is made of it.
  Input residual(Stage stage, int layer, const float* x, const float* post, float scalar,
                 const DeviceLinear* next, const float* norm) {
    if (!c_.stages.on()) return residual(x, post, scalar, next, norm);
    residual(x, post, scalar, nullptr, nullptr);
    show(stage, layer, h_, StageForm::kF32, text_.hidden_size);
    return next ? residual(nullptr, nullptr, 1, next, norm) : Input{};
  }

  // FP8 rows of what attention or the gated product left in BF16.
  Input quantized(const void* x, int columns, bool product_order) {
    keep(launch_quantize_rows({.x = x,
                               .product_order = product_order,
                               .x_stride = columns,
                               .rows = rows_.n,
                               .columns = columns,
                               .out = x8_,
                               .scale = x8_scale_},
                              stream_));
    return {x8_, x8_scale_};
  }

  void run_layer(int index) {
    const DeviceLayer& w = c_.weights.layers[static_cast<size_t>(index)];
    const Input a = index == 0 ? residual(nullptr, nullptr, 1, &w.qkv, w.input_norm) : next_;
    if (!a.scale) show(Stage::kAttnNorm, index, a.data, StageForm::kBF16ProductOrder, text_.hidden_size);
    product(w.qkv, a, qkv_);
    const Input attended = attend(index, w);
    product(w.o, attended, y_);
    const Input m = residual(Stage::kAttnResidual, index, y_, w.post_attention_norm, 1, &w.gate_up,
                             w.pre_feedforward_norm);
    const int width = w.gate_up.n / 2;
    run(w.gate_up, m, ProductOut::kGateUp, wide_, width);
    product(w.down, takes_fp8(w.down) ? quantized(wide_, width, true) : Input{wide_, nullptr}, y_);

    const bool last = index + 1 == n_layers_;
    const DeviceLayer* after = last ? nullptr : &c_.weights.layers[static_cast<size_t>(index) + 1];
    const DeviceLinear* next = after ? &after->qkv : nullptr;
    const float* next_norm = after ? after->input_norm : nullptr;
    const int p = text_.hidden_size_per_layer_input;
    if (p == 0) {
      next_ = residual(Stage::kLayer, index, y_, w.post_feedforward_norm, w.layer_scalar, next, next_norm);
      return;
    }
    const Input g =
        residual(Stage::kMlpResidual, index, y_, w.post_feedforward_norm, 1, &w.ple_gate, nullptr);
    run(w.ple_gate, g, ProductOut::kGeluTimes, ple_mid_, p, ple_ + index * p, int64_t{n_layers_} * p);
    product(w.ple_up, takes_fp8(w.ple_up) ? quantized(ple_mid_, p, true) : Input{ple_mid_, nullptr}, y_);
    next_ = residual(Stage::kLayer, index, y_, w.post_ple_norm, w.layer_scalar, next, next_norm);
  }

  Input attend(int index, const DeviceLayer& w) {
    const AttentionShape shape = c_.pools.shape(index);
    const KvLayer kv = c_.pools.kv(index);
    const AttentionRows rows{.positions = rows_.positions, .slots = rows_.slots, .n = rows_.n};
    const bool full = shape.window == 0;
    keep(launch_qkv_post({.shape = shape,
                          .kv = kv,
                          .rope = {.frequencies = full ? c_.weights.rope_full : c_.weights.rope_sliding,
                                   .n_rotating = full ? c_.weights.n_rope_full : c_.weights.n_rope_sliding},
                          .norms = {.q = w.q_norm, .k = w.k_norm, .eps = text_.rms_norm_eps},
                          .rows = rows,
                          .qkv = qkv_,
                          .qkv_stride = w.qkv.n,
                          .owns_kv = true,
                          .q = q_},
                         stream_));
    const int width = shape.n_heads * shape.head_dim;
    show(Stage::kQ, index, q_, StageForm::kBF16, width);
    keep(launch_prefill_attention({.shape = shape,
                                   .kv = kv,
                                   .rows = rows,
                                   .chunk_rows = rows_.chunk_rows,
                                   .n_chunks = rows_.n_chunks,
                                   .q = q_,
                                   .out = attended_},
                                  c_.portable ? AttentionDesign::kPortable : AttentionDesign::kSm90,
                                  stream_));
    show(Stage::kAttention, index, attended_, StageForm::kBF16, width);
    if (takes_fp8(w.o)) return quantized(attended_, width, false);
    keep(launch_to_product_order(attended_, rows_.n, width, stream_));
    return {attended_, nullptr};
  }

  const PassContext c_;
  const TextConfig& text_;
  const int max_rows_;
  const int max_asked_;
  const int n_layers_;  // that own K and V
  DeviceBuffer memory_;
  float *h_ = nullptr, *y_ = nullptr, *qkv_ = nullptr, *ple_ = nullptr;
  float *asked_embeddings_ = nullptr, *asked_residuals_ = nullptr, *x8_scale_ = nullptr;
  __nv_bfloat16 *x_ = nullptr, *q_ = nullptr, *attended_ = nullptr, *wide_ = nullptr, *ple_mid_ = nullptr;
  std::byte* x8_ = nullptr;
  PromptRows rows_;
  Input next_;  // of the next layer's qkv
  cudaStream_t stream_ = nullptr;
  cudaError_t error_ = cudaSuccess;
  Result<void> shown_;
};

}  // namespace

Result<std::unique_ptr<PromptPass>> PromptPass::make(const PassContext& context, int max_rows,
                                                     int max_asked) {
  auto pass = std::make_unique<Prompts>(context, max_rows, max_asked);
  JEWEL_TRY(pass->allocate());
  return std::unique_ptr<PromptPass>(std::move(pass));
}

cudaError_t enqueue_per_layer_inputs(const PerLayerCall& call, cudaStream_t stream) {
  const TextConfig& text = call.context.config.text;
  const DeviceWeights& weights = call.context.weights;
  return launch_per_layer_inputs({.norm = per_layer_norm(text, weights),
                                  .c = call.c,
                                  .ids = call.ids,
                                  .table = weights.per_layer_table,
                                  .table_scale = weights.per_layer_scale,
                                  .pad = weights.pad_per_layer,
                                  .table_columns = per_layer_columns(text),
                                  .rows = call.n,
                                  .first_layer = call.first_layer,
                                  .n_layers = call.n_layers},
                                 stream);
}

cudaError_t enqueue_gather(const float* in, int columns, const int32_t* rows, int n, float* out,
                           cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  return launch_gather_rows(
      {.in = in, .in_stride = columns, .rows = rows, .n = n, .columns = columns, .out = out}, stream);
}

}  // namespace jewel::cuda

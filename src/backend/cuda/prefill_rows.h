// Everything of a prompt chunk that is not a product and not attention: embeddings, norms with residuals, the
// per-layer inputs. One block (or warp) a row; FP32 arithmetic, one rounding where a product's input is
// stored; a row's result does not depend on the others.
//
// Widths are multiples of 64, at most 8192. Any thread may call; launches are asynchronous and can be
// captured.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

// Where and how a product's input is stored.
enum class InputForm : uint8_t {
  kNone,
  kBF16ProductOrder,  // prefill_product.h
  kF8,                // E4M3 in natural order, with a scale a row: amax / 448
  kF32,               // natural order: for observers and for the head
};

struct ProductInputOut {
  InputForm form = InputForm::kNone;
  void* data = nullptr;    // [rows, stride]
  int64_t stride = 0;      // elements
  float* scale = nullptr;  // [rows], kF8
  float min = -3.4e38f;    // the bounds of a clipped linear's input, before rounding
  float max = 3.4e38f;
};

// h[row] = E[ids[row]] * scale, or the soft token soft_rows[row] points to (unscaled) where it is not null.
struct EmbedRows {
  const int32_t* ids = nullptr;             // [rows]; not read where there is a soft token
  const float* const* soft_rows = nullptr;  // [rows] pointers to FP32 [hidden]; null: no soft tokens
  const __nv_bfloat16* table = nullptr;     // [vocab, hidden]
  float scale = 1;
  int rows = 0;
  int hidden = 0;
  float* h = nullptr;  // [rows, hidden]
  // Also the embeddings as a product's input, for the per-layer projection.
  ProductInputOut input;
};
cudaError_t launch_embed_rows(const EmbedRows& embed, cudaStream_t stream);

// h += RMS(x; post_weight), then h *= scalar, then input = RMS(h; next_weight), or h itself where next_weight
// is null. x null: h is only read (the first norm of a layer). A null post_weight is refused.
struct ResidualNorm {
  const void* x = nullptr;  // FP32 or BF16 [rows, x_stride]
  bool x_is_bf16 = false;
  int64_t x_stride = 0;
  const float* post_weight = nullptr;  // [columns]
  float* h = nullptr;                  // [rows, columns]
  float scalar = 1;                    // layer_scalar, at a layer's end
  const float* next_weight = nullptr;  // [columns]
  bool next_is_norm =
      true;  // false: input = h, not normalized. next_weight null and true: norm without weight
  ProductInputOut input;
  int rows = 0;
  int columns = 0;
  float eps = 0;
};
cudaError_t launch_residual_norm(const ResidualNorm& norm, cudaStream_t stream);

// Per-layer inputs are (RMS(c * projection_scale; weight) + token * token_scale) * 2^-1/2 over the `width`
// columns of a layer, where c = per_layer_model_projection of a row's embedding and `token` is the row of
// embed_tokens_per_layer.
struct PerLayerNorm {
  const float* weight = nullptr;  // [width]
  float projection_scale = 1;     // hidden^-1/2
  float token_scale = 16;         // bf16(sqrt(width))
  int width = 0;                  // a multiple of 64, at most 512
  float eps = 0;
};

// table[row] = the per-layer inputs of c[row] and table[row], in place. The table may lie in device memory or
// in page-locked host memory.
struct PerLayerTable {
  PerLayerNorm norm;
  const float* c = nullptr;  // [rows, n_layers * width]
  void* table = nullptr;     // [rows, n_layers * width]: BF16 before, FP16 after
  float scale = 1;           // a power of two: what is stored is divided by it
  int rows = 0;
  int n_layers = 0;
};
cudaError_t launch_per_layer_table(const PerLayerTable& table, cudaStream_t stream);

// c[row] = table[ids[row]] * table_scale, of layers from first_layer on; where ids[row] is negative, a soft
// token, the per-layer inputs of c[row] and the row of pad.
struct PerLayerInputs {
  PerLayerNorm norm;
  float* c = nullptr;  // [rows, n_layers * width]
  // [rows]. Read before the wait: complete before the kernel ahead of this one starts.
  const int32_t* ids = nullptr;
  const __half* table = nullptr;  // [vocab, table_columns] of launch_per_layer_table()
  float table_scale = 1;
  const __nv_bfloat16* pad = nullptr;  // [table_columns], of embed_tokens_per_layer
  int64_t table_columns = 0;           // layers of the model * width
  int rows = 0;
  int first_layer = 0;
  int n_layers = 0;
};
cudaError_t launch_per_layer_inputs(const PerLayerInputs& inputs, cudaStream_t stream);

// out[i] = in[rows[i]], FP32 rows of `columns`.
struct GatherRows {
  const float* in = nullptr;
  int64_t in_stride = 0;
  const int32_t* rows = nullptr;  // [n]
  int n = 0;
  int columns = 0;
  float* out = nullptr;  // [n, columns]
};
cudaError_t launch_gather_rows(const GatherRows& gather, cudaStream_t stream);

}  // namespace jewel::cuda

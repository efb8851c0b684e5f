// The layers of a decode step, enqueued on a stream: rows' residual streams in, logits out. What stands
// before (embedding, per-layer inputs) and after (sampling) is the backend's; attention's launch parameters
// come filled from it too. Nothing is allocated and nothing owned: a call can be captured into a graph.
//
// Kernels of a layer: [residual + norm] [qkv] [attention] [o] [residual + norm] [gate-up + gelu] [down]
// [residual] [PLE gate + gelu] [PLE up]; the first norm of the next layer (or the head's) takes the last
// residual update. Where decode_ple.h takes the shapes, [PLE gate + gelu] [PLE up] [residual + norm] are one
// kernel. On sm_90 most start as soon as the one ahead has started everywhere, and fetch weights until their
// input is complete. At least one row has a position >= 0: attention over padding alone would end without
// having waited.
#pragma once

#include <span>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/decode_product.h"

namespace jewel::cuda {

struct DecodeLayer {
  TiledWeight qkv;      // q, and below it k and v where the layer owns them
  TiledWeight o;        // o_proj
  TiledWeight gate_up;  // 8 rows of gate_proj, 8 of up_proj, in turn
  TiledWeight down;
  TiledWeight ple_gate;  // n = 0: a model without per-layer inputs
  TiledWeight ple_up;
  const float* input_norm = nullptr;  // [hidden], all norms
  const float* post_attention_norm = nullptr;
  const float* pre_feedforward_norm = nullptr;
  const float* post_feedforward_norm = nullptr;
  const float* post_ple_norm = nullptr;
  float layer_scalar = 1;

  AttentionShape attention;
  KvLayer kv;  // of the layer whose K and V are read
  Rope rope;
  HeadNorms head_norms;
  bool owns_kv = false;
};

// Device buffers of a step for up to `rows` rows; sizes in elements by decode_buffer_sizes().
struct DecodeBuffers {
  float* h[2] = {};                     // [rows, hidden]; the step's input is h[0]
  float* y = nullptr;                   // [4][rows, hidden]
  float* qkv = nullptr;                 // [rows, widest qkv]
  void* attended = nullptr;             // 16 bits [wide_rows(rows), widest n_heads * head_dim]
  void* x = nullptr;                    // 16 bits [wide_rows(rows), hidden]
  void* wide = nullptr;                 // 16 bits [wide_rows(rows), widest intermediate, at least hidden]
  void* ple_mid = nullptr;              // BF16 [rows, P]
  void* attention_workspace = nullptr;  // decode_attention_workspace() of attention_workspace_rows rows
  int attention_workspace_rows = 0;
};

struct DecodeStep {
  std::span<const DecodeLayer> layers;  // host memory; may be a part of the model's layers
  int hidden = 0;
  float eps = 1e-6f;
  AttentionRows rows;
  int max_context = 0;
  AttentionDesign attention_design = AttentionDesign::kSm90;
  const float* per_layer_inputs =
      nullptr;  // [rows, stride]: layer i of `layers` at columns [i * P, (i + 1) * P)
  int64_t per_layer_stride = 0;
  TiledWeight head;  // n = 0: no head
  const float* final_norm = nullptr;
  float softcap = 0;
  float* logits = nullptr;    // [rows, head.n]
  float* tile_max = nullptr;  // DecodeProduct::tile_max of the head
  DecodeBuffers buffers;
  bool portable = false;
};

// Enqueues the layers, then the head. Without a head the residual stream ends in *h_end (one of buffers.h).
cudaError_t launch_decode_step(const DecodeStep& step, cudaStream_t stream, float** h_end = nullptr);

}  // namespace jewel::cuda

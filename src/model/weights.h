// The weights of one Gemma 4, by the checkpoint's own words.
//
// Large tensors are borrowed views into the mapped files (checkpoint/checkpoint.h owns the mapping and must
// outlive them). Small ones, norms and scalars, are copied and widened to float32. After loading nobody looks
// up names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "model/dtype.h"

namespace jewel {

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;  // aligned to the element, row-major
  size_t bytes = 0;

  bool present() const { return data != nullptr; }
};

// y = W x, W row-major [out, in] in BF16, F32 or F8_E4M3.
struct LinearWeight {
  TensorView weight;
  std::vector<float>
      scale;  // empty: none. [1]: one for the tensor. [out]: one per row. W = float(weight) * scale

  bool present() const { return weight.present(); }
  int64_t out() const { return weight.shape[0]; }
  int64_t in() const { return weight.shape[1]; }
};

// y = clamp(W clamp(x, input_min, input_max), output_min, output_max)
struct ClippedLinearWeight {
  LinearWeight linear;
  float input_min = -std::numeric_limits<float>::infinity();
  float input_max = std::numeric_limits<float>::infinity();
  float output_min = -std::numeric_limits<float>::infinity();
  float output_max = std::numeric_limits<float>::infinity();
};

using NormWeight = std::vector<float>;

struct DecoderLayerWeights {
  NormWeight input_layernorm;             // [hidden]
  NormWeight post_attention_layernorm;    // [hidden]
  NormWeight pre_feedforward_layernorm;   // [hidden]
  NormWeight post_feedforward_layernorm;  // [hidden]
  NormWeight post_per_layer_input_norm;   // [hidden]; empty without per-layer embeddings
  float layer_scalar = 1;
  LinearWeight q_proj;  // [heads * head_dim, hidden]
  LinearWeight k_proj;  // [kv_heads * head_dim, hidden]; absent where the layer owns no K and V
  LinearWeight v_proj;
  LinearWeight o_proj;  // [hidden, heads * head_dim]
  NormWeight q_norm;    // [head_dim]
  NormWeight k_norm;
  float k_scale = 1;  // of an FP8 cache: stored = value / scale
  float v_scale = 1;
  LinearWeight gate_proj;  // [intermediate, hidden]
  LinearWeight up_proj;
  LinearWeight down_proj;             // [hidden, intermediate]
  LinearWeight per_layer_input_gate;  // [P, hidden]
  LinearWeight per_layer_projection;  // [hidden, P]
};

struct VisionLayerWeights {
  NormWeight input_layernorm;
  NormWeight post_attention_layernorm;
  NormWeight pre_feedforward_layernorm;
  NormWeight post_feedforward_layernorm;
  ClippedLinearWeight q_proj;  // [hidden, hidden]
  ClippedLinearWeight k_proj;
  ClippedLinearWeight v_proj;
  ClippedLinearWeight o_proj;
  NormWeight q_norm;  // [head_dim]
  NormWeight k_norm;
  ClippedLinearWeight gate_proj;  // [intermediate, hidden]
  ClippedLinearWeight up_proj;
  ClippedLinearWeight down_proj;
};

struct VisionWeights {
  LinearWeight patch_embedder_input_proj;  // [hidden, patch_size^2 * 3]
  TensorView position_embedding_table;     // [2, position_embedding_size, hidden]: x, then y
  std::vector<VisionLayerWeights> layers;
  LinearWeight embedding_projection;  // embed_vision: [text hidden, vision hidden]
};

struct ModelWeights {
  TensorView embed_tokens;                  // [vocab, hidden], unscaled
  TensorView embed_tokens_per_layer;        // [vocab_per_layer, layers * P]
  LinearWeight per_layer_model_projection;  // [layers * P, hidden]
  NormWeight per_layer_projection_norm;     // [P]
  std::vector<DecoderLayerWeights> layers;
  NormWeight norm;       // [hidden]
  LinearWeight lm_head;  // [vocab, hidden]; embed_tokens itself when the embeddings are tied
  std::optional<VisionWeights> vision;
};

}  // namespace jewel

// The one list of stages. Both forward passes follow it in order; profiler, dumps, goldens and diff tools use
// these words.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace jewel {

enum class Stage : uint8_t {
  // Vision tower, once per image.
  kVisionPatchEmbed,  // [patches, vision hidden]
  kVisionLayer,       // [patches, vision hidden], after each encoder layer
  kVisionPool,        // [soft tokens, vision hidden]
  kVisionProject,     // [soft tokens, hidden]: the soft tokens
  // Decoder, before the layers.
  kEmbed,           // [tokens, hidden]: scaled embeddings with soft tokens in place
  kPerLayerInputs,  // [tokens, layers * P]
  // Each decoder layer.
  kAttnNorm,      // [tokens, hidden]: after input_layernorm
  kQ,             // [tokens, heads * head_dim]: after q_norm and RoPE
  kK,             // [tokens, kv_heads * head_dim]: after k_norm and RoPE; owning layers
  kV,             // [tokens, kv_heads * head_dim]: after the norm without weight; owning layers
  kAttention,     // [tokens, heads * head_dim]: before o_proj
  kAttnResidual,  // [tokens, hidden]: residual stream after attention
  kMlpResidual,   // [tokens, hidden]: after the MLP
  kLayer,         // [tokens, hidden]: after per-layer input and layer_scalar
  // After the layers, sampled rows only.
  kFinalNorm,  // [rows, hidden]
  kLogits,     // [rows, vocab], after the softcap
};
inline constexpr int kStageCount = static_cast<int>(Stage::kLogits) + 1;

// "vision.patch_embed", "layer.q", "logits", …
std::string_view stage_name(Stage stage);

}  // namespace jewel

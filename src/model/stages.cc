#include "model/stages.h"

namespace jewel {

std::string_view stage_name(Stage stage) {
  static constexpr std::array<std::string_view, kStageCount> kNames = {"vision.patch_embed",
                                                                       "vision.layer",
                                                                       "vision.pool",
                                                                       "vision.project",
                                                                       "embed",
                                                                       "per_layer_inputs",
                                                                       "layer.attn_norm",
                                                                       "layer.q",
                                                                       "layer.k",
                                                                       "layer.v",
                                                                       "layer.attention",
                                                                       "layer.attn_residual",
                                                                       "layer.mlp_residual",
                                                                       "layer.output",
                                                                       "final_norm",
                                                                       "logits"};
  return kNames[static_cast<size_t>(stage)];
}

}  // namespace jewel

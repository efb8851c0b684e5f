// config.json of the published shapes, as far as they decide the arithmetic.
#pragma once

#include <boost/json/parse.hpp>
#include <string_view>

#include "model/config.h"

namespace jewel {

inline constexpr std::string_view kE4bConfig = R"({
  "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "eos_token_id": [1, 106],
  "boi_token_id": 255999, "image_token_id": 258880, "eoi_token_id": 258882, "boa_token_id": 256000,
  "audio_token_id": 258881, "eoa_token_index": 258883, "video_token_id": 258884,
  "audio_config": {"hidden_size": 1024},
  "text_config": {
    "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42, "num_attention_heads": 8,
    "num_key_value_heads": 2, "num_global_key_value_heads": null, "head_dim": 256, "global_head_dim": 512,
    "sliding_window": 512, "num_kv_shared_layers": 18, "hidden_size_per_layer_input": 256, "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144, "final_logit_softcapping": 30.0, "rms_norm_eps": 1e-06,
    "rope_parameters": {
      "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
      "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}},
    "use_bidirectional_attention": null},
  "vision_config": {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 12, "head_dim": 64, "patch_size": 16, "pooling_kernel_size": 3,
    "position_embedding_size": 10240, "use_clipped_linears": true, "standardize": false,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}
})";

inline constexpr std::string_view kE2bTextConfig = R"({
  "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text",
  "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35, "num_attention_heads": 8,
  "num_key_value_heads": 1, "head_dim": 256, "global_head_dim": 512, "sliding_window": 512,
  "num_kv_shared_layers": 20, "use_double_wide_mlp": true, "hidden_size_per_layer_input": 256, "vocab_size": 262144,
  "layer_types": [LAYERS]})";

inline boost::json::object parse_object(std::string_view text) {
  return boost::json::parse(text).as_object();
}

}  // namespace jewel

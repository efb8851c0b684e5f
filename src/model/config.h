// The checkpoint's JSON files as typed data: config.json, generation_config.json, processor_config.json.
//
// Everything that varies by layer (head_dim, MLP width, who owns K and V) is resolved here, once: later code
// asks the layer, never the rules. Both spellings of the per-layer overrides are read (global_head_dim,
// per_layer_config). Values are immutable after parsing; any thread may read them. Formulas: docs/ and the
// Gemma 4 reference in Transformers 5.17.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

using TokenId = int32_t;

enum class LayerType : uint8_t { kSliding, kFull };

// Angle of pair i at position p is p * f_i; pairs are (i, i + head_dim/2).
struct RopeConfig {
  double theta = 10000;
  double partial_rotary_factor =
      1;              // < 1 only for "proportional": the leading pairs rotate, the rest have f_i = 0
  double factor = 1;  // divides the frequencies
  bool proportional = false;

  // f_i for i in [0, head_dim/2), in float32 as the reference holds them.
  std::vector<float> frequencies(int head_dim) const;
};

struct LayerConfig {
  LayerType type = LayerType::kSliding;
  int head_dim = 0;
  int n_kv_heads = 0;
  int intermediate_size = 0;
  bool owns_kv = true;
  int kv_source = 0;  // the layer whose K and V this one reads: itself when it owns them
};

struct TextConfig {
  int hidden_size = 0;
  int n_layers = 0;
  int n_heads = 0;
  int vocab_size = 0;
  int vocab_size_per_layer_input = 0;
  int hidden_size_per_layer_input = 0;  // P, the width of per-layer embeddings; 0 = none
  float rms_norm_eps = 1e-6f;
  int sliding_window = 0;             // keys visible to a query of a sliding layer, itself included
  float final_logit_softcapping = 0;  // 0 = none
  int max_position_embeddings = 0;
  int n_kv_shared_layers = 0;
  bool use_double_wide_mlp = false;
  bool tie_word_embeddings = true;
  TokenId pad_token_id = 0;
  RopeConfig rope_sliding;
  RopeConfig rope_full;
  std::vector<LayerConfig> layers;

  // Layers from here on own no K and V: prompt tokens that are not sampled never need them ("fast prefill").
  int first_shared_layer() const { return n_layers - n_kv_shared_layers; }
  const RopeConfig& rope(LayerType type) const { return type == LayerType::kFull ? rope_full : rope_sliding; }
};

struct VisionConfig {
  int hidden_size = 0;
  int intermediate_size = 0;
  int n_layers = 0;
  int n_heads = 0;
  int head_dim = 0;
  int patch_size = 0;
  int pooling_kernel_size = 0;
  int position_embedding_size = 0;
  float rms_norm_eps = 1e-6f;
  double rope_theta = 100;
  bool use_clipped_linears = false;

  int patch_values() const { return patch_size * patch_size * 3; }
};

struct ModelConfig {
  std::string model_type;  // "gemma4" or "gemma4_text"
  TextConfig text;
  std::optional<VisionConfig> vision;
  bool has_audio_tower = false;  // present in the checkpoint, not run by Jewel

  // By name from config.json; nullopt where a text-only config has none.
  std::optional<TokenId> boi_token_id;
  std::optional<TokenId> image_token_id;
  std::optional<TokenId> eoi_token_id;
  std::vector<TokenId> eos_token_ids;
  // Every placeholder and marker id of images, audio and video: never sampled, and pad in the per-layer
  // embedding.
  std::vector<TokenId> multimodal_token_ids;   // never sampled
  std::vector<TokenId> placeholder_token_ids;  // image, audio, video soft-token ids
};

// Sampling defaults of the checkpoint. Absent values stay at "off".
struct GenerationConfig {
  std::vector<TokenId> eos_token_ids;  // empty: use ModelConfig's
  std::vector<TokenId> suppress_tokens;
  bool do_sample = false;
  double temperature = 1;
  int top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  std::optional<int> max_new_tokens;
};

struct ProcessorConfig {
  int max_soft_tokens = 280;
};

// `file` names the source in error messages.
Result<ModelConfig> parse_model_config(const boost::json::object& json, const std::string& file);
Result<GenerationConfig> parse_generation_config(const boost::json::object& json, const std::string& file);
Result<ProcessorConfig> parse_processor_config(const boost::json::object& json, const std::string& file);

// Unsupported where an id of the vocabulary has no row in the table of per-layer embeddings.
Result<void> check_per_layer_vocabulary(const TextConfig& text);

// Reads a JSON file whose top level is an object. Limits size and depth.
Result<boost::json::object> read_json_object(const std::string& path);

}  // namespace jewel

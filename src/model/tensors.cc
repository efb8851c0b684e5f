#include "model/tensors.h"

#include <fmt/format.h>

namespace jewel {
namespace {

// Collects specs; the functions below read like the checkpoint's own listing.
class Table {
 public:
  void linear(std::string name, int64_t out, int64_t in, Part part, LinearWeight& field, bool quantizable) {
    specs.push_back({.name = std::move(name) + ".weight",
                     .shape = {out, in},
                     .kind = TensorKind::kLinear,
                     .part = part,
                     .quantizable = quantizable,
                     .field = &field});
  }
  void norm(std::string name, int64_t width, Part part, NormWeight& field) {
    specs.push_back({.name = std::move(name) + ".weight",
                     .shape = {width},
                     .kind = TensorKind::kNorm,
                     .part = part,
                     .field = &field});
  }
  void table(std::string name, std::vector<int64_t> shape, Part part, TensorView& field) {
    specs.push_back({.name = std::move(name),
                     .shape = std::move(shape),
                     .kind = TensorKind::kEmbedding,
                     .part = part,
                     .field = &field});
  }
  void scalar(std::string name, std::vector<int64_t> shape, Part part, float& field, bool required = true) {
    specs.push_back({.name = std::move(name),
                     .shape = std::move(shape),
                     .kind = TensorKind::kScalar,
                     .part = part,
                     .required = required,
                     .field = &field});
  }
  // Accepted when present, never used: K and V of layers that share another layer's.
  void inert(std::string name, std::vector<int64_t> shape, TensorKind kind) {
    specs.push_back({.name = std::move(name) + ".weight",
                     .shape = std::move(shape),
                     .kind = kind,
                     .part = Part::kAttention,
                     .required = false,
                     .field = {}});
  }

  std::vector<TensorSpec> specs;
};

void decoder_layer(const TextConfig& text, const LayerConfig& config, const std::string& name,
                   DecoderLayerWeights& layer, Table& table) {
  const int64_t hidden = text.hidden_size;
  const int64_t q_width = int64_t{text.n_heads} * config.head_dim;
  const int64_t kv_width = int64_t{config.n_kv_heads} * config.head_dim;
  const int64_t per_layer = text.hidden_size_per_layer_input;

  table.norm(name + "input_layernorm", hidden, Part::kNorms, layer.input_layernorm);
  table.norm(name + "post_attention_layernorm", hidden, Part::kNorms, layer.post_attention_layernorm);
  table.norm(name + "pre_feedforward_layernorm", hidden, Part::kNorms, layer.pre_feedforward_layernorm);
  table.norm(name + "post_feedforward_layernorm", hidden, Part::kNorms, layer.post_feedforward_layernorm);
  table.scalar(name + "layer_scalar", {1}, Part::kNorms, layer.layer_scalar);

  const std::string attn = name + "self_attn.";
  table.linear(attn + "q_proj", q_width, hidden, Part::kAttention, layer.q_proj, true);
  table.norm(attn + "q_norm", config.head_dim, Part::kNorms, layer.q_norm);
  if (config.owns_kv) {
    table.linear(attn + "k_proj", kv_width, hidden, Part::kAttention, layer.k_proj, true);
    table.linear(attn + "v_proj", kv_width, hidden, Part::kAttention, layer.v_proj, true);
    table.norm(attn + "k_norm", config.head_dim, Part::kNorms, layer.k_norm);
    table.scalar(attn + "k_scale", {}, Part::kAttention, layer.k_scale, false);
    table.scalar(attn + "v_scale", {}, Part::kAttention, layer.v_scale, false);
  } else {
    table.inert(attn + "k_proj", {kv_width, hidden}, TensorKind::kLinear);
    table.inert(attn + "v_proj", {kv_width, hidden}, TensorKind::kLinear);
    table.inert(attn + "k_norm", {config.head_dim}, TensorKind::kNorm);
  }
  table.linear(attn + "o_proj", hidden, q_width, Part::kAttention, layer.o_proj, true);

  table.linear(name + "mlp.gate_proj", config.intermediate_size, hidden, Part::kMlp, layer.gate_proj, true);
  table.linear(name + "mlp.up_proj", config.intermediate_size, hidden, Part::kMlp, layer.up_proj, true);
  table.linear(name + "mlp.down_proj", hidden, config.intermediate_size, Part::kMlp, layer.down_proj, true);

  if (per_layer > 0) {
    table.linear(name + "per_layer_input_gate", per_layer, hidden, Part::kPerLayerInput,
                 layer.per_layer_input_gate, false);
    table.linear(name + "per_layer_projection", hidden, per_layer, Part::kPerLayerInput,
                 layer.per_layer_projection, false);
    table.norm(name + "post_per_layer_input_norm", hidden, Part::kNorms, layer.post_per_layer_input_norm);
  }
}

void clipped_linear(const VisionConfig& vision, const std::string& name, int64_t out, int64_t in,
                    ClippedLinearWeight& field, Table& table) {
  table.linear(name + ".linear", out, in, Part::kVision, field.linear, false);
  if (!vision.use_clipped_linears) return;
  table.scalar(name + ".input_min", {}, Part::kVision, field.input_min);
  table.scalar(name + ".input_max", {}, Part::kVision, field.input_max);
  table.scalar(name + ".output_min", {}, Part::kVision, field.output_min);
  table.scalar(name + ".output_max", {}, Part::kVision, field.output_max);
}

void vision_tower(const ModelConfig& config, VisionWeights& weights, Table& table) {
  const VisionConfig& vision = *config.vision;
  const int64_t hidden = vision.hidden_size;
  const int64_t heads_width = int64_t{vision.n_heads} * vision.head_dim;
  const std::string tower = "model.vision_tower.";
  table.linear(tower + "patch_embedder.input_proj", hidden, vision.patch_values(), Part::kVision,
               weights.patch_embedder_input_proj, false);
  table.table(tower + "patch_embedder.position_embedding_table", {2, vision.position_embedding_size, hidden},
              Part::kVision, weights.position_embedding_table);
  weights.layers.resize(static_cast<size_t>(vision.n_layers));
  for (int i = 0; i < vision.n_layers; ++i) {
    VisionLayerWeights& layer = weights.layers[static_cast<size_t>(i)];
    const std::string name = fmt::format("{}encoder.layers.{}.", tower, i);
    table.norm(name + "input_layernorm", hidden, Part::kVision, layer.input_layernorm);
    table.norm(name + "post_attention_layernorm", hidden, Part::kVision, layer.post_attention_layernorm);
    table.norm(name + "pre_feedforward_layernorm", hidden, Part::kVision, layer.pre_feedforward_layernorm);
    table.norm(name + "post_feedforward_layernorm", hidden, Part::kVision, layer.post_feedforward_layernorm);
    clipped_linear(vision, name + "self_attn.q_proj", heads_width, hidden, layer.q_proj, table);
    clipped_linear(vision, name + "self_attn.k_proj", heads_width, hidden, layer.k_proj, table);
    clipped_linear(vision, name + "self_attn.v_proj", heads_width, hidden, layer.v_proj, table);
    clipped_linear(vision, name + "self_attn.o_proj", hidden, heads_width, layer.o_proj, table);
    table.norm(name + "self_attn.q_norm", vision.head_dim, Part::kVision, layer.q_norm);
    table.norm(name + "self_attn.k_norm", vision.head_dim, Part::kVision, layer.k_norm);
    clipped_linear(vision, name + "mlp.gate_proj", vision.intermediate_size, hidden, layer.gate_proj, table);
    clipped_linear(vision, name + "mlp.up_proj", vision.intermediate_size, hidden, layer.up_proj, table);
    clipped_linear(vision, name + "mlp.down_proj", hidden, vision.intermediate_size, layer.down_proj, table);
  }
  table.linear("model.embed_vision.embedding_projection", config.text.hidden_size, hidden, Part::kVision,
               weights.embedding_projection, false);
}

}  // namespace

std::string_view part_name(Part part) {
  switch (part) {
    case Part::kEmbeddings:
      return "embeddings";
    case Part::kPerLayerEmbeddings:
      return "per-layer embeddings";
    case Part::kAttention:
      return "attention";
    case Part::kMlp:
      return "MLP";
    case Part::kPerLayerInput:
      return "per-layer input";
    case Part::kNorms:
      return "norms and scalars";
    case Part::kHead:
      return "head";
    case Part::kVision:
      return "vision tower";
  }
  return "";
}

std::vector<TensorSpec> tensor_table(const ModelConfig& config, NamePrefix prefix, ModelWeights& weights) {
  const TextConfig& text = config.text;
  const std::string model = prefix == NamePrefix::kTextOnly ? "model." : "model.language_model.";
  const int64_t hidden = text.hidden_size;
  const int64_t per_layer_width = int64_t{text.n_layers} * text.hidden_size_per_layer_input;

  Table table;
  table.table(model + "embed_tokens.weight", {text.vocab_size, hidden}, Part::kEmbeddings,
              weights.embed_tokens);
  if (per_layer_width > 0) {
    table.table(model + "embed_tokens_per_layer.weight", {text.vocab_size_per_layer_input, per_layer_width},
                Part::kPerLayerEmbeddings, weights.embed_tokens_per_layer);
    table.linear(model + "per_layer_model_projection", per_layer_width, hidden, Part::kPerLayerInput,
                 weights.per_layer_model_projection, false);
    table.norm(model + "per_layer_projection_norm", text.hidden_size_per_layer_input, Part::kNorms,
               weights.per_layer_projection_norm);
  }
  weights.layers.resize(static_cast<size_t>(text.n_layers));
  for (int i = 0; i < text.n_layers; ++i) {
    decoder_layer(text, text.layers[static_cast<size_t>(i)], fmt::format("{}layers.{}.", model, i),
                  weights.layers[static_cast<size_t>(i)], table);
  }
  table.norm(model + "norm", hidden, Part::kNorms, weights.norm);
  table.linear("lm_head", text.vocab_size, hidden, Part::kHead, weights.lm_head, false);
  table.specs.back().required = !text.tie_word_embeddings;

  if (config.vision) {
    weights.vision.emplace();
    vision_tower(config, *weights.vision, table);
  }
  return std::move(table.specs);
}

}  // namespace jewel

#include "random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/check.h"

namespace jewel {
namespace {

class Builder {
 public:
  Builder(const RandomModelOptions& options, std::deque<std::vector<std::byte>>& storage)
      : options_(options), storage_(storage), state_(options.seed) {}

  // Near enough to normal, and quick: the sum of the four 16-bit parts of one random word (splitmix64).
  float normal(float deviation) {
    uint64_t word = state_ += 0x9e3779b97f4a7c15u;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebu;
    word ^= word >> 31;
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>((word >> (16 * i)) & 0xffffu) - 32767.5f;
    return deviation * sum / (65536 / std::sqrt(3.0f));  // four uniform parts: variance 4 / 12 of 65536^2
  }

  TensorView tensor(DType dtype, std::vector<int64_t> shape, float deviation) {
    int64_t count = 1;
    for (int64_t n : shape) count *= n;
    const size_t bytes = static_cast<size_t>(count) * dtype_bytes(dtype);
    std::vector<std::byte>& memory = storage_.emplace_back(bytes);
    // A prime: rows of a repeated table differ all the same.
    const size_t period = options_.repeat_values ? size_t{524287} : static_cast<size_t>(count);
    for (size_t i = 0; i < std::min(period, static_cast<size_t>(count)); ++i) {
      const float value = normal(deviation);
      if (dtype == DType::kF32) std::memcpy(&memory[i * 4], &value, 4);
      if (dtype == DType::kBF16) {
        const uint16_t bits = f32_to_bf16(value);
        std::memcpy(&memory[i * 2], &bits, 2);
      }
      if (dtype == DType::kF8E4M3) memory[i] = static_cast<std::byte>(f32_to_f8e4m3(value));
    }
    for (size_t filled = period * dtype_bytes(dtype); filled < bytes; filled *= 2) {
      std::memcpy(&memory[filled], memory.data(), std::min(filled, bytes - filled));
    }
    return {.dtype = dtype, .shape = std::move(shape), .data = memory.data(), .bytes = bytes};
  }

  // y has about the deviation of x.
  LinearWeight linear(int64_t out, int64_t in) {
    if (plain_)
      return {.weight = tensor(DType::kBF16, {out, in}, 1 / std::sqrt(static_cast<float>(in))), .scale = {}};
    LinearWeight w;
    const float deviation = 1 / std::sqrt(static_cast<float>(in));
    using Scale = RandomModelOptions::Scale;
    const size_t scales = options_.scale == Scale::kNone     ? 0
                          : options_.scale == Scale::kTensor ? 1
                                                             : static_cast<size_t>(out);
    float base = 1;
    if (scales > 0) {
      // Stored values with a deviation of 4, so that FP8 meets subnormals and ordinary codes.
      base = deviation / 4;
      for (size_t i = 0; i < scales; ++i) w.scale.push_back(base * (1 + 0.5f * std::fabs(normal(1))));
    }
    w.weight = tensor(options_.weight_dtype, {out, in}, deviation / base);
    return w;
  }

  // Products that published FP8 checkpoints keep in BF16.
  LinearWeight kept(int64_t out, int64_t in) {
    plain_ = options_.fp8_as_published && options_.weight_dtype == DType::kF8E4M3;
    LinearWeight w = linear(out, in);
    plain_ = false;
    return w;
  }

  NormWeight norm(int n, float mean, float deviation) {
    NormWeight weight(static_cast<size_t>(n));
    for (float& value : weight) value = mean + normal(deviation);
    return weight;
  }

  ClippedLinearWeight clipped(int64_t out, int64_t in) {
    ClippedLinearWeight w;
    w.linear = kept(out, in);
    w.input_min = -1.5f - std::fabs(normal(0.2f));
    w.input_max = 1.5f + std::fabs(normal(0.2f));
    w.output_min = -1.7f;
    w.output_max = 1.6f;
    return w;
  }

 private:
  const RandomModelOptions& options_;
  std::deque<std::vector<std::byte>>& storage_;
  uint64_t state_;
  bool plain_ = false;
};

TextConfig text_config(const RandomModelOptions& o) {
  TextConfig text;
  text.hidden_size = o.hidden_size;
  text.n_layers = o.n_layers;
  text.n_heads = o.n_heads;
  text.vocab_size = o.vocab_size;
  text.vocab_size_per_layer_input = o.vocab_size;
  text.hidden_size_per_layer_input = o.per_layer_input;
  text.sliding_window = o.sliding_window;
  text.final_logit_softcapping = o.softcap;
  text.max_position_embeddings = o.max_position_embeddings;
  text.n_kv_shared_layers = o.n_kv_shared_layers;
  text.use_double_wide_mlp = o.double_wide_mlp;
  text.rope_full = {.theta = 1e6, .partial_rotary_factor = 0.25, .proportional = true};
  int sources[2] = {-1, -1};
  for (int i = 0; i < o.n_layers; ++i) {
    LayerConfig layer;
    layer.type = (i + 1) % o.full_every == 0 || i + 1 == o.n_layers ? LayerType::kFull : LayerType::kSliding;
    layer.head_dim = layer.type == LayerType::kFull ? o.global_head_dim : o.head_dim;
    layer.n_kv_heads = o.n_kv_heads;
    layer.owns_kv = i < text.first_shared_layer();
    layer.intermediate_size = o.intermediate_size * (o.double_wide_mlp && !layer.owns_kv ? 2 : 1);
    int& source = sources[layer.type == LayerType::kFull ? 1 : 0];
    if (layer.owns_kv) source = i;
    JEWEL_CHECK(source >= 0, "layer {} has no layer to read K and V from", i);
    layer.kv_source = source;
    text.layers.push_back(layer);
  }
  return text;
}

VisionConfig vision_config(const RandomModelOptions& o) {
  VisionConfig vision;
  vision.hidden_size = o.vision_hidden;
  vision.intermediate_size = o.vision_intermediate;
  vision.n_layers = o.vision_layers;
  vision.n_heads = o.vision_heads;
  vision.head_dim = o.vision_hidden / o.vision_heads;
  vision.patch_size = o.patch_size;
  vision.pooling_kernel_size = 3;
  vision.position_embedding_size = o.position_embedding_size;
  vision.use_clipped_linears = true;
  return vision;
}

}  // namespace

std::unique_ptr<RandomModel> random_model(const RandomModelOptions& o) {
  JEWEL_CHECK(o.norm_factor == 1 || o.scale != RandomModelOptions::Scale::kNone, "a factor needs scales");
  auto model = std::make_unique<RandomModel>();
  Builder build(o, model->storage_);
  ModelConfig& config = model->config;
  config.model_type = "gemma4";
  config.text = text_config(o);
  config.image_token_id = RandomModel::kImageToken;
  config.placeholder_token_ids = {RandomModel::kImageToken, RandomModel::kAudioToken};
  config.multimodal_token_ids = config.placeholder_token_ids;

  ModelWeights& w = model->weights;
  const DType table_dtype = o.weight_dtype == DType::kF8E4M3 ? DType::kBF16 : o.weight_dtype;
  const int hidden = o.hidden_size, p = o.per_layer_input;
  w.embed_tokens =
      build.tensor(table_dtype, {o.vocab_size, hidden}, 1 / std::sqrt(static_cast<float>(hidden)));
  w.lm_head.weight = w.embed_tokens;
  w.norm = build.norm(hidden, 2, 0.2f);
  if (p > 0) {
    w.embed_tokens_per_layer =
        build.tensor(table_dtype, {o.vocab_size, o.n_layers * p}, 1 / std::sqrt(static_cast<float>(p)));
    w.per_layer_model_projection = build.kept(o.n_layers * p, hidden);
    w.per_layer_projection_norm = build.norm(p, 1, 0.2f);
  }
  for (const LayerConfig& c : config.text.layers) {
    DecoderLayerWeights& layer = w.layers.emplace_back();
    layer.input_layernorm = build.norm(hidden, 1, 0.2f);
    layer.post_attention_layernorm = build.norm(hidden, 1, 0.2f);
    layer.pre_feedforward_layernorm = build.norm(hidden, 1, 0.2f);
    layer.post_feedforward_layernorm = build.norm(hidden, 1, 0.2f);
    layer.layer_scalar = round_to_bf16(0.7f + std::fabs(build.normal(0.3f)));
    layer.q_proj = build.linear(o.n_heads * c.head_dim, hidden);
    layer.o_proj = build.linear(hidden, o.n_heads * c.head_dim);
    layer.q_norm = build.norm(c.head_dim, 0.3f, 0.1f);
    if (c.owns_kv) {
      layer.k_proj = build.linear(c.n_kv_heads * c.head_dim, hidden);
      layer.v_proj = build.linear(c.n_kv_heads * c.head_dim, hidden);
      layer.k_norm = build.norm(c.head_dim, 0.3f, 0.1f);
      layer.k_scale = 0.0625f;
      layer.v_scale = 0.03f;
    }
    layer.gate_proj = build.linear(c.intermediate_size, hidden);
    layer.up_proj = build.linear(c.intermediate_size, hidden);
    layer.down_proj = build.linear(hidden, c.intermediate_size);
    for (NormWeight* norm : {&layer.input_layernorm, &layer.pre_feedforward_layernorm}) {
      for (float& value : *norm) value *= o.norm_factor;
    }
    for (LinearWeight* behind :
         {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.gate_proj, &layer.up_proj}) {
      for (float& value : behind->scale) value /= o.norm_factor;
    }
    if (p > 0) {
      layer.post_per_layer_input_norm = build.norm(hidden, 0.5f, 0.1f);
      layer.per_layer_input_gate = build.kept(p, hidden);
      layer.per_layer_projection = build.kept(hidden, p);
    }
  }
  if (o.vision) {
    config.vision = vision_config(o);
    const VisionConfig& v = *config.vision;
    VisionWeights& vision = w.vision.emplace();
    vision.patch_embedder_input_proj = build.kept(v.hidden_size, v.patch_values());
    vision.position_embedding_table =
        build.tensor(table_dtype, {2, v.position_embedding_size, v.hidden_size}, 0.5f);
    for (int i = 0; i < v.n_layers; ++i) {
      VisionLayerWeights& layer = vision.layers.emplace_back();
      layer.input_layernorm = build.norm(v.hidden_size, 1, 0.2f);
      layer.post_attention_layernorm = build.norm(v.hidden_size, 1, 0.2f);
      layer.pre_feedforward_layernorm = build.norm(v.hidden_size, 1, 0.2f);
      layer.post_feedforward_layernorm = build.norm(v.hidden_size, 1, 0.2f);
      layer.q_norm = build.norm(v.head_dim, 0.5f, 0.1f);
      layer.k_norm = build.norm(v.head_dim, 0.5f, 0.1f);
      for (ClippedLinearWeight* proj : {&layer.q_proj, &layer.k_proj, &layer.v_proj, &layer.o_proj}) {
        *proj = build.clipped(v.hidden_size, v.hidden_size);
      }
      layer.gate_proj = build.clipped(v.intermediate_size, v.hidden_size);
      layer.up_proj = build.clipped(v.intermediate_size, v.hidden_size);
      // Published checkpoints clip one input in one way.
      for (ClippedLinearWeight* proj : {&layer.k_proj, &layer.v_proj}) {
        proj->input_min = layer.q_proj.input_min;
        proj->input_max = layer.q_proj.input_max;
      }
      layer.up_proj.input_min = layer.gate_proj.input_min;
      layer.up_proj.input_max = layer.gate_proj.input_max;
      layer.down_proj = build.clipped(v.hidden_size, v.intermediate_size);
    }
    vision.embedding_projection = build.kept(hidden, v.hidden_size);
  }
  return model;
}

std::vector<TokenId> random_tokens(const ModelConfig& config, int n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  for (TokenId& id : tokens)
    id = static_cast<TokenId>(10 + random() % static_cast<uint64_t>(config.text.vocab_size - 10));
  return tokens;
}

ImagePatches random_image(const ModelConfig& config, int grid_h, int grid_w, uint64_t seed) {
  std::mt19937_64 random(seed);
  ImagePatches image{.grid_h = grid_h, .grid_w = grid_w, .pixels = {}};
  image.pixels.resize(static_cast<size_t>(grid_h * grid_w * config.vision->patch_values()));
  for (uint8_t& pixel : image.pixels) pixel = static_cast<uint8_t>(random());
  return image;
}

std::vector<float> widened(const TensorView& tensor) {
  std::vector<float> values(tensor.bytes / dtype_bytes(tensor.dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const std::byte* at = tensor.data + i * dtype_bytes(tensor.dtype);
    if (tensor.dtype == DType::kF32) std::memcpy(&values[i], at, 4);
    if (tensor.dtype == DType::kBF16) {
      uint16_t bits = 0;
      std::memcpy(&bits, at, 2);
      values[i] = bf16_to_f32(bits);
    }
    if (tensor.dtype == DType::kF8E4M3) values[i] = f8e4m3_to_f32(static_cast<uint8_t>(*at));
  }
  return values;
}

std::vector<float> widened(const LinearWeight& linear) {
  std::vector<float> values = widened(linear.weight);
  if (linear.scale.empty()) return values;
  const auto in = static_cast<size_t>(linear.in());
  for (size_t i = 0; i < values.size(); ++i) values[i] *= linear.scale[linear.scale.size() == 1 ? 0 : i / in];
  return values;
}

}  // namespace jewel

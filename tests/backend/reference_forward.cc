#include "reference_forward.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "backend/cpu/ops_ref.h"

namespace jewel {
namespace {

std::vector<float> slice(std::span<const float> values, size_t first, size_t count) {
  return {values.begin() + static_cast<std::ptrdiff_t>(first),
          values.begin() + static_cast<std::ptrdiff_t>(first + count)};
}

void add(std::vector<float>& a, std::span<const float> b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
}

std::vector<float> times(std::vector<float> a, double scale) {
  for (float& value : a) value = static_cast<float>(value * scale);
  return a;
}

// Applies `norm` to each head of `head_dim` values.
std::vector<float> norm_heads(std::span<const float> x, std::span<const float> norm, float eps,
                              size_t head_dim) {
  std::vector<float> y;
  for (size_t first = 0; first < x.size(); first += head_dim) {
    const auto head = ref::rms_norm(x.subspan(first, head_dim), norm, eps);
    y.insert(y.end(), head.begin(), head.end());
  }
  return y;
}

std::vector<float> gelu_times(std::vector<float> gate, std::span<const float> up) {
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = ref::gelu_tanh(gate[i]) * up[i];
  return gate;
}

// K and V of one layer: [position][kv_heads * head_dim].
struct KeysValues {
  Rows k, v;
};

class TextReference {
 public:
  explicit TextReference(const RandomModel& model) : text_(model.config.text), model_(model) {}

  Rows logits(std::span<const TokenId> tokens, std::span<const ReferenceImage> images) {
    const auto& w = model_.weights;
    const auto hidden = static_cast<size_t>(text_.hidden_size);
    const auto embeddings = widened(w.embed_tokens);
    std::vector<TokenId> ids(tokens.begin(), tokens.end());
    for (TokenId& id : ids) {
      const auto& placeholders = model_.config.placeholder_token_ids;
      if (std::find(placeholders.begin(), placeholders.end(), id) != placeholders.end())
        id = text_.pad_token_id;
    }
    Rows h;
    for (TokenId id : ids) {
      h.push_back(times(slice(embeddings, static_cast<size_t>(id) * hidden, hidden),
                        std::sqrt(static_cast<double>(hidden))));
    }
    for (const ReferenceImage& image : images) {
      for (size_t i = 0; i < image.soft_tokens.size(); ++i)
        h[static_cast<size_t>(image.position) + i] = image.soft_tokens[i];
    }
    const Rows per_layer = per_layer_inputs(ids, h);
    for (size_t layer = 0; layer < text_.layers.size(); ++layer) run_layer(layer, h, per_layer);
    const auto head = widened(w.lm_head);
    Rows logits;
    for (const auto& row : h) {
      auto values = ref::linear(ref::rms_norm(row, w.norm, text_.rms_norm_eps), head);
      for (float& value : values) value = ref::softcap(value, text_.final_logit_softcapping);
      logits.push_back(std::move(values));
    }
    return logits;
  }

 private:
  Rows per_layer_inputs(std::span<const TokenId> ids, const Rows& x) const {
    const auto p = static_cast<size_t>(text_.hidden_size_per_layer_input);
    Rows inputs;
    if (p == 0) return inputs;
    const auto& w = model_.weights;
    const size_t columns = p * text_.layers.size();
    const auto table = widened(w.embed_tokens_per_layer);
    const auto projection = widened(w.per_layer_model_projection);
    for (size_t t = 0; t < x.size(); ++t) {
      auto c = times(ref::linear(x[t], projection), 1 / std::sqrt(static_cast<double>(text_.hidden_size)));
      c = norm_heads(c, w.per_layer_projection_norm, text_.rms_norm_eps, p);
      add(c, times(slice(table, static_cast<size_t>(ids[t]) * columns, columns),
                   std::sqrt(static_cast<double>(p))));
      inputs.push_back(times(c, std::sqrt(0.5)));
    }
    return inputs;
  }

  void run_layer(size_t index, Rows& h, const Rows& per_layer) {
    const LayerConfig& c = text_.layers[index];
    const DecoderLayerWeights& w = model_.weights.layers[index];
    const float eps = text_.rms_norm_eps;
    const auto dim = static_cast<size_t>(c.head_dim);
    const auto frequencies = text_.rope(c.type).frequencies(c.head_dim);
    const auto rotate_heads = [&](std::vector<float> x, size_t position) {
      for (size_t first = 0; first < x.size(); first += dim) {
        ref::rope(std::span<float>(x).subspan(first, dim), static_cast<int>(position), frequencies);
      }
      return x;
    };

    Rows a;
    for (const auto& row : h) a.push_back(ref::rms_norm(row, w.input_layernorm, eps));
    if (c.owns_kv) {
      const auto k_proj = widened(w.k_proj), v_proj = widened(w.v_proj);
      KeysValues& kv = kv_[static_cast<int>(index)];
      for (size_t t = 0; t < a.size(); ++t) {
        kv.k.push_back(rotate_heads(norm_heads(ref::linear(a[t], k_proj), w.k_norm, eps, dim), t));
        kv.v.push_back(norm_heads(ref::linear(a[t], v_proj), {}, eps, dim));
      }
    }
    const KeysValues& kv = kv_.at(c.kv_source);
    const auto q_proj = widened(w.q_proj), o_proj = widened(w.o_proj);
    const auto gate_proj = widened(w.gate_proj), up_proj = widened(w.up_proj),
               down_proj = widened(w.down_proj);
    std::vector<float> gate, projection;
    if (!per_layer.empty())
      gate = widened(w.per_layer_input_gate), projection = widened(w.per_layer_projection);
    for (size_t t = 0; t < h.size(); ++t) {
      const auto q = rotate_heads(norm_heads(ref::linear(a[t], q_proj), w.q_norm, eps, dim), t);
      const auto window = static_cast<size_t>(text_.sliding_window);
      const size_t first = c.type == LayerType::kSliding && t + 1 > window ? t + 1 - window : 0;
      std::vector<float> attended;
      for (size_t head = 0; head < static_cast<size_t>(text_.n_heads); ++head) {
        const size_t kv_head = head / static_cast<size_t>(text_.n_heads / c.n_kv_heads);
        std::vector<float> k, v;
        for (size_t j = first; j <= t; ++j) {
          const auto kj = slice(kv.k[j], kv_head * dim, dim), vj = slice(kv.v[j], kv_head * dim, dim);
          k.insert(k.end(), kj.begin(), kj.end());
          v.insert(v.end(), vj.begin(), vj.end());
        }
        const auto out = ref::attention(slice(q, head * dim, dim), k, v);
        attended.insert(attended.end(), out.begin(), out.end());
      }
      auto& row = h[t];
      add(row, ref::rms_norm(ref::linear(attended, o_proj), w.post_attention_layernorm, eps));
      const auto m = ref::rms_norm(row, w.pre_feedforward_layernorm, eps);
      const auto mlp = gelu_times(ref::linear(m, gate_proj), ref::linear(m, up_proj));
      add(row, ref::rms_norm(ref::linear(mlp, down_proj), w.post_feedforward_layernorm, eps));
      if (!per_layer.empty()) {
        const auto p = static_cast<size_t>(text_.hidden_size_per_layer_input);
        const auto g = gelu_times(ref::linear(row, gate), slice(per_layer[t], index * p, p));
        add(row, ref::rms_norm(ref::linear(g, projection), w.post_per_layer_input_norm, eps));
      }
      row = times(row, w.layer_scalar);
    }
  }

  const TextConfig& text_;
  const RandomModel& model_;
  std::map<int, KeysValues> kv_;
};

std::vector<float> clipped(std::vector<float> x, const ClippedLinearWeight& w) {
  for (float& value : x) value = std::clamp(value, w.input_min, w.input_max);
  x = ref::linear(x, widened(w.linear));
  for (float& value : x) value = std::clamp(value, w.output_min, w.output_max);
  return x;
}

}  // namespace

Rows reference_logits(const RandomModel& model, std::span<const TokenId> tokens,
                      std::span<const ReferenceImage> images) {
  return TextReference(model).logits(tokens, images);
}

Rows reference_soft_tokens(const RandomModel& model, const ImagePatches& patches) {
  const VisionConfig& c = *model.config.vision;
  const VisionWeights& w = *model.weights.vision;
  const auto hidden = static_cast<size_t>(c.hidden_size), dim = static_cast<size_t>(c.head_dim);
  const auto values = static_cast<size_t>(c.patch_values());
  const int n = patches.grid_h * patches.grid_w;
  const auto table = widened(w.position_embedding_table);
  const auto embed = widened(w.patch_embedder_input_proj);
  Rows h;
  for (int i = 0; i < n; ++i) {
    std::vector<float> pixels(values);
    for (size_t j = 0; j < values; ++j) {
      pixels[j] = static_cast<float>(2 * (patches.pixels[static_cast<size_t>(i) * values + j] / 255.0 - 0.5));
    }
    auto row = ref::linear(pixels, embed);
    const auto x = static_cast<size_t>(i % patches.grid_w), y = static_cast<size_t>(i / patches.grid_w);
    add(row, slice(table, x * hidden, hidden));
    add(row, slice(table, (static_cast<size_t>(c.position_embedding_size) + y) * hidden, hidden));
    h.push_back(row);
  }
  std::vector<float> frequencies;
  for (size_t i = 0; i < dim / 4; ++i) {
    frequencies.push_back(static_cast<float>(
        std::pow(c.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim / 2))));
  }
  const auto rotate_heads = [&](std::vector<float> row, int patch) {
    for (size_t first = 0; first < row.size(); first += dim) {
      ref::rope(std::span<float>(row).subspan(first, dim / 2), patch % patches.grid_w, frequencies);
      ref::rope(std::span<float>(row).subspan(first + dim / 2, dim / 2), patch / patches.grid_w, frequencies);
    }
    return row;
  };
  for (const VisionLayerWeights& layer : w.layers) {
    const float eps = c.rms_norm_eps;
    Rows q, k, v;
    for (int i = 0; i < n; ++i) {
      const auto a = ref::rms_norm(h[static_cast<size_t>(i)], layer.input_layernorm, eps);
      q.push_back(rotate_heads(norm_heads(clipped(a, layer.q_proj), layer.q_norm, eps, dim), i));
      k.push_back(rotate_heads(norm_heads(clipped(a, layer.k_proj), layer.k_norm, eps, dim), i));
      v.push_back(norm_heads(clipped(a, layer.v_proj), {}, eps, dim));
    }
    for (size_t i = 0; i < h.size(); ++i) {
      std::vector<float> attended;
      for (size_t first = 0; first < hidden; first += dim) {
        std::vector<float> keys, head_values;
        for (size_t j = 0; j < h.size(); ++j) {
          const auto kj = slice(k[j], first, dim), vj = slice(v[j], first, dim);
          keys.insert(keys.end(), kj.begin(), kj.end());
          head_values.insert(head_values.end(), vj.begin(), vj.end());
        }
        const auto out = ref::attention(slice(q[i], first, dim), keys, head_values);
        attended.insert(attended.end(), out.begin(), out.end());
      }
      add(h[i], ref::rms_norm(clipped(attended, layer.o_proj), layer.post_attention_layernorm, eps));
      const auto m = ref::rms_norm(h[i], layer.pre_feedforward_layernorm, eps);
      const auto mlp = gelu_times(clipped(m, layer.gate_proj), clipped(m, layer.up_proj));
      add(h[i], ref::rms_norm(clipped(mlp, layer.down_proj), layer.post_feedforward_layernorm, eps));
    }
  }
  const auto projection = widened(w.embedding_projection);
  const int side = c.pooling_kernel_size;
  Rows soft_tokens;
  for (int y = 0; y < patches.grid_h / side; ++y) {
    for (int x = 0; x < patches.grid_w / side; ++x) {
      std::vector<float> cell(hidden);
      for (int i = 0; i < side * side; ++i) {
        add(cell, h[static_cast<size_t>((y * side + i / side) * patches.grid_w + x * side + i % side)]);
      }
      cell = times(cell, std::sqrt(static_cast<double>(hidden)) / (side * side));
      soft_tokens.push_back(ref::linear(ref::rms_norm(cell, {}, c.rms_norm_eps), projection));
    }
  }
  return soft_tokens;
}

double relative_error(const Rows& a, const Rows& b) {
  double difference = 0, norm = 0;
  for (size_t r = 0; r < b.size(); ++r) {
    for (size_t i = 0; i < b[r].size(); ++i) {
      const double d = static_cast<double>(a.at(r).at(i)) - b[r][i];
      difference += d * d;
      norm += static_cast<double>(b[r][i]) * b[r][i];
    }
  }
  return std::sqrt(difference / norm);
}

}  // namespace jewel

#include "backend/cpu/decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace jewel {
namespace {

// Rows of one pass through a layer. Enough to use each weight many times, few enough that the MLP's
// activations (2 x 256 x 10240 float32 = 20 MB in E4B) do not go to memory and back.
constexpr int64_t kRowBlock = 256;
// Rows of logits at a time: 64 x 262144 float32 = 64 MB.
constexpr int64_t kLogitsBlock = 64;

// Row `row` of a table [rows, n], columns [first, first + count), widened.
void read_row(const Kernels& kernels, const TensorView& table, int64_t row, int64_t first, int64_t count,
              float* out) {
  const int64_t columns = table.shape[1];
  JEWEL_CHECK(row >= 0 && row < table.shape[0], "row {} of {}", row, table.shape[0]);
  const std::byte* in = table.data + (row * columns + first) * static_cast<int64_t>(dtype_bytes(table.dtype));
  switch (format_of(table.dtype)) {
    case Format::kF32:
      std::copy_n(reinterpret_cast<const float*>(in), count, out);
      break;
    case Format::kBF16:
      kernels.bf16_to_f32(reinterpret_cast<const uint16_t*>(in), out, count);
      break;
    case Format::kF8E4M3:
      kernels.f8_to_f32(reinterpret_cast<const uint8_t*>(in), out, count);
      break;
  }
}

void scale_values(const Matrix& m, float scale) {
  for (float& value : m.values()) value *= scale;
}

// The same numbers seen as rows of `columns`: [n, heads * head_dim] as [n * heads, head_dim].
Matrix reshaped(const Matrix& m, int64_t columns) {
  return {m.data, m.rows * m.columns / columns, columns};
}

// The parts of `spans` that lie in rows [begin, begin + n), with rows counted from `begin`.
std::vector<QuerySpan> spans_within(std::span<const QuerySpan> spans, int64_t begin, int64_t n) {
  std::vector<QuerySpan> within;
  for (const QuerySpan& span : spans) {
    const int64_t first = std::max(span.row, begin), last = std::min(span.row + span.n, begin + n);
    if (first >= last) continue;
    within.push_back({.row = first - begin,
                      .n = static_cast<int>(last - first),
                      .position = span.position + static_cast<int>(first - span.row),
                      .pages = span.pages});
  }
  return within;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, const ModelWeights& weights, const Compute& compute,
                 KvCache& cache)
    : config_(config), text_(config.text), weights_(weights), compute_(compute), cache_(cache) {
  // One head_dim per layer type: the frequencies of the first layer of each.
  for (const LayerConfig& layer : text_.layers) {
    std::vector<float>& frequencies =
        layer.type == LayerType::kFull ? frequencies_full_ : frequencies_sliding_;
    if (frequencies.empty()) frequencies = text_.rope(layer.type).frequencies(layer.head_dim);
    JEWEL_CHECK(static_cast<int>(frequencies.size()) * 2 == layer.head_dim,
                "layers of one type differ in head_dim");
  }
}

void Decoder::forward(std::span<const DecoderChunk> chunks, const LogitsSink& sink) {
  const std::vector<int64_t> asked = asked_rows(chunks);
  set_rows(rows_, chunks, false);
  embed(chunks);
  per_layer_inputs(asked);
  for (int layer = 0; layer < text_.n_layers; ++layer) {
    if (layer == text_.first_shared_layer()) keep_asked_rows(chunks, asked);
    for (int64_t begin = 0; begin < h_.rows; begin += row_block(h_.rows)) {
      run_layer(layer, begin, std::min(row_block(h_.rows), h_.rows - begin));
    }
  }
  if (text_.first_shared_layer() == text_.n_layers) keep_asked_rows(chunks, asked);
  head(sink);
}

int64_t Decoder::row_block(int64_t rows) const {
  return observer_ ? std::max<int64_t>(rows, 1) : kRowBlock;
}

std::vector<int64_t> Decoder::asked_rows(std::span<const DecoderChunk> chunks) const {
  std::vector<int64_t> asked;
  int64_t end = 0;
  for (const DecoderChunk& chunk : chunks) {
    end += static_cast<int64_t>(chunk.tokens.size());
    for (int i = chunk.n_asked(); i > 0; --i) asked.push_back(end - i);
  }
  return asked;
}

void Decoder::set_rows(Rows& rows, std::span<const DecoderChunk> chunks, bool asked_only) {
  rows.positions.clear();
  rows.full.clear();
  rows.sliding.clear();
  for (const DecoderChunk& chunk : chunks) {
    const int n_tokens = static_cast<int>(chunk.tokens.size());
    const int n = asked_only ? chunk.n_asked() : n_tokens;
    if (n == 0) continue;
    QuerySpan span;
    span.row = static_cast<int64_t>(rows.positions.size());
    span.n = n;
    span.position = chunk.position + n_tokens - n;
    span.pages = chunk.full_pages;
    rows.full.push_back(span);
    span.pages = chunk.sliding_pages;
    rows.sliding.push_back(span);
    for (int i = 0; i < n; ++i) rows.positions.push_back(span.position + i);
  }
  rows.rope_full.compute(compute_, rows.positions, frequencies_full_);
  rows.rope_sliding.compute(compute_, rows.positions, frequencies_sliding_);
}

// Scaled embeddings, with soft tokens (unscaled) in place of their placeholders.
void Decoder::embed(std::span<const DecoderChunk> chunks) {
  const int64_t hidden = text_.hidden_size;
  const float scale = compute_.round_if_bf16(std::sqrt(static_cast<float>(hidden)));
  h_ = {h_buffer_.resize(static_cast<int64_t>(rows_.positions.size()) * hidden),
        static_cast<int64_t>(rows_.positions.size()), hidden};
  per_layer_ids_.clear();
  int64_t row = 0;
  for (const DecoderChunk& chunk : chunks) {
    const int64_t first = row;
    for (TokenId id : chunk.tokens) {
      const auto& placeholders = config_.placeholder_token_ids;
      const bool placeholder = std::find(placeholders.begin(), placeholders.end(), id) != placeholders.end();
      if (placeholder) id = text_.pad_token_id;
      per_layer_ids_.push_back(id);
      read_row(*compute_.kernels, weights_.embed_tokens, id, 0, hidden, h_.row(row));
      for (int64_t i = 0; i < hidden; ++i) h_.row(row)[i] *= scale;
      ++row;
    }
    for (const SoftTokens& soft : chunk.soft_tokens) {
      std::copy_n(soft.values, soft.count * hidden, h_.row(first + soft.offset));
    }
  }
  observe(Stage::kEmbed, -1, h_);
}

// Per-layer inputs of all rows for the layers that all rows run, and of the asked rows for the rest.
void Decoder::per_layer_inputs(std::span<const int64_t> asked) {
  const int64_t p = text_.hidden_size_per_layer_input;
  if (p == 0) return;
  const int split = text_.first_shared_layer();
  const int64_t columns = split * p, shared_columns = (text_.n_layers - split) * p;
  const int64_t n_asked = static_cast<int64_t>(asked.size());
  per_layer_ = {per_layer_buffer_.resize(h_.rows * columns), h_.rows, columns};
  per_layer_shared_ = {per_layer_shared_buffer_.resize(n_asked * shared_columns), n_asked, shared_columns};

  if (observer_) {
    Buffer<float> whole_buffer;
    const Matrix whole{whole_buffer.resize(h_.rows * (columns + shared_columns)), h_.rows,
                       columns + shared_columns};
    project_per_layer(h_, per_layer_ids_, 0, whole);
    observe(Stage::kPerLayerInputs, -1, whole);
    for (int64_t r = 0; r < h_.rows; ++r) std::copy_n(whole.row(r), columns, per_layer_.row(r));
    for (int64_t i = 0; i < n_asked; ++i) {
      std::copy_n(whole.row(asked[static_cast<size_t>(i)]) + columns, shared_columns,
                  per_layer_shared_.row(i));
    }
    return;
  }

  project_per_layer(h_, per_layer_ids_, 0, per_layer_);
  if (shared_columns == 0 || n_asked == 0) return;
  const Matrix embeddings{asked_embeddings_buffer_.resize(n_asked * h_.columns), n_asked, h_.columns};
  std::vector<TokenId> ids;
  for (int64_t i = 0; i < n_asked; ++i) {
    const int64_t row = asked[static_cast<size_t>(i)];
    std::copy_n(h_.row(row), h_.columns, embeddings.row(i));
    ids.push_back(per_layer_ids_[static_cast<size_t>(row)]);
  }
  project_per_layer(embeddings, ids, split, per_layer_shared_);
}

// out = (RMS(Wplm x / sqrt(hidden)) + Eple[id] * sqrt(P)) / sqrt(2), for the layers from `first_layer` that
// fit in out.
void Decoder::project_per_layer(const Matrix& embeddings, std::span<const TokenId> ids, int first_layer,
                                const Matrix& out) {
  const int64_t p = text_.hidden_size_per_layer_input;
  const float projection_scale = 1.0f / std::sqrt(static_cast<float>(text_.hidden_size));
  const float token_scale = compute_.round_if_bf16(std::sqrt(static_cast<float>(p)));
  const float combine_scale = static_cast<float>(1 / std::numbers::sqrt2);
  for (int64_t begin = 0; begin < out.rows; begin += kRowBlock) {
    const int64_t n = std::min(kRowBlock, out.rows - begin);
    const Matrix block{out.row(begin), n, out.columns};
    input_.set(compute_, {embeddings.row(begin), n, embeddings.columns});
    linear(compute_, input_, weights_.per_layer_model_projection, block, first_layer * p);
  }
  compute_.pool->parallel_for(out.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < out.columns; ++i) out.row(r)[i] *= projection_scale;
    }
  });
  rms_norm(compute_, reshaped(out, p), weights_.per_layer_projection_norm, text_.rms_norm_eps,
           reshaped(out, p));
  compute_.pool->parallel_for(out.rows, 1, [&](int64_t begin, int64_t end) {
    thread_local Buffer<float> token_buffer;
    float* token = token_buffer.resize(out.columns);
    for (int64_t r = begin; r < end; ++r) {
      read_row(*compute_.kernels, weights_.embed_tokens_per_layer, ids[static_cast<size_t>(r)],
               first_layer * p, out.columns, token);
      float* c = out.row(r);
      for (int64_t i = 0; i < out.columns; ++i) c[i] = (c[i] + token[i] * token_scale) * combine_scale;
    }
  });
}

void Decoder::keep_asked_rows(std::span<const DecoderChunk> chunks, std::span<const int64_t> asked) {
  for (size_t i = 0; i < asked.size(); ++i) {
    // Rows only move up, in order.
    const auto to = static_cast<int64_t>(i);
    if (asked[i] != to) std::copy_n(h_.row(asked[i]), h_.columns, h_.row(to));
  }
  h_.rows = static_cast<int64_t>(asked.size());
  set_rows(rows_, chunks, true);
}

void Decoder::run_layer(int layer, int64_t begin, int64_t n) {
  const LayerConfig& c = text_.layers[static_cast<size_t>(layer)];
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Matrix h{h_.row(begin), n, h_.columns};
  const Matrix a{a_buffer_.resize(n * h_.columns), n, h_.columns};

  rms_norm(compute_, h, w.input_layernorm, text_.rms_norm_eps, a);
  observe(Stage::kAttnNorm, layer, a);
  input_.set(compute_, a);
  if (c.owns_kv) write_kv(layer, begin, n);
  const int64_t width = int64_t{text_.n_heads} * c.head_dim;
  const Matrix attended{attention_buffer_.resize(n * width), n, width};
  attend(layer, begin, n, attended);
  observe(Stage::kAttention, layer, attended);
  input_.set(compute_, attended);
  linear(compute_, input_, w.o_proj, a);
  add_rms_norm(compute_, a, w.post_attention_layernorm, text_.rms_norm_eps, h);
  observe(Stage::kAttnResidual, layer, h);

  add_mlp(layer, h);
  observe(Stage::kMlpResidual, layer, h);

  if (text_.hidden_size_per_layer_input > 0) add_per_layer_input(layer, begin, h);
  scale_values(h, w.layer_scalar);
  observe(Stage::kLayer, layer, h);
}

// K and V of the block's rows, from the normalized inputs in input_, into their pages.
void Decoder::write_kv(int layer, int64_t begin, int64_t n) {
  const LayerConfig& c = text_.layers[static_cast<size_t>(layer)];
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t width = int64_t{c.n_kv_heads} * c.head_dim;
  const Matrix k{k_buffer_.resize(n * width), n, width};
  const Matrix v{v_buffer_.resize(n * width), n, width};
  linear(compute_, input_, w.k_proj, k);
  linear(compute_, input_, w.v_proj, v);
  const Matrix k_heads = reshaped(k, c.head_dim), v_heads = reshaped(v, c.head_dim);
  rms_norm(compute_, k_heads, w.k_norm, text_.rms_norm_eps, k_heads);
  rms_norm(compute_, v_heads, {}, text_.rms_norm_eps, v_heads);
  const RopeTable& table = rope(c.type);
  for (int64_t r = 0; r < k_heads.rows; ++r) table.rotate(k_heads.row(r), begin + r / c.n_kv_heads);
  observe(Stage::kK, layer, k);
  observe(Stage::kV, layer, v);

  const auto spans = spans_within(c.type == LayerType::kFull ? rows_.full : rows_.sliding, begin, n);
  for (const QuerySpan& span : spans) {
    compute_.pool->parallel_for(span.n, 8, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const auto position = static_cast<size_t>(span.position + i);
        cache_.store(layer, span.pages[position / kPageTokens], static_cast<int>(position % kPageTokens),
                     k.row(span.row + i), v.row(span.row + i));
      }
    });
  }
}

// Attention of the block's rows, from the normalized inputs in input_.
void Decoder::attend(int layer, int64_t begin, int64_t n, const Matrix& out) {
  const LayerConfig& c = text_.layers[static_cast<size_t>(layer)];
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const Matrix q{q_buffer_.resize(n * out.columns), n, out.columns};
  linear(compute_, input_, w.q_proj, q);
  const Matrix q_heads = reshaped(q, c.head_dim);
  rms_norm(compute_, q_heads, w.q_norm, text_.rms_norm_eps, q_heads);
  const RopeTable& table = rope(c.type);
  compute_.pool->parallel_for(q_heads.rows, 64, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) table.rotate(q_heads.row(r), begin + r / text_.n_heads);
  });
  observe(Stage::kQ, layer, q);

  const bool full = c.type == LayerType::kFull;
  const AttentionLayer shape{.kv_layer = c.kv_source,
                             .n_heads = text_.n_heads,
                             .n_kv_heads = c.n_kv_heads,
                             .head_dim = c.head_dim,
                             .window = full ? 0 : text_.sliding_window};
  attention(compute_, cache_, shape, spans_within(full ? rows_.full : rows_.sliding, begin, n), q, out);
}

// h += RMS(down(gelu(gate(RMS(h))) * up(RMS(h))))
void Decoder::add_mlp(int layer, const Matrix& h) {
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t width = w.gate_proj.out();
  const Matrix a{a_buffer_.resize(h.rows * h.columns), h.rows, h.columns};
  const Matrix gate{gate_buffer_.resize(h.rows * width), h.rows, width};
  const Matrix up{up_buffer_.resize(h.rows * width), h.rows, width};
  rms_norm(compute_, h, w.pre_feedforward_layernorm, text_.rms_norm_eps, a);
  input_.set(compute_, a);
  linear(compute_, input_, w.gate_proj, gate);
  linear(compute_, input_, w.up_proj, up);
  gelu_mul(compute_, gate, up.data, up.columns);
  input_.set(compute_, gate);
  linear(compute_, input_, w.down_proj, a);
  add_rms_norm(compute_, a, w.post_feedforward_layernorm, text_.rms_norm_eps, h);
}

// h += RMS(projection(gelu(gate(h)) * this layer's slice of the per-layer inputs)); h is not normalized
// before.
void Decoder::add_per_layer_input(int layer, int64_t begin, const Matrix& h) {
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int64_t p = text_.hidden_size_per_layer_input;
  const int split = text_.first_shared_layer();
  const Matrix& inputs = layer < split ? per_layer_ : per_layer_shared_;
  const float* slice = inputs.row(begin) + (layer < split ? layer : layer - split) * p;
  const Matrix a{a_buffer_.resize(h.rows * h.columns), h.rows, h.columns};
  const Matrix gate{gate_buffer_.resize(h.rows * p), h.rows, p};
  input_.set(compute_, h);
  linear(compute_, input_, w.per_layer_input_gate, gate);
  gelu_mul(compute_, gate, slice, inputs.columns);
  input_.set(compute_, gate);
  linear(compute_, input_, w.per_layer_projection, a);
  add_rms_norm(compute_, a, w.post_per_layer_input_norm, text_.rms_norm_eps, h);
}

void Decoder::head(const LogitsSink& sink) {
  if (h_.rows == 0) return;
  rms_norm(compute_, h_, weights_.norm, text_.rms_norm_eps, h_);
  observe(Stage::kFinalNorm, -1, h_);
  const int64_t block = observer_ ? h_.rows : kLogitsBlock;
  for (int64_t begin = 0; begin < h_.rows; begin += block) {
    const int64_t n = std::min(block, h_.rows - begin);
    const Matrix logits{logits_buffer_.resize(n * text_.vocab_size), n, text_.vocab_size};
    input_.set(compute_, {h_.row(begin), n, h_.columns});
    linear(compute_, input_, weights_.lm_head, logits);
    softcap(compute_, logits, text_.final_logit_softcapping);
    observe(Stage::kLogits, -1, logits);
    sink(begin, logits);
  }
}

}  // namespace jewel

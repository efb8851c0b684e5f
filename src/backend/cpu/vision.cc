#include "backend/cpu/vision.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace jewel {
namespace {

constexpr int64_t kRowBlock = 512;   // patches of one pass through the MLP
constexpr int64_t kQueryBlock = 32;  // queries whose scores over all patches are held at once, by each thread

std::vector<int> counting(int n) {
  std::vector<int> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// Each axis rotates half of a head: f_i = theta^(-2i / (head_dim / 2)), float32 as in the reference.
std::vector<float> axis_frequencies(const VisionConfig& config) {
  const int dim = config.head_dim / 2;
  std::vector<float> frequencies;
  for (int i = 0; i < dim; i += 2) {
    frequencies.push_back(1.0f / std::pow(static_cast<float>(config.rope_theta),
                                          static_cast<float>(i) / static_cast<float>(dim)));
  }
  return frequencies;
}

// One head [patches, head_dim] of x [patches, hidden], transposed to rows of patches.
void transpose_head(const Matrix& x, int64_t head, int64_t head_dim, const Matrix& out) {
  for (int64_t r = 0; r < x.rows; ++r) {
    const float* in = x.row(r) + head * head_dim;
    for (int64_t i = 0; i < head_dim; ++i) out.row(head * head_dim + i)[r] = in[i];
  }
}

}  // namespace

VisionTower::VisionTower(const ModelConfig& config, const ModelWeights& weights, const Compute& compute)
    : config_(*config.vision), weights_(*weights.vision), compute_(compute) {
  JEWEL_CHECK(config_.head_dim % 4 == 0, "vision head_dim {}", config_.head_dim);
}

Result<std::vector<float>> VisionTower::encode(const ImagePatches& patches) {
  const int side = config_.pooling_kernel_size;
  const int64_t n = static_cast<int64_t>(patches.grid_h) * patches.grid_w;
  JEWEL_CHECK(
      patches.grid_h > 0 && patches.grid_w > 0 && patches.grid_h % side == 0 && patches.grid_w % side == 0,
      "a grid of {} x {} patches", patches.grid_h, patches.grid_w);
  JEWEL_CHECK(static_cast<int64_t>(patches.pixels.size()) == n * config_.patch_values(),
              "{} bytes for {} patches", patches.pixels.size(), n);
  const int64_t positions = weights_.position_embedding_table.shape[1];
  if (std::max(patches.grid_h, patches.grid_w) > positions) {
    return too_large(
        fmt::format("image: a grid of {} x {} patches passes the {} positions of the model's table; use a "
                    "smaller token budget or a less extreme shape",
                    patches.grid_w, patches.grid_h, positions));
  }
  grid_w_ = patches.grid_w;
  const std::vector<float> frequencies = axis_frequencies(config_);
  rope_x_.compute(compute_, counting(patches.grid_w), frequencies);
  rope_y_.compute(compute_, counting(patches.grid_h), frequencies);

  embed_patches(patches);
  observe(Stage::kVisionPatchEmbed, -1, h_);
  for (int layer = 0; layer < config_.n_layers; ++layer) {
    run_layer(layer);
    observe(Stage::kVisionLayer, layer, h_);
  }
  const Matrix pooled = pool(patches);
  observe(Stage::kVisionPool, -1, pooled);

  rms_norm(compute_, pooled, {}, config_.rms_norm_eps, pooled);
  const int64_t width = weights_.embedding_projection.out();
  std::vector<float> soft_tokens(static_cast<size_t>(pooled.rows * width));
  const Matrix projected{soft_tokens.data(), pooled.rows, width};
  input_.set(compute_, pooled);
  linear(compute_, input_, weights_.embedding_projection, projected);
  observe(Stage::kVisionProject, -1, projected);
  return soft_tokens;
}

// h = W (2 p - 1) + T[0][x] + T[1][y], p = pixel / 255
void VisionTower::embed_patches(const ImagePatches& patches) {
  const int64_t n = static_cast<int64_t>(patches.grid_h) * patches.grid_w;
  const int64_t values = config_.patch_values();
  h_ = {h_buffer_.resize(n * config_.hidden_size), n, config_.hidden_size};
  const Matrix pixels{gate_buffer_.resize(std::min(n, kRowBlock) * values), 0, values};
  for (int64_t begin = 0; begin < n; begin += kRowBlock) {
    const Matrix block{pixels.data, std::min(kRowBlock, n - begin), values};
    const uint8_t* in = patches.pixels.data() + begin * values;
    for (int64_t i = 0; i < block.rows * values; ++i) {
      block.data[i] = 2.0f * (static_cast<float>(in[i]) * (1.0f / 255.0f) - 0.5f);
    }
    input_.set(compute_, block);
    linear(compute_, input_, weights_.patch_embedder_input_proj, {h_.row(begin), block.rows, h_.columns});
  }

  const TensorView& table = weights_.position_embedding_table;
  const int64_t positions = table.shape[1];
  const auto position_row = [&](int64_t axis, int64_t coordinate, float* out) {
    const int64_t first = (axis * positions + coordinate) * h_.columns;
    if (table.dtype == DType::kBF16) {
      compute_.kernels->bf16_to_f32(reinterpret_cast<const uint16_t*>(table.data) + first, out, h_.columns);
    } else {
      JEWEL_CHECK(table.dtype == DType::kF32, "position table in {}", dtype_name(table.dtype));
      std::copy_n(reinterpret_cast<const float*>(table.data) + first, h_.columns, out);
    }
  };
  std::vector<float> x(static_cast<size_t>(h_.columns)), y(x.size());
  for (int64_t r = 0; r < n; ++r) {
    position_row(0, r % grid_w_, x.data());
    position_row(1, r / grid_w_, y.data());
    for (size_t i = 0; i < x.size(); ++i) h_.row(r)[i] += x[i] + y[i];
  }
}

void VisionTower::run_layer(int layer) {
  const VisionLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  attend(w);
  add_mlp(w);
}

void VisionTower::clipped_linear(const Matrix& x, const ClippedLinearWeight& w, const Matrix& y) {
  input_.set(compute_, x, w.input_min, w.input_max);
  linear(compute_, input_, w.linear, y);
  compute_.pool->parallel_for(y.rows, 8, [&](int64_t begin, int64_t end) {
    for (float* value = y.row(begin); value < y.row(end); ++value)
      *value = std::clamp(*value, w.output_min, w.output_max);
  });
}

// h += RMS(o(softmax(q k^T) v)), q and k normalized and rotated, v normalized.
void VisionTower::attend(const VisionLayerWeights& w) {
  const int64_t n = h_.rows, hidden = int64_t{config_.n_heads} * config_.head_dim, dim = config_.head_dim;
  const Matrix a{a_buffer_.resize(n * h_.columns), n, h_.columns};
  const Matrix q{q_buffer_.resize(n * hidden), n, hidden};
  const Matrix k{k_buffer_.resize(n * hidden), n, hidden};
  const Matrix v{v_buffer_.resize(n * hidden), n, hidden};
  rms_norm(compute_, h_, w.input_layernorm, config_.rms_norm_eps, a);
  clipped_linear(a, w.q_proj, q);
  clipped_linear(a, w.k_proj, k);
  clipped_linear(a, w.v_proj, v);
  const auto heads_of = [&](const Matrix& m) { return Matrix{m.data, n * config_.n_heads, dim}; };
  rms_norm(compute_, heads_of(q), w.q_norm, config_.rms_norm_eps, heads_of(q));
  rms_norm(compute_, heads_of(k), w.k_norm, config_.rms_norm_eps, heads_of(k));
  rms_norm(compute_, heads_of(v), {}, config_.rms_norm_eps, heads_of(v));
  compute_.pool->parallel_for(n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int head = 0; head < config_.n_heads; ++head) {
        for (float* x : {q.row(r) + head * dim, k.row(r) + head * dim}) {
          rope_x_.rotate(x, r % grid_w_);  // the first half of the head by the column, the second by the row
          rope_y_.rotate(x + dim / 2, r / grid_w_);
        }
      }
    }
  });

  // Both products of attention run over patches: scores from K transposed, lanes over patches; then P V with
  // V transposed, summed over patches.
  const int64_t padded = (n + 15) / 16 * 16;
  const Matrix kt{kt_buffer_.resize(hidden * padded), hidden, padded};
  const Matrix vt{vt_buffer_.resize(hidden * n), hidden, n};
  compute_.pool->parallel_for(config_.n_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      transpose_head(k, head, dim, kt);
      transpose_head(v, head, dim, vt);
      for (int64_t i = head * dim; i < (head + 1) * dim; ++i)
        std::fill(kt.row(i) + n, kt.row(i) + padded, 0.0f);
    }
  });
  v_input_.set(compute_, vt);
  const Kernels& kernels = *compute_.kernels;
  const int64_t blocks = (n + kQueryBlock - 1) / kQueryBlock;
  compute_.pool->parallel_for(config_.n_heads * blocks, 1, [&](int64_t begin, int64_t end) {
    thread_local Buffer<float> scores_buffer, p_buffer;
    thread_local Buffer<uint16_t> p_bf16_buffer;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / blocks, first = i % blocks * kQueryBlock,
                    rows = std::min(kQueryBlock, n - first);
      float* scores = scores_buffer.resize(kQueryBlock * padded);
      std::fill_n(scores, rows * padded, 0.0f);
      kernels.weighted_sum[static_cast<int>(Format::kF32)]({.p = q.row(first) + head * dim,
                                                            .p_stride = hidden,
                                                            .rows = static_cast<int>(rows),
                                                            .v = kt.row(head * dim),
                                                            .v_stride = padded,
                                                            .keys = static_cast<int>(dim),
                                                            .columns = padded,
                                                            .sum = scores,
                                                            .sum_stride = padded});
      float sums[kQueryBlock];
      for (int64_t r = 0; r < rows; ++r) {
        float* s = scores + r * padded;
        sums[r] = kernels.exp_sum(s, n, kernels.max(s, n));
      }
      DotTile dot{
          .x_stride = padded,
          .rows = static_cast<int>(rows),
          .w_stride = v_input_.stride(),
          .outputs = static_cast<int>(dim),
          .k = n,
          .y = q.row(first) + head * dim,  // this block of q has been used: its place takes the result
          .y_stride = hidden};
      if (v_input_.is_bf16()) {
        uint16_t* p = p_bf16_buffer.resize(kQueryBlock * padded);
        kernels.f32_to_bf16(scores, p, rows * padded);
        dot.x = p;
        dot.w = v_input_.bf16() + head * dim * v_input_.stride();
        kernels.dot_bf16[static_cast<int>(Format::kBF16)](dot);
      } else {
        if (compute_.dtype == DType::kBF16) kernels.round_to_bf16(scores, scores, rows * padded);
        dot.x = scores;
        dot.w = v_input_.f32() + head * dim * v_input_.stride();
        kernels.dot_f32[static_cast<int>(Format::kF32)](dot);
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < dim; ++c) dot.y[r * hidden + c] /= sums[r];
      }
    }
  });

  clipped_linear(q, w.o_proj, a);
  add_rms_norm(compute_, a, w.post_attention_layernorm, config_.rms_norm_eps, h_);
}

// h += RMS(down(gelu(gate(RMS(h))) * up(RMS(h))))
void VisionTower::add_mlp(const VisionLayerWeights& w) {
  const int64_t width = w.gate_proj.linear.out();
  for (int64_t begin = 0; begin < h_.rows; begin += kRowBlock) {
    const Matrix h{h_.row(begin), std::min(kRowBlock, h_.rows - begin), h_.columns};
    const Matrix a{a_buffer_.resize(h.rows * h.columns), h.rows, h.columns};
    const Matrix gate{gate_buffer_.resize(h.rows * width), h.rows, width};
    const Matrix up{up_buffer_.resize(h.rows * width), h.rows, width};
    rms_norm(compute_, h, w.pre_feedforward_layernorm, config_.rms_norm_eps, a);
    clipped_linear(a, w.gate_proj, gate);
    clipped_linear(a, w.up_proj, up);
    gelu_mul(compute_, gate, up.data, up.columns);
    clipped_linear(gate, w.down_proj, a);
    add_rms_norm(compute_, a, w.post_feedforward_layernorm, config_.rms_norm_eps, h);
  }
}

// The mean of each cell of patches, times sqrt(hidden).
Matrix VisionTower::pool(const ImagePatches& patches) {
  const int side = config_.pooling_kernel_size;
  const int64_t cells_w = patches.grid_w / side, cells_h = patches.grid_h / side;
  const Matrix pooled{pooled_buffer_.resize(cells_w * cells_h * h_.columns), cells_w * cells_h, h_.columns};
  const float patches_per_cell = static_cast<float>(side * side);
  const float scale = std::sqrt(static_cast<float>(config_.hidden_size));
  for (int64_t cell = 0; cell < pooled.rows; ++cell) {
    float* out = pooled.row(cell);
    std::fill_n(out, pooled.columns, 0.0f);
    for (int i = 0; i < side * side; ++i) {
      const int64_t y = cell / cells_w * side + i / side, x = cell % cells_w * side + i % side;
      const float* in = h_.row(y * grid_w_ + x);
      for (int64_t c = 0; c < pooled.columns; ++c) out[c] += in[c] / patches_per_cell;
    }
    for (int64_t c = 0; c < pooled.columns; ++c) out[c] *= scale;
  }
  return pooled;
}

}  // namespace jewel

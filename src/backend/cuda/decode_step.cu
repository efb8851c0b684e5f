#include "backend/cuda/decode_step.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "backend/cuda/decode_device.h"
#include "backend/cuda/decode_ple.h"

namespace jewel::cuda {
namespace {

// Enqueues one after another and remembers the first error.
class Chain {
 public:
  Chain(const DecodeStep& step, cudaStream_t stream) : s_(step), b_(step.buffers), stream_(stream) {
    pending_.h = b_.h[0];
    pending_.eps = s_.eps;
  }

  // next_norm, next: what stands in front of the product after the layer, and its weights; null and n = 0
  // where there is none.
  void layer(const DecodeLayer& l, const float* ple, const float* next_norm, const TiledWeight& next) {
    normed({.w = l.qkv, .out = b_.qkv, .ahead = ahead_of(l.gate_up), .keys = keys_of(l)}, l.input_norm);
    attend(l);
    const int width = l.attention.n_heads * l.attention.head_dim;
    plain(l.o, b_.attended, b_.y, width, true);
    owe(l.o, l.post_attention_norm, 1);
    normed({.w = l.gate_up,
            .out_kind = DecodeOut::kGatedUp,
            .out = b_.wide,
            .out_order = order_for(l.down),
            .out_scale = 1 / l.down.x_scale,
            .ahead = ahead_of_down(l.down)},
           l.pre_feedforward_norm);
    plain(l.down, b_.wide, b_.y, l.gate_up.n / 2);
    if (l.ple_gate.n == 0) {
      owe(l.down, l.post_feedforward_norm, l.layer_scalar);
      return;
    }
    owe(l.down, l.post_feedforward_norm, 1);
    if (!s_.portable && takes_ple(l.ple_gate, l.ple_up, s_.rows.n)) {
      ple_block(l, ple, next_norm, next);
      return;
    }
    normed({.w = l.ple_gate, .out_kind = DecodeOut::kGatedPle, .out = b_.ple_mid, .ple = ple}, nullptr);
    plain(l.ple_up, b_.ple_mid, b_.y, l.ple_gate.n);
    owe(l.ple_up, l.post_ple_norm, l.layer_scalar);
  }

  void head() {
    normed({.w = s_.head, .out_kind = DecodeOut::kLogits, .out = s_.logits, .tile_max = s_.tile_max},
           s_.final_norm);
  }

  // The residual stream with nothing owed to it.
  float* settle() {
    if (pending_.y != nullptr) {
      pending_.pre_norm = nullptr;
      keep(
          launch_decode_norm(pending_, s_.rows.n, s_.hidden, nullptr, XOrder::kSlots, !s_.portable, stream_));
      paid();
    }
    return b_.h[current_];
  }

  cudaError_t error() const { return error_; }

 private:
  void keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }

  // The update of the residual stream is left to whoever norms it next.
  void owe(const TiledWeight& w, const float* norm, float scale) {
    pending_.y = b_.y;
    pending_.y_parts = product_splits(w.k);
    pending_.post_norm = norm;
    pending_.scale = scale;
    pending_.h_out = b_.h[1 - current_];
  }
  void paid() {
    current_ = 1 - current_;
    pending_.h = b_.h[current_];
    pending_.y = nullptr;
  }

  void ple_block(const DecodeLayer& l, const float* ple, const float* next_norm, const TiledWeight& next) {
    pending_.pre_norm = nullptr;
    // Not b_.x: a cluster may write its rows there, in another order, while others still read theirs.
    keep(launch_decode_norm(pending_, s_.rows.n, s_.hidden, b_.wide, XOrder::kSlots, true, stream_));
    paid();
    DecodeNorm norm = pending_;
    norm.post_norm = l.post_ple_norm;
    norm.scale = l.layer_scalar;
    norm.h_out = b_.h[1 - current_];
    norm.pre_norm = next_norm;
    keep(launch_decode_ple({.gate = l.ple_gate,
                            .up = l.ple_up,
                            .rows = s_.rows.n,
                            .x = b_.wide,
                            .ple = ple,
                            .ple_stride = s_.per_layer_stride,
                            .norm = norm,
                            .x_out = next_norm != nullptr ? b_.x : nullptr,
                            .x_out_order = order_for(next)},
                           stream_));
    paid();
    x_is_normed_ = next_norm != nullptr;
  }

  // What memory has time for while qkv waits for the layer before: little, or attention's keys come later.
  // With few rows it is the tiles behind those that gate-up's blocks (two an SM) ask for before they wait;
  // with more all tiles are under way together, and their ends come last. Measured up to 32 rows.
  WeightsAhead ahead_of(const TiledWeight& gate_up) const {
    constexpr int kFewRowsBytes = 4 << 20, kTileEnd = 4096;
    const int tile = 16 * gate_up.k * (gate_up.format == TileFormat::kBF16 ? 2 : 1), tiles = gate_up.n / 16;
    const auto* from = static_cast<const std::byte*>(gate_up.tiles);
    if (s_.portable || s_.rows.n > 32 || tile < kTileEnd) return {};
    if (s_.rows.n > 8) return {from + tile - kTileEnd, tile, kTileEnd, tiles};
    const int asked = 4 * product_device().sms;
    return {from + int64_t{asked} * tile, tile, tile, std::clamp(tiles - asked, 0, kFewRowsBytes / tile)};
  }

  // The start of each part of down's row tiles, for its blocks find room only when gate-up's have ended.
  // Where down is by the same kind of kernel as gate-up, measured up to 32 rows; more bytes gain no more.
  WeightsAhead ahead_of_down(const TiledWeight& down) const {
    constexpr int kPartStart = 4096;
    const int splits = product_splits(down.k),
              part = 16 * down.k * (down.format == TileFormat::kBF16 ? 2 : 1) / splits;
    if (s_.portable || s_.rows.n <= 8 || s_.rows.n > 32 || part < kPartStart) return {};
    return {down.tiles, part, kPartStart, down.n / 16 * splits};
  }

  // With few rows memory has time for these too; with more the product's input would stand behind them.
  KeysAhead keys_of(const DecodeLayer& l) const {
    constexpr int64_t kMostBytes = 20 << 20;
    const int window = l.attention.window;
    const int keys = window > 0 ? std::min(window, s_.max_context) : s_.max_context;
    const int pages = keys / 16 + 1, bytes = static_cast<int>(kv_page_bytes(l.attention, l.kv.format));
    if (s_.portable || s_.rows.n > 8 || int64_t{s_.rows.n} * pages * bytes > kMostBytes) return {};
    return {.data = l.kv.data,
            .page_table = l.kv.page_table,
            .positions = s_.rows.positions,
            .slots = s_.rows.slots,
            .max_pages = l.kv.max_pages,
            .page_bytes = bytes,
            .window = window,
            .pages = pages};
  }

  XOrder order_for(const TiledWeight& w) const { return x_order_of(w, s_.rows.n, s_.portable); }

  // The product p of what `norm` makes of the residual stream.
  void normed(DecodeProduct p, const float* norm) {
    pending_.pre_norm = norm;
    p.rows = s_.rows.n;
    p.x = std::exchange(x_is_normed_, false) ? b_.x : nullptr;
    p.x_order = order_for(p.w);
    p.norm = pending_;
    p.x_scratch = b_.x;
    p.ple_stride = s_.per_layer_stride;
    p.cap = s_.softcap;
    p.portable = s_.portable;
    keep(launch_decode_product(p, stream_));
    if (pending_.y != nullptr) paid();
  }

  void plain(const TiledWeight& w, const void* x, float* out, int k, bool late_release = false) {
    if (w.k != k) keep(cudaErrorInvalidValue);
    keep(launch_decode_product({.w = w,
                                .rows = s_.rows.n,
                                .x = x,
                                .x_order = order_for(w),
                                .out = out,
                                .late_release = late_release,
                                .portable = s_.portable},
                               stream_));
  }

  void attend(const DecodeLayer& l) {
    const DecodeAttention attention{.shape = l.attention,
                                    .kv = l.kv,
                                    .rope = l.rope,
                                    .norms = l.head_norms,
                                    .rows = s_.rows,
                                    .qkv = b_.qkv,
                                    .qkv_stride = l.qkv.n,
                                    .owns_kv = l.owns_kv,
                                    .max_context = s_.max_context,
                                    .out = b_.attended,
                                    .out_order = order_for(l.o),
                                    .workspace = b_.attention_workspace,
                                    .workspace_rows = b_.attention_workspace_rows};
    keep(launch_decode_attention(attention, s_.attention_design, stream_));
  }

  const DecodeStep& s_;
  const DecodeBuffers& b_;
  cudaStream_t stream_;
  DecodeNorm pending_;
  int current_ = 0;
  bool x_is_normed_ = false;  // b_.x holds the input of the next normed()
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

cudaError_t launch_decode_step(const DecodeStep& step, cudaStream_t stream, float** h_end) {
  Chain chain(step, stream);
  const float* ple = step.per_layer_inputs;
  for (size_t i = 0; i < step.layers.size(); ++i) {
    const DecodeLayer& layer = step.layers[i];
    const bool last = i + 1 == step.layers.size();
    const float* next_norm = !last             ? step.layers[i + 1].input_norm
                             : step.head.n > 0 ? step.final_norm
                                               : nullptr;
    chain.layer(layer, ple, next_norm, last ? step.head : step.layers[i + 1].qkv);
    if (ple != nullptr) ple += layer.ple_gate.n;
  }
  if (step.head.n > 0) {
    chain.head();
  } else if (float* h = chain.settle(); h_end != nullptr) {
    *h_end = h;
  }
  return chain.error();
}

}  // namespace jewel::cuda

#include "backend/cpu/linear.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace jewel {
namespace {

// From this many rows on a tile of weights is widened once and used by all of them. Widening E4M3 to bf16 in
// registers costs little next to four rows of dot products; to float32 it costs more than they do.
constexpr int64_t kWidenRowsBf16 = 32;
constexpr int64_t kWidenRowsF32 = 8;
// Outputs that one thread takes at a time. For few rows: a stretch of memory long enough to read as a stream
// (64 x 2560 in FP8 is 160 KB) and enough pieces to share. For many: the widened tile (16 x 10240 in bf16 is
// 320 KB) stays in the second-level cache.
constexpr int64_t kFewRowsOutputs = 64;
constexpr int64_t kTileOutputs = 16;

const std::byte* weight_row(const LinearWeight& w, int64_t output) {
  return w.weight.data + output * w.in() * static_cast<int64_t>(dtype_bytes(w.weight.dtype));
}

// The widened copy of a tile, one per thread, living as long as the thread.
template <typename T>
T* widened_tile(int64_t count) {
  thread_local Buffer<T> buffer;
  return buffer.resize(count);
}

void widen(const Kernels& kernels, Format format, const void* w, int64_t n, uint16_t* out) {
  JEWEL_CHECK(format == Format::kF8E4M3);
  kernels.f8_to_bf16(static_cast<const uint8_t*>(w), out, n);
}

void widen(const Kernels& kernels, Format format, const void* w, int64_t n, float* out) {
  if (format == Format::kF8E4M3) return kernels.f8_to_f32(static_cast<const uint8_t*>(w), out, n);
  kernels.bf16_to_f32(static_cast<const uint16_t*>(w), out, n);
}

void scale_outputs(const std::vector<float>& scale, int64_t first_output, const DotTile& tile) {
  for (int r = 0; r < tile.rows; ++r) {
    float* y = tile.y + r * tile.y_stride;
    for (int o = 0; o < tile.outputs; ++o) {
      y[o] *= scale[scale.size() == 1 ? 0 : static_cast<size_t>(first_output + o)];
    }
  }
}

}  // namespace

Format format_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return Format::kF32;
    case DType::kBF16:
      return Format::kBF16;
    case DType::kF8E4M3:
      return Format::kF8E4M3;
    default:
      JEWEL_CHECK(false, "no kernels for {}", dtype_name(dtype));
  }
}

void ProductInput::set(const Compute& compute, const Matrix& x, float min, float max) {
  set_with(compute, x, true, min, max);
}

void ProductInput::set(const Compute& compute, const Matrix& x) {
  set_with(compute, x, false, 0, 0);
}

void ProductInput::set_with(const Compute& compute, const Matrix& x, bool clamp, float min, float max) {
  rows_ = x.rows;
  columns_ = x.columns;
  stride_ = (columns_ + 31) / 32 * 32 + 32;
  is_bf16_ =
      compute.dtype == DType::kBF16 && compute.kernels->dot_bf16[static_cast<int>(Format::kBF16)] != nullptr;
  has_f32_ = !is_bf16_;
  uint16_t* bf16 = is_bf16_ ? bf16_.resize(rows_ * stride_) : nullptr;
  float* f32 = is_bf16_ ? nullptr : f32_.resize(rows_ * stride_);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns_));
  compute.pool->parallel_for(rows_, grain, [&](int64_t begin, int64_t end) {
    thread_local Buffer<float> clamped;
    for (int64_t r = begin; r < end; ++r) {
      const float* in = x.row(r);
      if (clamp) {
        float* out = clamped.resize(columns_);
        for (int64_t i = 0; i < columns_; ++i) out[i] = std::clamp(in[i], min, max);
        in = out;
      }
      if (is_bf16_) {
        compute.kernels->f32_to_bf16(in, bf16 + r * stride_, columns_);
      } else if (compute.dtype == DType::kBF16) {
        compute.kernels->round_to_bf16(in, f32 + r * stride_, columns_);
      } else {
        std::copy_n(in, columns_, f32 + r * stride_);
      }
    }
  });
}

const float* ProductInput::as_f32(const Compute& compute) {
  if (!has_f32_) {
    float* f32 = f32_.resize(rows_ * stride_);
    for (int64_t r = 0; r < rows_; ++r) {
      compute.kernels->bf16_to_f32(bf16_.data() + r * stride_, f32 + r * stride_, columns_);
    }
    has_f32_ = true;
  }
  return f32_.data();
}

void linear(const Compute& compute, ProductInput& x, const LinearWeight& w, const Matrix& y,
            int64_t first_output) {
  JEWEL_CHECK(x.columns() == w.in() && y.rows == x.rows(), "product of [{}, {}] with [{}, {}] into {} rows",
              x.rows(), x.columns(), w.out(), w.in(), y.rows);
  JEWEL_CHECK(first_output + y.columns <= w.out(), "outputs {} to {} of {}", first_output,
              first_output + y.columns, w.out());
  if (x.rows() == 0) return;
  const Kernels& kernels = *compute.kernels;
  const Format format = format_of(w.weight.dtype);
  const bool as_bf16 = x.is_bf16() && kernels.dot_bf16[static_cast<int>(format)] != nullptr;
  const Format widest = as_bf16 ? Format::kBF16 : Format::kF32;
  const bool many_rows = x.rows() >= (as_bf16 ? kWidenRowsBf16 : kWidenRowsF32);
  const bool widen_tile = many_rows && format != widest;
  const auto* dots = as_bf16 ? kernels.dot_bf16 : kernels.dot_f32;
  const auto dot = dots[static_cast<int>(widen_tile ? widest : format)];
  const void* inputs = as_bf16 ? static_cast<const void*>(x.bf16()) : x.as_f32(compute);

  compute.pool->parallel_for(y.columns, many_rows ? kTileOutputs : kFewRowsOutputs,
                             [&](int64_t begin, int64_t end) {
                               DotTile tile{.x = inputs,
                                            .x_stride = x.stride(),
                                            .rows = static_cast<int>(x.rows()),
                                            .w = weight_row(w, first_output + begin),
                                            .w_stride = w.in(),
                                            .outputs = static_cast<int>(end - begin),
                                            .k = w.in(),
                                            .y = y.data + begin,
                                            .y_stride = y.columns};
                               if (widen_tile) {
                                 const int64_t count = (end - begin) * w.in();
                                 if (as_bf16) {
                                   uint16_t* wide = widened_tile<uint16_t>(count);
                                   widen(kernels, format, tile.w, count, wide);
                                   tile.w = wide;
                                 } else {
                                   float* wide = widened_tile<float>(count);
                                   widen(kernels, format, tile.w, count, wide);
                                   tile.w = wide;
                                 }
                               }
                               dot(tile);
                               if (!w.scale.empty()) scale_outputs(w.scale, first_output + begin, tile);
                             });
}

}  // namespace jewel

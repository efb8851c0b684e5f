#include "backend/cpu/ops.h"

#include <algorithm>
#include <cmath>

namespace jewel {
namespace {

// Rows per piece of work so that a piece is worth handing out (about 16K values).
int64_t rows_grain(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

float inverse_rms(const Kernels& kernels, const float* x, int64_t n, float eps) {
  return 1.0f / std::sqrt(kernels.sum_of_squares(x, n) / static_cast<float>(n) + eps);
}

}  // namespace

void rms_norm(const Compute& compute, const Matrix& x, std::span<const float> weight, float eps,
              const Matrix& out) {
  compute.pool->parallel_for(x.rows, rows_grain(x.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = x.row(r);
      float* y = out.row(r);
      const float scale = inverse_rms(*compute.kernels, in, x.columns, eps);
      if (weight.empty()) {
        for (int64_t i = 0; i < x.columns; ++i) y[i] = in[i] * scale;
      } else {
        for (int64_t i = 0; i < x.columns; ++i) y[i] = in[i] * scale * weight[static_cast<size_t>(i)];
      }
    }
  });
}

void add_rms_norm(const Compute& compute, const Matrix& x, std::span<const float> weight, float eps,
                  const Matrix& h) {
  compute.pool->parallel_for(x.rows, rows_grain(x.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = x.row(r);
      float* y = h.row(r);
      const float scale = inverse_rms(*compute.kernels, in, x.columns, eps);
      for (int64_t i = 0; i < x.columns; ++i) y[i] += in[i] * scale * weight[static_cast<size_t>(i)];
    }
  });
}

void gelu_mul(const Compute& compute, const Matrix& gate, const float* up, int64_t up_stride) {
  // A single row of a decode step is wide enough to be shared, so the pieces are pieces of columns.
  constexpr int64_t kPiece = 2048;
  const int64_t pieces = (gate.columns + kPiece - 1) / kPiece;
  compute.pool->parallel_for(gate.rows * pieces, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / pieces, first = i % pieces * kPiece;
      compute.kernels->gelu_mul(gate.row(r) + first, up + r * up_stride + first,
                                std::min(kPiece, gate.columns - first));
    }
  });
}

void softcap(const Compute& compute, const Matrix& x, float cap) {
  if (cap == 0) return;
  compute.pool->parallel_for(x.rows * x.columns, 8192, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x.data[i] = std::tanh(x.data[i] / cap) * cap;
  });
}

void RopeTable::compute(const Compute& compute, std::span<const int> positions,
                        std::span<const float> frequencies) {
  half_ = static_cast<int64_t>(frequencies.size());
  cos_.resize(positions.size() * frequencies.size());
  sin_.resize(cos_.size());
  compute.pool->parallel_for(static_cast<int64_t>(positions.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float position = static_cast<float>(positions[static_cast<size_t>(r)]);
      for (int64_t i = 0; i < half_; ++i) {
        const double angle = position * frequencies[static_cast<size_t>(i)];
        cos_[static_cast<size_t>(r * half_ + i)] = static_cast<float>(std::cos(angle));
        sin_[static_cast<size_t>(r * half_ + i)] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void RopeTable::rotate(float* x, int64_t row) const {
  const float* c = cos_.data() + row * half_;
  const float* s = sin_.data() + row * half_;
  for (int64_t i = 0; i < half_; ++i) {
    const float a = x[i], b = x[i + half_];
    x[i] = a * c[i] - b * s[i];
    x[i + half_] = b * c[i] + a * s[i];
  }
}

}  // namespace jewel

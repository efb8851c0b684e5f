// Products with weights: y = W x over rows, in the weights' own format, on all threads.
//
// In kBF16 the inputs of a product are rounded to bf16 right before it; sums are float32. In kF32 nothing is
// rounded. A result depends on its row of x and its row of W alone, bitwise: not on the number of rows,
// threads or outputs.
//
// FP8 and (without BF16 dot products) BF16 weights are widened in registers when few rows use them, and tile
// by tile into a small buffer of each thread when many do. Both ways multiply the same values in the same
// order.
#pragma once

#include <span>

#include "backend/cpu/buffer.h"
#include "backend/cpu/kernels.h"
#include "base/threads.h"
#include "model/dtype.h"
#include "model/weights.h"

namespace jewel {

// What arithmetic needs to know about the machine and the mode.
struct Compute {
  const Kernels* kernels = nullptr;
  ThreadPool* pool = nullptr;
  DType dtype = DType::kBF16;  // kBF16 or kF32

  float round_if_bf16(float value) const { return dtype == DType::kBF16 ? round_to_bf16(value) : value; }
};

Format format_of(DType dtype);  // checks that the dtype is one of the three

// Rows of inputs, rounded and stored as the kernels want them. Reused from product to product.
class ProductInput {
 public:
  // Takes `x` [rows, columns], clamped to [min, max]. The values are copied.
  void set(const Compute& compute, const Matrix& x, float min, float max);
  void set(const Compute& compute, const Matrix& x);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  bool is_bf16() const { return is_bf16_; }
  const uint16_t* bf16() const { return bf16_.data(); }
  const float* f32() const { return f32_.data(); }
  // The same inputs as float32, for weights without a BF16 kernel; made when first asked for.
  const float* as_f32(const Compute& compute);

 private:
  void set_with(const Compute& compute, const Matrix& x, bool clamp, float min, float max);

  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t stride_ = 0;  // columns, padded so that rows do not share a cache set
  bool is_bf16_ = false;
  bool has_f32_ = false;
  Buffer<uint16_t> bf16_;
  Buffer<float> f32_;
};

// y[r, o - first_output] = scale[o] * sum over k of W[o, k] x[r, k], for outputs [first_output, first_output
// + y.columns).
void linear(const Compute& compute, ProductInput& x, const LinearWeight& w, const Matrix& y,
            int64_t first_output = 0);

}  // namespace jewel

// Operations over rows of float32 activations, everything that is not a product with weights. In place unless
// said. What each means is in ops_ref.h. Rows are shared among threads; a row's result does not depend on the
// others.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/buffer.h"
#include "backend/cpu/linear.h"

namespace jewel {

// out = RMS(x; weight), row by row; weight empty: none. `out` may be `x`.
void rms_norm(const Compute& compute, const Matrix& x, std::span<const float> weight, float eps,
              const Matrix& out);

// h += RMS(x; weight)
void add_rms_norm(const Compute& compute, const Matrix& x, std::span<const float> weight, float eps,
                  const Matrix& h);

// gate = gelu_tanh(gate) * up, where up's rows may lie apart (a slice of columns of a larger matrix).
void gelu_mul(const Compute& compute, const Matrix& gate, const float* up, int64_t up_stride);

// x = cap * tanh(x / cap); cap 0: nothing.
void softcap(const Compute& compute, const Matrix& x, float cap);

// Cosines and sines of some positions, for one list of frequencies.
class RopeTable {
 public:
  // Angles are float32 products as in the reference, their cosine and sine are computed in double and
  // rounded.
  void compute(const Compute& compute, std::span<const int> positions, std::span<const float> frequencies);
  // Rotates pairs (i, i + n/2) of x, n = 2 * frequencies.
  void rotate(float* x, int64_t row) const;

 private:
  int64_t half_ = 0;
  std::vector<float> cos_;  // [positions, half]
  std::vector<float> sin_;
};

}  // namespace jewel

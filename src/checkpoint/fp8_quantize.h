// BF16 weights to E4M3 codes, bit for bit as the compressed-tensors library does it on BF16 tensors.
//
//   scale = bf16(amax / 448), and 2^-7 where that is zero
//   code  = e4m3(clamp(bf16(w / scale), -448, 448)), every rounding to nearest even
//
// The quotient is rounded to BF16 before it becomes a code, a double rounding that belongs to the format's
// producers. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>

namespace jewel {

struct Bf16Range {
  float amax = 0;          // largest magnitude of the finite values
  bool all_finite = true;  // no NaN, no infinity
};
Bf16Range bf16_range(std::span<const uint16_t> values);

// The stored scale of a tensor or row with that amax; a BF16 value.
float fp8_scale(float amax);

// codes[i] for values[i]; both of the same length.
void quantize_fp8(std::span<const uint16_t> values, float scale, std::span<uint8_t> codes);

// What quantizing cost, summed over tiles of one tensor.
struct Fp8Error {
  double signal = 0;           // sum of w^2
  double noise = 0;            // sum of (w - code * scale)^2
  float max_error = 0;         // largest |w - code * scale|
  int64_t clipped = 0;         // values whose quotient lies beyond ±448
  int64_t saturated_rows = 0;  // rows that hold a code of ±448
  int64_t zero_rows = 0;       // rows whose codes are all zero

  double sqnr_db() const;  // infinite when nothing was lost
  void add(const Fp8Error& other);
};
// One row of a weight and its codes.
Fp8Error fp8_row_error(std::span<const uint16_t> values, std::span<const uint8_t> codes, float scale);

}  // namespace jewel

#include "checkpoint/fp8_quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "model/dtype.h"

namespace jewel {
namespace {

constexpr float kFp8Max = 448.0f;
constexpr float kBf16Epsilon = 0.0078125f;  // 2^-7, what a zero scale becomes
constexpr uint32_t kInfinity = 0x7f80;      // of a BF16's lower 15 bits; NaNs are above

// f32_to_f8e4m3 of model/dtype.h without branches, so that the loop over it becomes SIMD: three mantissa bits
// are kept by adding half of the rest; below 2^-6 steps of 2^-9 are counted by adding 2^14, whose last bit
// that is.
inline uint8_t code_of(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  magnitude = magnitude > kFp8Max ? kFp8Max : magnitude;
  const uint32_t m = std::bit_cast<uint32_t>(magnitude);
  const uint32_t normal = ((m + 0x7ffffu + ((m >> 20) & 1u)) >> 20) - (120u << 3);
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(magnitude + 16384.0f) - std::bit_cast<uint32_t>(16384.0f);
  return static_cast<uint8_t>((magnitude < 0.015625f ? subnormal : normal) | (bits >> 24 & 0x80u));
}

}  // namespace

Bf16Range bf16_range(std::span<const uint16_t> values) {
  // Magnitudes of BF16 order like their bits.
  uint16_t largest = 0;
  uint16_t largest_finite = 0;
  for (const uint16_t value : values) {
    const auto magnitude = static_cast<uint16_t>(value & 0x7fff);
    largest = std::max(largest, magnitude);
    largest_finite = std::max<uint16_t>(largest_finite, magnitude < kInfinity ? magnitude : 0);
  }
  return {.amax = bf16_to_f32(largest_finite), .all_finite = largest < kInfinity};
}

float fp8_scale(float amax) {
  const float scale = round_to_bf16(amax / kFp8Max);
  return scale == 0 ? kBf16Epsilon : scale;
}

void quantize_fp8(std::span<const uint16_t> values, float scale, std::span<uint8_t> codes) {
  JEWEL_CHECK(values.size() == codes.size(), "{} values, {} codes", values.size(), codes.size());
  const uint16_t* in = values.data();
  uint8_t* out = codes.data();
  for (size_t i = 0; i < values.size(); ++i) {
    const float quotient = bf16_to_f32(in[i]) / scale;
    const uint32_t bits = std::bit_cast<uint32_t>(quotient);  // finite: checked before
    out[i] = code_of(std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u));
  }
}

double Fp8Error::sqnr_db() const {
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

void Fp8Error::add(const Fp8Error& other) {
  signal += other.signal;
  noise += other.noise;
  max_error = std::max(max_error, other.max_error);
  clipped += other.clipped;
  saturated_rows += other.saturated_rows;
  zero_rows += other.zero_rows;
}

Fp8Error fp8_row_error(std::span<const uint16_t> values, std::span<const uint8_t> codes, float scale) {
  const float* decoded = f8e4m3_table();
  Fp8Error error;
  bool saturated = false;
  bool zero = true;
  for (size_t i = 0; i < values.size(); ++i) {
    const float w = bf16_to_f32(values[i]);
    const float difference = w - decoded[codes[i]] * scale;
    error.signal += static_cast<double>(w) * w;
    error.noise += static_cast<double>(difference) * difference;
    error.max_error = std::max(error.max_error, std::fabs(difference));
    error.clipped += std::fabs(w / scale) > kFp8Max ? 1 : 0;
    saturated |= (codes[i] & 0x7f) == 0x7e;
    zero &= (codes[i] & 0x7f) == 0;
  }
  error.saturated_rows = saturated ? 1 : 0;
  error.zero_rows = zero ? 1 : 0;
  return error;
}

}  // namespace jewel

// Number formats of checkpoints and caches: names, sizes, and exact conversions of single values.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace jewel {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kI64, kI32, kU8 };

// The name as safetensors writes it ("BF16", "F8_E4M3"); nullopt for formats that Jewel does not read.
std::string_view dtype_name(DType dtype);
std::optional<DType> dtype_from_name(std::string_view name);
size_t dtype_bytes(DType dtype);

// bfloat16 is the upper half of a float32. Rounds to nearest, ties to even; NaN stays NaN.
inline float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float round_to_bf16(float value) {
  return bf16_to_f32(f32_to_bf16(value));
}

float f16_to_f32(uint16_t bits);

// E4M3FN: 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity, NaN 0x7f and 0xff, largest value 448.
float f8e4m3_to_f32(uint8_t bits);
// Rounds to nearest, ties to even; values beyond ±448 are clamped, NaN becomes 0x7f.
uint8_t f32_to_f8e4m3(float value);

// All 256 codes decoded.
const float* f8e4m3_table();

}  // namespace jewel

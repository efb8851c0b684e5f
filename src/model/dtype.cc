#include "model/dtype.h"

#include <array>
#include <cmath>

namespace jewel {
namespace {

struct Name {
  DType dtype;
  std::string_view name;
  size_t bytes;
};
constexpr std::array<Name, 7> kNames = {{{DType::kF32, "F32", 4},
                                         {DType::kBF16, "BF16", 2},
                                         {DType::kF16, "F16", 2},
                                         {DType::kF8E4M3, "F8_E4M3", 1},
                                         {DType::kI64, "I64", 8},
                                         {DType::kI32, "I32", 4},
                                         {DType::kU8, "U8", 1}}};

constexpr int kF8Bias = 7;
constexpr float kF8Max = 448.0f;

std::array<float, 256> make_f8_table() {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), 1 - kF8Bias - 3)
                                    : std::ldexp(static_cast<float>(8 + mantissa), exponent - kF8Bias - 3);
    if ((code & 0x7f) == 0x7f) magnitude = std::nanf("");
    table[static_cast<size_t>(code)] = (code & 0x80) != 0 ? -magnitude : magnitude;
  }
  return table;
}

const std::array<float, 256> kF8Table = make_f8_table();

}  // namespace

std::string_view dtype_name(DType dtype) {
  return kNames[static_cast<size_t>(dtype)].name;
}
size_t dtype_bytes(DType dtype) {
  return kNames[static_cast<size_t>(dtype)].bytes;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const Name& entry : kNames) {
    if (entry.name == name) return entry.dtype;
  }
  return std::nullopt;
}

float f16_to_f32(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : std::nanf("");
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

float f8e4m3_to_f32(uint8_t bits) {
  return kF8Table[bits];
}
const float* f8e4m3_table() {
  return kF8Table.data();
}

uint8_t f32_to_f8e4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return 0x7f;
  const float magnitude = std::min(std::fabs(value), kF8Max);
  // The spacing of codes around the magnitude: 2^(exponent-3), and 2^-9 in the subnormal range. nearbyint
  // rounds ties to even, and even counts of spacings are even codes.
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -100, 1 - kF8Bias);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
  // steps is 0..7 in the subnormal range and 8..16 above; 16 carries into the next exponent by itself.
  const int code = steps + ((exponent + kF8Bias - 1) << 3);
  return static_cast<uint8_t>(sign | code);
}

}  // namespace jewel

// Loops that every instruction set shares, written once over a few vector operations. Included by the
// kernels_*.cc files only, each of which is compiled with its own -m flags: everything here is in an unnamed
// namespace, and no inline function from elsewhere is called (see kernels.h; a test looks at the symbols).
//
// A `Dot` says how products are formed: kStep values of k at a time into one accumulator of lanes.
//   Acc, X, W            register types
//   XElement, WElement   element types in memory
//   load_x/load_w        kStep elements;  *_tail: the first n < kStep, the rest zero
//   mac(acc, x, w)       acc + x * w, lane by lane
//   store_sums(acc…)     reduces by the fixed tree
#pragma once

#include <cstdint>

#include "backend/cpu/kernels.h"

namespace jewel {
namespace {

// The block [MR rows, NR outputs] of a tile, in registers. kAhead: asks for the weights of the next block of
// outputs while it works, because a row of weights is too short for the hardware to see a stream in it.
template <typename Dot, int MR, int NR, bool kAhead>
inline __attribute__((always_inline)) void dot_block(const DotTile& t, int row, int output) {
  const auto* x = static_cast<const typename Dot::XElement*>(t.x) + row * t.x_stride;
  const auto* w = static_cast<const typename Dot::WElement*>(t.w) + output * t.w_stride;
  typename Dot::Acc acc[MR][NR];
  for (int r = 0; r < MR; ++r) {
    for (int o = 0; o < NR; ++o) acc[r][o] = Dot::zero();
  }
  int64_t k = 0;
  for (; k + Dot::kStep <= t.k; k += Dot::kStep) {
    typename Dot::W wk[NR];
    for (int o = 0; o < NR; ++o) wk[o] = Dot::load_w(w + o * t.w_stride + k);
    if constexpr (kAhead) {
      for (int o = 0; o < NR; ++o) __builtin_prefetch(w + (NR + o) * t.w_stride + k, 0, 2);
    }
    for (int r = 0; r < MR; ++r) {
      const typename Dot::X xk = Dot::load_x(x + r * t.x_stride + k);
      for (int o = 0; o < NR; ++o) acc[r][o] = Dot::mac(acc[r][o], xk, wk[o]);
    }
  }
  if (const int rest = static_cast<int>(t.k - k); rest > 0) {
    typename Dot::W wk[NR];
    for (int o = 0; o < NR; ++o) wk[o] = Dot::load_w_tail(w + o * t.w_stride + k, rest);
    for (int r = 0; r < MR; ++r) {
      const typename Dot::X xk = Dot::load_x_tail(x + r * t.x_stride + k, rest);
      for (int o = 0; o < NR; ++o) acc[r][o] = Dot::mac(acc[r][o], xk, wk[o]);
    }
  }
  for (int r = 0; r < MR; ++r) {
    Dot::template store_sums<NR>(acc[r], t.y + (row + r) * t.y_stride + output);
  }
}

// All rows of NR outputs, kRows, 2 and 1 at a time.
template <typename Dot, int NR>
inline __attribute__((always_inline)) void dot_outputs(const DotTile& t, int output) {
  constexpr int MR = Dot::kRows;
  int row = 0;
  if (t.rows >= MR) {
    dot_block<Dot, MR, NR, true>(t, row, output);
    row += MR;
  }
  for (; row + MR <= t.rows; row += MR) dot_block<Dot, MR, NR, false>(t, row, output);
  if constexpr (MR > 2) {
    for (; row + 2 <= t.rows; row += 2) dot_block<Dot, 2, NR, true>(t, row, output);
  }
  for (; row < t.rows; ++row) dot_block<Dot, 1, NR, true>(t, row, output);
}

// Outputs in the outer loop: their weights are read from memory once, and the rows (small) come from cache.
template <typename Dot>
void dot_tile(const DotTile& t) {
  int output = 0;
  for (; output + Dot::kOutputs <= t.outputs; output += Dot::kOutputs)
    dot_outputs<Dot, Dot::kOutputs>(t, output);
  for (; output < t.outputs; ++output) dot_outputs<Dot, 1>(t, output);
}

// `Lanes` is a float32 vector: kLanes, Reg, Element, load(const float*), store, broadcast, mac; load_v
// widens.
template <typename Lanes, int MR, int NV>
inline __attribute__((always_inline)) void weighted_sum_block(const WeightedSum& s, int row, int64_t column) {
  const auto* v = static_cast<const typename Lanes::Element*>(s.v) + column;
  float* sum = s.sum + row * s.sum_stride + column;
  typename Lanes::Reg acc[MR][NV];
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < NV; ++i) acc[r][i] = Lanes::load(sum + r * s.sum_stride + i * Lanes::kLanes);
  }
  for (int key = 0; key < s.keys; ++key) {
    typename Lanes::Reg vk[NV];
    for (int i = 0; i < NV; ++i) vk[i] = Lanes::load_v(v + key * s.v_stride + i * Lanes::kLanes);
    for (int r = 0; r < MR; ++r) {
      const typename Lanes::Reg p = Lanes::broadcast(s.p[(row + r) * s.p_stride + key]);
      for (int i = 0; i < NV; ++i) acc[r][i] = Lanes::mac(acc[r][i], p, vk[i]);
    }
  }
  for (int r = 0; r < MR; ++r) {
    for (int i = 0; i < NV; ++i) Lanes::store(sum + r * s.sum_stride + i * Lanes::kLanes, acc[r][i]);
  }
}

template <typename Lanes, int NV>
inline __attribute__((always_inline)) void weighted_sum_columns(const WeightedSum& s, int64_t column) {
  int row = 0;
  for (; row + Lanes::kRows <= s.rows; row += Lanes::kRows)
    weighted_sum_block<Lanes, Lanes::kRows, NV>(s, row, column);
  for (; row < s.rows; ++row) weighted_sum_block<Lanes, 1, NV>(s, row, column);
}

template <typename Lanes>
void weighted_sum(const WeightedSum& s) {
  constexpr int kWide = Lanes::kVectors * Lanes::kLanes;
  constexpr int kNarrow = 16 / Lanes::kLanes;
  int64_t column = 0;
  for (; column + kWide <= s.columns; column += kWide)
    weighted_sum_columns<Lanes, Lanes::kVectors>(s, column);
  for (; column < s.columns; column += 16) weighted_sum_columns<Lanes, kNarrow>(s, column);
}

// exp(x) to about 1 ulp for x <= 88, without branches so that it vectorizes: 2^n * e^r with n = round(x / ln
// 2) and |r| <= ln(2)/2, ln 2 in two parts, e^r by its Taylor polynomial of degree 7 (the rest is below
// 2^-27). Values below -87 give exp(-87), about 1.6e-38: next to the 1 that every softmax contains it
// vanishes.
inline __attribute__((always_inline)) float exp_lane(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: leaves n in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = (p * r) * r + r + 1.0f;
  return p * __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, shifted) + 127u) << 23);
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): the same function without the
// cancellation of 1 + tanh(u) for negative u.
void gelu_mul(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float u = 0.79788456f * (x + 0.044715f * (x * x * x));
    gate[i] = x / (1.0f + exp_lane(-2.0f * u)) * up[i];
  }
}

// Sums over a row: 16 lanes, then a fixed tree.
constexpr int kSumLanes = 16;
inline __attribute__((always_inline)) float sum_lanes(float* lane) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

float exp_sum(float* x, int64_t n, float max) {
  float lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) {
      const float e = exp_lane(x[i + j] - max);
      x[i + j] = e;
      lane[j] += e;
    }
  }
  for (int j = 0; i < n; ++i, ++j) {
    x[i] = exp_lane(x[i] - max);
    lane[j] += x[i];
  }
  return sum_lanes(lane);
}

float sum_of_exp(const float* x, int64_t n, float max) {
  float lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lane[j] += exp_lane(x[i + j] - max);
  }
  for (int j = 0; i < n; ++i, ++j) lane[j] += exp_lane(x[i] - max);
  return sum_lanes(lane);
}

float sum_of_squares(const float* x, int64_t n) {
  float lane[kSumLanes] = {};
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lane[j] += x[i + j] * x[i + j];
  }
  for (int j = 0; i < n; ++i, ++j) lane[j] += x[i] * x[i];
  return sum_lanes(lane);
}

float max_of(const float* x, int64_t n) {
  float lane[kSumLanes];
  for (int j = 0; j < kSumLanes; ++j) lane[j] = -__builtin_inff();
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (int j = 0; j < kSumLanes; ++j) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  }
  for (int j = 0; i < n; ++i, ++j) lane[j] = x[i] > lane[j] ? x[i] : lane[j];
  for (int j = 1; j < kSumLanes; ++j) lane[0] = lane[j] > lane[0] ? lane[j] : lane[0];
  return lane[0];
}

// Single values, as in model/dtype.h, whose inline functions must not be compiled here.
inline __attribute__((always_inline)) uint16_t bf16_bits(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
inline __attribute__((always_inline)) float bf16_value(uint16_t bits) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

void f32_to_bf16_loop(const float* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_bits(in[i]);
}
void round_to_bf16_loop(const float* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_value(bf16_bits(in[i]));
}
void bf16_to_f32_loop(const uint16_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_value(in[i]);
}

// E4M3 by arithmetic: exponent and mantissa move to float32's places and the bias changes by 120. Subnormal
// codes get 2^-6 as a hidden bit, which is then taken away; no float32 denormal ever occurs.
inline __attribute__((always_inline)) float f8_value(uint8_t code) {
  const uint32_t magnitude = static_cast<uint32_t>(code & 0x7f) << 20;
  const float normal = __builtin_bit_cast(float, magnitude + (120u << 23));
  const float subnormal = __builtin_bit_cast(float, magnitude + (121u << 23)) - 0.015625f;
  float value = magnitude < (1u << 23) ? subnormal : normal;
  value = (code & 0x7f) == 0x7f ? __builtin_nanf("") : value;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | static_cast<uint32_t>(code & 0x80)
                                                                             << 24);
}
[[maybe_unused]] void f8_to_f32_loop(const uint8_t* in, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = f8_value(in[i]);
}
// Every E4M3 value is a normal bf16 (the smallest is 2^-9), so the upper half of the float32 is exact.
[[maybe_unused]] void f8_to_bf16_loop(const uint8_t* in, uint16_t* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, f8_value(in[i])) >> 16);
}

// The way back, as f32_to_f8e4m3 of model/dtype.h: float32's bits rounded to three mantissa bits, or, below
// 2^-6, counted in steps of 2^-9 by adding 2^14, whose last bit that is.
inline __attribute__((always_inline)) uint8_t f8_code(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  float magnitude = __builtin_bit_cast(float, bits & 0x7fffffffu);
  magnitude = magnitude > 448.0f ? 448.0f : magnitude;
  const uint32_t m = __builtin_bit_cast(uint32_t, magnitude);
  const uint32_t normal = ((m + 0x7ffffu + ((m >> 20) & 1u)) >> 20) - (120u << 3);
  const uint32_t subnormal =
      __builtin_bit_cast(uint32_t, magnitude + 16384.0f) - __builtin_bit_cast(uint32_t, 16384.0f);
  const uint32_t code = (magnitude < 0.015625f ? subnormal : normal) | (bits >> 24 & 0x80u);
  return static_cast<uint8_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fu : code);
}
void f32_to_f8_loop(const float* in, uint8_t* out, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) out[i] = f8_code(in[i] / scale);
}

}  // namespace
}  // namespace jewel

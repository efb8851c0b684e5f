// AVX2 + FMA + F16C: eight float32 lanes; bf16 and E4M3 are widened in registers.
#include <immintrin.h>

#include "backend/cpu/kernel_loops.h"

namespace jewel {
namespace {

constexpr int kWidth = 8;

inline __m256 widen(const float* p) {
  return _mm256_loadu_ps(p);
}

inline __m256 widen(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// E4M3 shifted into half precision is the value times 2^-8, subnormals included, and F16C widens that
// exactly.
inline __m256 widen(const uint8_t* p) {
  const __m128i code = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(0x7f));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(code, _mm_set1_epi16(0x80)), 8);
  const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
  const __m128i half = _mm_or_si128(_mm_or_si128(_mm_slli_epi16(magnitude, 7), sign), nan);
  return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}

template <typename T>
inline __m256 widen_tail(const T* p, int n) {
  T padded[kWidth] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return widen(padded);
}

// Halves, then neighbours' pairs: ((0+4)+(1+5)) + ((2+6)+(3+7)).
inline float reduce(__m256 v) {
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pairs = _mm_hadd_ps(quarter, quarter);
  return _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
}

template <typename Weight>
struct DotF32 {
  using Acc = __m256;
  using X = __m256;
  using W = __m256;
  using XElement = float;
  using WElement = Weight;
  static constexpr int kStep = kWidth;
  static constexpr int kRows = 4;
  static constexpr int kOutputs = 2;

  static Acc zero() { return _mm256_setzero_ps(); }
  static X load_x(const float* p) { return widen(p); }
  static X load_x_tail(const float* p, int n) { return widen_tail(p, n); }
  static W load_w(const Weight* p) { return widen(p); }
  static W load_w_tail(const Weight* p, int n) { return widen_tail(p, n); }
  static Acc mac(Acc acc, X x, W w) { return _mm256_fmadd_ps(x, w, acc); }
  template <int N>
  static void store_sums(const Acc* acc, float* out) {
    for (int i = 0; i < N; ++i) out[i] = reduce(acc[i]);
  }
};

template <typename Value>
struct Lanes {
  using Reg = __m256;
  using Element = Value;
  static constexpr int kLanes = kWidth;
  static constexpr int kRows = 4;
  static constexpr int kVectors = 2;

  static Reg load(const float* p) { return widen(p); }
  static Reg load_v(const Value* p) { return widen(p); }
  static void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static Reg broadcast(float value) { return _mm256_set1_ps(value); }
  static Reg mac(Reg acc, Reg p, Reg v) { return _mm256_fmadd_ps(p, v, acc); }
};

void f8_to_f32(const uint8_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) _mm256_storeu_ps(out + i, widen(in + i));
  f8_to_f32_loop(in + i, out + i, n - i);
}

constexpr Kernels kAvx2 = {
    .isa = CpuIsa::kAvx2,
    .name = "avx2",
    .dot_f32 = {dot_tile<DotF32<float>>, dot_tile<DotF32<uint16_t>>, dot_tile<DotF32<uint8_t>>},
    .dot_bf16 = {nullptr, nullptr, nullptr},
    .weighted_sum = {weighted_sum<Lanes<float>>, weighted_sum<Lanes<uint16_t>>, weighted_sum<Lanes<uint8_t>>},
    .bf16_to_f32 = bf16_to_f32_loop,
    .f8_to_f32 = f8_to_f32,
    .f8_to_bf16 = f8_to_bf16_loop,
    .f32_to_bf16 = f32_to_bf16_loop,
    .round_to_bf16 = round_to_bf16_loop,
    .f32_to_f8 = f32_to_f8_loop,
    .gelu_mul = gelu_mul,
    .exp_sum = exp_sum,
    .sum_of_exp = sum_of_exp,
    .sum_of_squares = sum_of_squares,
    .max = max_of,
};

}  // namespace

const Kernels& avx2_kernels() {
  return kAvx2;
}

}  // namespace jewel

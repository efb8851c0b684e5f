// AVX-512 with BF16: VDPBF16PS multiplies 32 pairs of bf16 and adds neighbouring products into 16 float32
// lanes. It takes bf16 denormals as zero, so E4M3 is looked up as normal bf16 values, never shifted into
// denormals.
#include <immintrin.h>

#include "backend/cpu/kernel_loops.h"

namespace jewel {
namespace {

constexpr int kWidth = 16;

constexpr uint16_t f8_code_to_bf16(int code) {
  const int exponent = (code >> 3) & 15;
  int mantissa = code & 7;
  if (code == 0x7f) return 0x7fc0;
  if (exponent > 0) return static_cast<uint16_t>(((exponent + 120) << 7) | (mantissa << 4));
  if (mantissa == 0) return 0;
  int shift = 0;  // mantissa * 2^-9 = 1.f * 2^(2 - shift - 9)
  while ((mantissa & 4) == 0) mantissa <<= 1, ++shift;
  return static_cast<uint16_t>(((127 - 7 - shift) << 7) | ((mantissa & 3) << 5));
}

// The upper and the lower bytes of the bf16 values of codes 0 to 127.
struct F8Table {
  alignas(64) uint8_t upper[128];
  alignas(64) uint8_t lower[128];
  constexpr F8Table() : upper(), lower() {
    for (int code = 0; code < 128; ++code) {
      upper[code] = static_cast<uint8_t>(f8_code_to_bf16(code) >> 8);
      lower[code] = static_cast<uint8_t>(f8_code_to_bf16(code));
    }
  }
};
constexpr F8Table kF8;

struct TwoVectors {
  __m512i first, second;
};

// 64 codes as bf16: a look-up of 128 entries for each byte, the sign, and the bytes woven together. Weaving
// works within quarters of a vector, so the codes are first dealt to the quarters in eights: 0 4 | 1 5 | 2 6
// | 3 7.
inline TwoVectors f8_codes_to_bf16(__m512i codes) {
  const __m512i dealt = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
  const __m512i upper =
      _mm512_permutex2var_epi8(_mm512_load_si512(kF8.upper), dealt, _mm512_load_si512(kF8.upper + 64));
  const __m512i lower =
      _mm512_permutex2var_epi8(_mm512_load_si512(kF8.lower), dealt, _mm512_load_si512(kF8.lower + 64));
  // upper | (code & 0x80)
  const __m512i with_sign =
      _mm512_ternarylogic_epi32(upper, dealt, _mm512_set1_epi8(static_cast<char>(0x80)), 0xf8);
  return {_mm512_unpacklo_epi8(lower, with_sign), _mm512_unpackhi_epi8(lower, with_sign)};
}

inline __mmask16 first16(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}
inline __mmask32 first32(int n) {
  return static_cast<__mmask32>((uint64_t{1} << n) - 1u);
}

inline __mmask64 first64(int n) {
  return (uint64_t{1} << n) - 1u;
}  // n < 64

inline __m512 bf16_widen(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// E4M3 shifted into half precision is the value times 2^-8, subnormals included.
inline __m512 f8_widen(__m128i codes) {
  const __m256i code = _mm256_cvtepu8_epi16(codes);
  const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x80)), 8);
  const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign), nan);
  return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}

inline __m512 widen(const float* p) {
  return _mm512_loadu_ps(p);
}
inline __m512 widen(const uint16_t* p) {
  return bf16_widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 widen(const uint8_t* p) {
  return f8_widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m512 widen_tail(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first16(n), p);
}
inline __m512 widen_tail(const uint16_t* p, int n) {
  return bf16_widen(_mm256_maskz_loadu_epi16(first16(n), p));
}
inline __m512 widen_tail(const uint8_t* p, int n) {
  return f8_widen(_mm_maskz_loadu_epi8(first16(n), p));
}

// The tree: 16 lanes to 8 to 4, then (0+1) + (2+3).
inline __m128 to_quarter(__m512 v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
template <int N>
inline void store_sums_of(const __m512* acc, float* out) {
  if constexpr (N == 4) {
    __m128 a = to_quarter(acc[0]), b = to_quarter(acc[1]), c = to_quarter(acc[2]), d = to_quarter(acc[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d)));
  } else {
    for (int i = 0; i < N; ++i) {
      const __m128 q = to_quarter(acc[i]);
      const __m128 pairs = _mm_hadd_ps(q, q);
      out[i] = _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs));
    }
  }
}

template <typename Weight>
struct DotF32 {
  using Acc = __m512;
  using X = __m512;
  using W = __m512;
  using XElement = float;
  using WElement = Weight;
  static constexpr int kStep = kWidth;
  static constexpr int kRows = 4;
  static constexpr int kOutputs = 4;

  static Acc zero() { return _mm512_setzero_ps(); }
  static X load_x(const float* p) { return widen(p); }
  static X load_x_tail(const float* p, int n) { return widen_tail(p, n); }
  static W load_w(const Weight* p) { return widen(p); }
  static W load_w_tail(const Weight* p, int n) { return widen_tail(p, n); }
  static Acc mac(Acc acc, X x, W w) { return _mm512_fmadd_ps(x, w, acc); }
  template <int N>
  static void store_sums(const Acc* acc, float* out) {
    store_sums_of<N>(acc, out);
  }
};

// bf16 weights: 32 products a step.
struct DotBf16 {
  using Acc = __m512;
  using X = __m512i;
  using W = __m512i;
  using XElement = uint16_t;
  using WElement = uint16_t;
  static constexpr int kStep = 32;
  static constexpr int kRows = 4;
  static constexpr int kOutputs = 4;

  static Acc zero() { return _mm512_setzero_ps(); }
  static X load_x(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static X load_x_tail(const uint16_t* p, int n) { return _mm512_maskz_loadu_epi16(first32(n), p); }
  static W load_w(const uint16_t* p) { return load_x(p); }
  static W load_w_tail(const uint16_t* p, int n) { return load_x_tail(p, n); }
  static Acc mac(Acc acc, X x, W w) { return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w); }
  template <int N>
  static void store_sums(const Acc* acc, float* out) {
    store_sums_of<N>(acc, out);
  }
};

// E4M3 weights: 64 products a step, in the order in which two steps of DotBf16 form them. (A step of zeros
// beyond the tail adds +0 to the sums.)
struct DotF8 {
  using Acc = __m512;
  using X = TwoVectors;
  using W = TwoVectors;
  using XElement = uint16_t;
  using WElement = uint8_t;
  static constexpr int kStep = 64;
  static constexpr int kRows = 4;
  static constexpr int kOutputs = 4;

  static Acc zero() { return _mm512_setzero_ps(); }
  static X load_x(const uint16_t* p) { return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 32)}; }
  static X load_x_tail(const uint16_t* p, int n) {
    return {_mm512_maskz_loadu_epi16(first32(n < 32 ? n : 32), p),
            _mm512_maskz_loadu_epi16(first32(n < 32 ? 0 : n - 32), p + 32)};
  }
  static W load_w(const uint8_t* p) { return f8_codes_to_bf16(_mm512_loadu_si512(p)); }
  static W load_w_tail(const uint8_t* p, int n) {
    return f8_codes_to_bf16(_mm512_maskz_loadu_epi8(first64(n), p));
  }
  static Acc mac(Acc acc, const X& x, const W& w) {
    acc = _mm512_dpbf16_ps(acc, (__m512bh)x.first, (__m512bh)w.first);
    return _mm512_dpbf16_ps(acc, (__m512bh)x.second, (__m512bh)w.second);
  }
  template <int N>
  static void store_sums(const Acc* acc, float* out) {
    store_sums_of<N>(acc, out);
  }
};

template <typename Value>
struct Lanes {
  using Reg = __m512;
  using Element = Value;
  static constexpr int kLanes = kWidth;
  static constexpr int kRows = 4;
  static constexpr int kVectors = 4;

  static Reg load(const float* p) { return widen(p); }
  static Reg load_v(const Value* p) { return widen(p); }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static Reg broadcast(float value) { return _mm512_set1_ps(value); }
  static Reg mac(Reg acc, Reg p, Reg v) { return _mm512_fmadd_ps(p, v, acc); }
};

void f8_to_f32(const uint8_t* in, float* out, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) _mm512_storeu_ps(out + i, widen(in + i));
  if (i < n)
    _mm512_mask_storeu_ps(out + i, first16(static_cast<int>(n - i)),
                          widen_tail(in + i, static_cast<int>(n - i)));
}

void f8_to_bf16(const uint8_t* in, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    __builtin_prefetch(in + i + 2048, 0, 2);
    const TwoVectors v = f8_codes_to_bf16(_mm512_loadu_si512(in + i));
    _mm512_storeu_si512(out + i, v.first);
    _mm512_storeu_si512(out + i + 32, v.second);
  }
  if (const int rest = static_cast<int>(n - i); rest > 0) {
    const TwoVectors v = DotF8::load_w_tail(in + i, rest);
    _mm512_mask_storeu_epi16(out + i, first32(rest < 32 ? rest : 32), v.first);
    _mm512_mask_storeu_epi16(out + i + 32, first32(rest < 32 ? 0 : rest - 32), v.second);
  }
}

constexpr Kernels kAvx512Bf16 = {
    .isa = CpuIsa::kAvx512Bf16,
    .name = "avx512-bf16",
    .dot_f32 = {dot_tile<DotF32<float>>, dot_tile<DotF32<uint16_t>>, dot_tile<DotF32<uint8_t>>},
    .dot_bf16 = {nullptr, dot_tile<DotBf16>, dot_tile<DotF8>},
    .weighted_sum = {weighted_sum<Lanes<float>>, weighted_sum<Lanes<uint16_t>>, weighted_sum<Lanes<uint8_t>>},
    .bf16_to_f32 = bf16_to_f32_loop,
    .f8_to_f32 = f8_to_f32,
    .f8_to_bf16 = f8_to_bf16,
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

const Kernels& avx512_bf16_kernels() {
  return kAvx512Bf16;
}

}  // namespace jewel

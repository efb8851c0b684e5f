// Device code that the attention kernels share: E4M3 to BF16, splitting float32 into two BF16, the
// tensor-core product, norms and rotations of one head held by a warp. Include from .cu files only.
//
// A head of DIM values in a warp: lane l holds, for j < DIM / 256, the four values from 4 l + 128 j and the
// four from DIM / 2 on from there: both partners of its rotated pairs, in 16-byte loads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/cuda/attention_types.h"
#include "backend/cuda/device_values.h"

namespace jewel::cuda::device {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;

// --- numbers ---

__device__ __forceinline__ uint32_t bits(__nv_bfloat162 x) {
  return *reinterpret_cast<uint32_t*>(&x);
}

__device__ __forceinline__ uint32_t bits(__half2 x) {
  return *reinterpret_cast<uint32_t*>(&x);
}

__device__ __forceinline__ uint4 f16_of_f8x8(uint32_t a, uint32_t b) {
  return make_uint4(f16_of_f8x2(a), f16_of_f8x2(a >> 16), f16_of_f8x2(b), f16_of_f8x2(b >> 16));
}

struct Split {
  uint32_t hi, lo;
};

// The numbers that multiply K and V of a format on the tensor cores (m16n8k16, a row-major, float32 sums):
// BF16 for BF16, FP16 for E4M3, whose values it holds exactly.
template <KvFormat F>
struct Number;

template <>
struct Number<KvFormat::kBF16> {
  static constexpr float kQueryScale = 1, kHeadroom = 0;
  __device__ __forceinline__ static uint32_t pack(float a, float b) { return pack_bf16(a, b); }
  // hi + lo = x up to 2^-17 |x|.
  __device__ __forceinline__ static Split split(float a, float b) {
    const __nv_bfloat162 hi = __floats2bfloat162_rn(a, b);
    return {bits(hi), pack_bf16(a - __low2float(hi), b - __high2float(hi))};
  }
  __device__ __forceinline__ static void mma(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
};

// FP16's range is narrow. Normed queries are at most sqrt(head_dim) times their weight: divided by 16 they
// fit for weights up to 40,000. Probabilities are kept times 2^8 (their sums too), so that those below 2^-32
// vanish, not those below 2^-24.
template <>
struct Number<KvFormat::kF8E4M3> {
  static constexpr float kQueryScale = 0.0625f, kHeadroom = 8;
  __device__ __forceinline__ static uint32_t pack(float a, float b) { return pack_f16(a, b); }
  __device__ __forceinline__ static uint32_t from_bf16(uint32_t x) {
    return pack(__uint_as_float(x << 16) * kQueryScale, __uint_as_float(x & 0xffff0000u) * kQueryScale);
  }
  __device__ __forceinline__ static Split split(float a, float b) {
    const __half2 hi = __floats2half2_rn(a, b);
    return {bits(hi), pack(a - __low2float(hi), b - __high2float(hi))};
  }
  __device__ __forceinline__ static void mma(float (&d)[4], const uint4& a, uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
};

__device__ __forceinline__ uint32_t to_f8x4(const float (&x)[4], float inverse_scale) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x[0] * inverse_scale, x[1] * inverse_scale),
                                                __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(x[2] * inverse_scale, x[3] * inverse_scale),
                                                 __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// 2^x to 2 units in the last place; 0 for -infinity and below -126.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// --- rotations ---

// Cosine and sine for angles to 2^20: pi/2 is taken away in three float32 parts (each multiply-add of the
// first is exact), the rest goes through the usual minimax polynomials on [-pi/4, pi/4].
__device__ __forceinline__ void sine_cosine(float angle, float& sine, float& cosine) {
  const float quarter = rintf(angle * 0.63661977236758134f);
  float r = fmaf(quarter, -1.57079637050628662f, angle);
  r = fmaf(quarter, 4.37113900018624283e-8f, r);
  r = fmaf(quarter, -1.71512451e-15f, r);
  const float z = r * r;
  const float s = fmaf(r * z, fmaf(z, fmaf(z, -1.9515295891e-4f, 8.3321608736e-3f), -1.6666654611e-1f), r);
  const float c =
      fmaf(z * z, fmaf(z, fmaf(z, 2.443315711809948e-5f, -1.388731625493765e-3f), 4.166664568298827e-2f),
           fmaf(z, -0.5f, 1.0f));
  const int q = static_cast<int>(quarter);
  const float s1 = (q & 1) != 0 ? c : s, c1 = (q & 1) != 0 ? s : c;
  sine = (q & 2) != 0 ? -s1 : s1;
  cosine = ((q + 1) & 2) != 0 ? -c1 : c1;
}

template <int DIM>
struct HeadRotation {
  static constexpr int kParts = DIM / 256;
  float cosine[kParts][4], sine[kParts][4];

  __device__ __forceinline__ void set(const Rope& rope, int position, int lane) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const int first = 4 * lane + 128 * j;
#pragma unroll
      for (int e = 0; e < 4; ++e) cosine[j][e] = 1, sine[j][e] = 0;
      if (first >= rope.n_rotating) continue;
      const float4 f = __ldg(reinterpret_cast<const float4*>(rope.frequencies + first));
      const float frequency[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sine_cosine(static_cast<float>(position) * frequency[e], sine[j][e], cosine[j][e]);
      }
    }
  }
  // Those of the first DIM / 2 pairs, computed already.
  __device__ __forceinline__ void set(const float* cosines, const float* sines, int lane) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const float4 c = *reinterpret_cast<const float4*>(cosines + 4 * lane + 128 * j);
      const float4 s = *reinterpret_cast<const float4*>(sines + 4 * lane + 128 * j);
      cosine[j][0] = c.x, cosine[j][1] = c.y, cosine[j][2] = c.z, cosine[j][3] = c.w;
      sine[j][0] = s.x, sine[j][1] = s.y, sine[j][2] = s.z, sine[j][3] = s.w;
    }
  }
};

// --- one head in a warp ---

template <int DIM>
struct Head {
  static constexpr int kParts = DIM / 256;
  float low[kParts][4], high[kParts][4];  // values at 4 lane + 128 j, and DIM / 2 further

  __device__ __forceinline__ static int first(int j, int lane) { return 4 * lane + 128 * j; }

  __device__ __forceinline__ void load(const float* x, int lane) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      const float4 a = *reinterpret_cast<const float4*>(x + first(j, lane));
      const float4 b = *reinterpret_cast<const float4*>(x + first(j, lane) + DIM / 2);
      low[j][0] = a.x, low[j][1] = a.y, low[j][2] = a.z, low[j][3] = a.w;
      high[j][0] = b.x, high[j][1] = b.y, high[j][2] = b.z, high[j][3] = b.w;
    }
  }
  __device__ __forceinline__ static void load4(const __nv_bfloat16* x, float (&out)[4]) {
    const uint2 raw = *reinterpret_cast<const uint2*>(x);
    out[0] = __uint_as_float(raw.x << 16), out[1] = __uint_as_float(raw.x & 0xffff0000u);
    out[2] = __uint_as_float(raw.y << 16), out[3] = __uint_as_float(raw.y & 0xffff0000u);
  }
  __device__ __forceinline__ void load(const __nv_bfloat16* x, int lane) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      load4(x + first(j, lane), low[j]);
      load4(x + first(j, lane) + DIM / 2, high[j]);
    }
  }
  __device__ __forceinline__ void fill(float value) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) low[j][e] = value, high[j][e] = value;
    }
  }

  __device__ __forceinline__ float inverse_rms(float eps) const {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum = fmaf(low[j][e], low[j][e], fmaf(high[j][e], high[j][e], sum));
    }
    return rsqrtf(fmaf(warp_sum(sum), 1.0f / DIM, eps));
  }
  __device__ __forceinline__ void norm(const Head& weight, float eps) {
    const float scale = inverse_rms(eps);
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        low[j][e] = low[j][e] * scale * weight.low[j][e];
        high[j][e] = high[j][e] * scale * weight.high[j][e];
      }
    }
  }
  __device__ __forceinline__ void rotate(const HeadRotation<DIM>& r) {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float a = low[j][e], b = high[j][e];
        low[j][e] = a * r.cosine[j][e] - b * r.sine[j][e];
        high[j][e] = b * r.cosine[j][e] + a * r.sine[j][e];
      }
    }
  }

  // Calls body(first value's index, values[4]) for all groups of four.
  template <typename Body>
  __device__ __forceinline__ void for_fours(int lane, Body body) const {
#pragma unroll
    for (int j = 0; j < kParts; ++j) {
      body(first(j, lane), low[j]);
      body(first(j, lane) + DIM / 2, high[j]);
    }
  }
};

// Four values in the cache's format, at element `index` of a row. The product with 1 / scale may differ from
// the quotient in float32's last bit: one E4M3 code in about a million, where a value lies between two.
template <KvFormat F>
__device__ __forceinline__ void store_kv4(std::byte* row, int index, const float (&x)[4],
                                          float inverse_scale) {
  if constexpr (F == KvFormat::kF8E4M3) {
    *reinterpret_cast<uint32_t*>(row + index) = to_f8x4(x, inverse_scale);
  } else {
    *reinterpret_cast<uint2*>(row + 2 * index) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
  }
}

}  // namespace jewel::cuda::device

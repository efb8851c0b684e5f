// Small functions that all kernels share. Included by .cu files alone.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace jewel::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// The lower two bytes of x, E4M3, to FP16: exact. Below sm_89 sign, exponent and mantissa move to FP16's
// places and the product with 2^8 corrects the bias and makes subnormals right (not a number becomes 480).
__device__ __forceinline__ uint32_t f16_of_f8x2(uint32_t x) {
#if __CUDA_ARCH__ >= 890
  uint32_t out;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(static_cast<uint16_t>(x)));
  return out;
#else
  const uint32_t w = __byte_perm(x, 0, 0x1404);
  const uint32_t moved = ((w & 0x7f007f00u) >> 1) | (w & 0x80008000u);
  const uint32_t scale = 0x5c005c00u;  // 2^8
  const __half2 out =
      __hmul2(reinterpret_cast<const __half2&>(moved), reinterpret_cast<const __half2&>(scale));
  return reinterpret_cast<const uint32_t&>(out);
#endif
}

__device__ __forceinline__ float4 load_bf16x4(const __nv_bfloat16* p) {
  const uint2 bits = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u), __uint_as_float(bits.y << 16),
          __uint_as_float(bits.y & 0xffff0000u)};
}

__device__ __forceinline__ float4 scaled(const float4& v, float scale) {
  return {v.x * scale, v.y * scale, v.z * scale, v.w * scale};
}
__device__ __forceinline__ float4 widened_f16x4(uint2 bits) {
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(bits.x)),
               high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  return {low.x, low.y, high.x, high.y};
}

// x / (1 + 2^(-2 log2(e) u)) = 0.5 x (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3): eight instructions,
// within a few units of FP32's last place. Written out, as all arithmetic that several kernels must do alike.
// Far to the left the power is infinite and the quotient -0.
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kLinear = -2.0f * 1.4426950408889634f * 0.7978845608028654f;
  float power, quotient;
  asm("ex2.approx.ftz.f32 %0, %1;"
      : "=f"(power)
      : "f"(__fmul_rn(x, __fmaf_rn(kLinear * 0.044715f, __fmul_rn(x, x), kLinear))));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(__fadd_rn(1.0f, power)));
  return __fmul_rn(x, quotient);
}

}  // namespace jewel::cuda

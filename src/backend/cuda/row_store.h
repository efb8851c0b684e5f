// How a block that holds one row of FP32 values in registers stores it as a product's input: shared by the
// row kernels. Thread i of kThreads holds groups of 4 consecutive columns i, i + kThreads, ...
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "backend/cuda/prefill_rows.h"
#include "backend/cuda/prefill_values.h"

namespace jewel::cuda {

inline constexpr float kE4m3Max = 448;

// Sums (or maxima) over the block, the same bits in every thread and for every grid.
template <int kThreads, bool kMax>
__device__ __forceinline__ float block_reduce(float value, float* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, value, step);
    value = kMax ? fmaxf(value, other) : value + other;
  }
  if constexpr (kThreads == 32) return value;
  __syncthreads();  // the scratch of an earlier reduction has been read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  value = scratch[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) value = kMax ? fmaxf(value, scratch[i]) : value + scratch[i];
  return value;
}

// Columns 4 * group .. + 3 of a row in product order: two pairs, at slots (2t, 2t + 1) and (2t + 8, 2t + 9)
// of their 16.
__device__ __forceinline__ void store_product_order(__nv_bfloat16* row, int group, const float4& v) {
  auto* at = reinterpret_cast<uint32_t*>(row + group / 4 * 16) + group % 4;
  at[0] = pack_bf16(v.x, v.y);
  at[4] = pack_bf16(v.z, v.w);
}

__device__ __forceinline__ uint32_t pack_e4m3(const float4& v) {
  const __nv_fp8x4_e4m3 packed(v);  // round to nearest even, saturating
  return packed.__x;
}

// scale = amax / 448 and 1 / scale; a row of zeros gets 1.
__device__ __forceinline__ float quantization_scale(float amax) {
  return amax > 0 ? amax / kE4m3Max : 1.0f;
}

template <int kThreads, int kGroups>
__device__ __forceinline__ void store_row(const ProductInputOut& out, int64_t row, int columns,
                                          float4 (&v)[kGroups], float* scratch) {
  if (out.form == InputForm::kNone) return;
  const int n = columns / 4, thread = static_cast<int>(threadIdx.x) % kThreads;
  float amax = 0;
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = thread + i * kThreads;
    if (group >= n) continue;
    for (float* value : {&v[i].x, &v[i].y, &v[i].z, &v[i].w}) {
      *value = fminf(fmaxf(*value, out.min), out.max);
      amax = fmaxf(amax, fabsf(*value));
    }
  }
  float inverse = 1;
  if (out.form == InputForm::kF8) {
    const float scale = quantization_scale(block_reduce<kThreads, true>(amax, scratch));
    if (thread == 0) out.scale[row] = scale;
    inverse = 1.0f / scale;
  }
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = thread + i * kThreads;
    if (group >= n) continue;
    if (out.form == InputForm::kBF16ProductOrder) {
      store_product_order(static_cast<__nv_bfloat16*>(out.data) + row * out.stride, group, v[i]);
    } else if (out.form == InputForm::kF8) {
      const float4 scaled = {v[i].x * inverse, v[i].y * inverse, v[i].z * inverse, v[i].w * inverse};
      reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(out.data) + row * out.stride)[group] =
          pack_e4m3(scaled);
    } else {
      reinterpret_cast<float4*>(static_cast<float*>(out.data) + row * out.stride)[group] = v[i];
    }
  }
}

}  // namespace jewel::cuda

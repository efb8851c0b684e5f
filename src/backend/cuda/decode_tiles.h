// Device code that the decode kernels share: copies into shared memory, E4M3 to BF16, the tensor-core product,
// programmatic launch, and the residual update with its norms. Included by .cu files alone.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/decode_product.h"

namespace jewel::cuda {

constexpr int kProductWarps = 8;
constexpr int kProductThreads = 32 * kProductWarps;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes, past L1: weights are read once.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Lets the next kernel of the stream start. It may fetch what no kernel writes, and waits before the rest.
__device__ __forceinline__ void release_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_last_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Four E4M3 bytes, k0..k3, to BF16 pairs (k0, k2) and (k1, k3), exactly. A byte's exponent and mantissa land
// in BF16's lowest exponent bits and highest mantissa bits, which is the value times 2^-120, subnormals too;
// the product with 2^120 is exact.
__device__ __forceinline__ uint2 bf16_from_e4m3(uint32_t bytes) {
  constexpr uint32_t kSign = 0x80008000u;
  constexpr uint32_t kMagnitude = 0x07f007f0u;
  constexpr uint32_t kTwoTo120 = 0x7b807b80u;
  constexpr uint32_t kMinusZero = 0x80008000u;
  const uint32_t even = ((bytes << 8) & kSign) | ((bytes << 4) & kMagnitude);
  const uint32_t odd = (bytes & kSign) | ((bytes >> 4) & kMagnitude);
  uint2 out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out.x) : "r"(even), "r"(kTwoTo120), "r"(kMinusZero));
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out.y) : "r"(odd), "r"(kTwoTo120), "r"(kMinusZero));
  return out;
}

// The A operand of one 16 x 32 piece of W: [k16 step][register].
struct TileA {
  uint32_t r[2][4];
};

__device__ __forceinline__ TileA tile_from_f8(uint4 lane) {
  const uint2 g0 = bf16_from_e4m3(lane.x), h0 = bf16_from_e4m3(lane.y);
  const uint2 g1 = bf16_from_e4m3(lane.z), h1 = bf16_from_e4m3(lane.w);
  return {{{g0.x, h0.x, g0.y, h0.y}, {g1.x, h1.x, g1.y, h1.y}}};
}

__device__ __forceinline__ TileA tile_from_bf16(uint4 s0, uint4 s1) {
  const auto even = [](uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x5410); };
  const auto odd = [](uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x7632); };
  return {{{even(s0.x, s0.y), even(s0.z, s0.w), odd(s0.x, s0.y), odd(s0.z, s0.w)},
           {even(s1.x, s1.y), even(s1.z, s1.w), odd(s1.x, s1.y), odd(s1.z, s1.w)}}};
}

// 8 values of a lane in natural order (k = 4t.. and 16 + 4t..) to slot order.
__device__ __forceinline__ uint4 slots_from_natural(uint2 s0, uint2 s1) {
  return {__byte_perm(s0.x, s0.y, 0x5410), __byte_perm(s0.x, s0.y, 0x7632), __byte_perm(s1.x, s1.y, 0x5410),
          __byte_perm(s1.x, s1.y, 0x7632)};
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float gelu_tanh(float x) {
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanhf(inner));
}

// --- residual update and norms -----------------------------------------------------------------------------

constexpr int kNormVectors = 3;  // float4s of a row that a thread holds: hidden <= 3072
constexpr int kMaxHidden = 4 * kNormVectors * kProductThreads;

// Sums over the block, in an order that depends on nothing but the block's size; `scratch` [warps * kRows]
// must not be in use.
template <int kRows>
__device__ __forceinline__ void block_sums(float (&sum)[kRows], float* scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) sum[m] += __shfl_xor_sync(~0u, sum[m], d);
    if (lane == 0) scratch[m * kProductWarps + warp] = sum[m];
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    sum[m] = scratch[m * kProductWarps];
#pragma unroll
    for (int w = 1; w < kProductWarps; ++w) sum[m] += scratch[m * kProductWarps + w];
  }
}

// Norm weights of a thread's columns: fetched before the wait, since no kernel writes them.
struct NormWeights {
  float4 post[kNormVectors];
  float4 pre[kNormVectors];
};

__device__ __forceinline__ void fetch_norm_weights(const ResidualNorm& norm, int hidden, NormWeights& w) {
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    const int i = v * kProductThreads + static_cast<int>(threadIdx.x);
    if (4 * i >= hidden) continue;
    if (norm.y != nullptr) w.post[v] = __ldg(reinterpret_cast<const float4*>(norm.post_norm) + i);
    if (norm.pre_norm != nullptr) w.pre[v] = __ldg(reinterpret_cast<const float4*>(norm.pre_norm) + i);
  }
}

// Rows [first_row, first_row + n), n <= kRows, of ResidualNorm by one block of kProductThreads. `store` takes
// (row, column of 4, the values as BF16 in slot order). The arithmetic of a row does not depend on kRows:
// every operation is written out, so that no compilation fuses what another does not.
template <int kRows, class Store>
__device__ __forceinline__ void residual_norm_rows(const ResidualNorm& norm, const NormWeights& w, int first_row,
                                                   int n, int rows, int hidden, bool write_h, float* scratch,
                                                   const Store& store) {
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t part_stride = int64_t{rows} * hidden / 4;
  const float inv_hidden = 1.0f / static_cast<float>(hidden);
  float4 h[kRows][kNormVectors], y[kRows][kNormVectors];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      h[m][v] = y[m][v] = {0, 0, 0, 0};
      const int i = v * kProductThreads + tid;
      if (4 * i >= hidden || m >= n) continue;
      const int64_t at = int64_t{first_row + m} * hidden / 4 + i;
      h[m][v] = __ldcg(reinterpret_cast<const float4*>(norm.h) + at);
      if (norm.y == nullptr) continue;
      const float4* parts = reinterpret_cast<const float4*>(norm.y) + at;
      float4 sum = __ldcg(parts);
      if (norm.y_parts == 4) {
        const float4 p1 = __ldcg(parts + part_stride), p2 = __ldcg(parts + 2 * part_stride),
                     p3 = __ldcg(parts + 3 * part_stride);
        const auto add = [](float a, float b, float c, float d) {
          return __fadd_rn(__fadd_rn(__fadd_rn(a, b), c), d);
        };
        sum = {add(sum.x, p1.x, p2.x, p3.x), add(sum.y, p1.y, p2.y, p3.y), add(sum.z, p1.z, p2.z, p3.z),
               add(sum.w, p1.w, p2.w, p3.w)};
      }
      y[m][v] = sum;
    }
  }
  const auto sum_of_squares = [](const float4 (&x)[kNormVectors]) {
    float sum = 0;
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      sum = __fmaf_rn(x[v].x, x[v].x, sum);
      sum = __fmaf_rn(x[v].y, x[v].y, sum);
      sum = __fmaf_rn(x[v].z, x[v].z, sum);
      sum = __fmaf_rn(x[v].w, x[v].w, sum);
    }
    return sum;
  };
  float sums[kRows];
  if (norm.y != nullptr) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) sums[m] = sum_of_squares(y[m]);
    block_sums(sums, scratch);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const float r = rsqrtf(__fmaf_rn(sums[m], inv_hidden, norm.eps));
      const auto update = [&](float hv, float yv, float wv) {
        return __fmul_rn(__fadd_rn(hv, __fmul_rn(__fmul_rn(yv, r), wv)), norm.scale);
      };
#pragma unroll
      for (int v = 0; v < kNormVectors; ++v) {
        const int i = v * kProductThreads + tid;
        if (4 * i >= hidden) continue;
        h[m][v] = {update(h[m][v].x, y[m][v].x, w.post[v].x), update(h[m][v].y, y[m][v].y, w.post[v].y),
                   update(h[m][v].z, y[m][v].z, w.post[v].z), update(h[m][v].w, y[m][v].w, w.post[v].w)};
        if (write_h && m < n) {
          reinterpret_cast<float4*>(norm.h_out)[int64_t{first_row + m} * hidden / 4 + i] = h[m][v];
        }
      }
    }
  }
  if (norm.pre_norm != nullptr) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) sums[m] = sum_of_squares(h[m]);
    block_sums(sums, scratch + kRows * kProductWarps);
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= n) continue;
    const float r = norm.pre_norm != nullptr ? rsqrtf(__fmaf_rn(sums[m], inv_hidden, norm.eps)) : 1.0f;
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      const int i = v * kProductThreads + tid;
      if (4 * i >= hidden) continue;
      float4 x = h[m][v];
      if (norm.pre_norm != nullptr) {
        x = {__fmul_rn(__fmul_rn(x.x, r), w.pre[v].x), __fmul_rn(__fmul_rn(x.y, r), w.pre[v].y),
             __fmul_rn(__fmul_rn(x.z, r), w.pre[v].z), __fmul_rn(__fmul_rn(x.w, r), w.pre[v].w)};
      }
      store(first_row + m, 4 * i, uint2{pack_bf16(x.x, x.z), pack_bf16(x.y, x.w)});
    }
  }
}

// Byte offset of the four values at `column` (a multiple of 4) of `row` in slot order.
__device__ __forceinline__ int64_t slot_bytes(int row, int column, int rows) {
  return (int64_t{column / 32} * rows + row) * 64 + column % 16 / 4 * 16 + column % 32 / 16 * 8;
}

}  // namespace jewel::cuda

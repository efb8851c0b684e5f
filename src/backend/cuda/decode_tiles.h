// Device code that the decode kernels share: copies into shared memory, E4M3 to BF16 and FP16, the
// tensor-core product, and the residual update with its norms. Included by .cu files alone.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/copy_async.h"
#include "backend/cuda/decode_product.h"
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/device_values.h"

namespace jewel::cuda {

constexpr int kProductWarps = 8;
constexpr int kProductThreads = 32 * kProductWarps;

// release_next_kernel() is the first thing that most kernels of the chain do. The next one may use what no
// kernel of the step writes, and waits before the rest; of every kernel some block waits before it ends, so
// that the end of a kernel is the end of all ahead of it.

// One bulk copy into shared memory by one thread of a block, which all threads can wait for (sm_90).
__device__ __forceinline__ void start_barrier([[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared.b64 [%0], 1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(barrier)
               : "memory");
#endif
}
__device__ __forceinline__ void expect_bulk([[maybe_unused]] uint32_t bytes,
                                            [[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void fetch_bulk([[maybe_unused]] uint32_t to, [[maybe_unused]] const void* from,
                                           [[maybe_unused]] uint32_t bytes,
                                           [[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
#endif
}
// phase: 0 for what the barrier counts first, then 1, 0 and so on.
__device__ __forceinline__ void wait_for_bulk([[maybe_unused]] uint32_t barrier,
                                              [[maybe_unused]] int phase = 0) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "r"(phase)
        : "memory");
  }
#endif
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

// FP16: two instructions for four bytes.
__device__ __forceinline__ TileA tile_f16_from_f8(uint4 lane) {
  const auto low = [](uint32_t four) { return f16_of_f8x2(four); };
  const auto high = [](uint32_t four) { return f16_of_f8x2(four >> 16); };
  return {{{low(lane.x), low(lane.y), high(lane.x), high(lane.y)},
           {low(lane.z), low(lane.w), high(lane.z), high(lane.w)}}};
}

__device__ __forceinline__ TileA tile_from_bf16(uint4 s0, uint4 s1) {
  const auto even = [](uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x5410); };
  const auto odd = [](uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x7632); };
  return {{{even(s0.x, s0.y), even(s0.z, s0.w), odd(s0.x, s0.y), odd(s0.z, s0.w)},
           {even(s1.x, s1.y), even(s1.z, s1.w), odd(s1.x, s1.y), odd(s1.z, s1.w)}}};
}

// A lane's part of a piece of W, as it stands in memory.
template <TileFormat kFormat>
struct RawPiece {
  static constexpr int kVectors = kFormat == TileFormat::kBF16 ? 2 : 1;  // 512 bytes of a warp apart
  static constexpr int kBytes = 512 * kVectors;                          // of the whole piece
  uint4 v[kVectors];
};
template <TileFormat kFormat>
__device__ __forceinline__ TileA tile_from(const RawPiece<kFormat>& raw) {
  if constexpr (kFormat == TileFormat::kF8E4M3) {
    return tile_from_f8(raw.v[0]);
  } else if constexpr (kFormat == TileFormat::kF8E4M3F16) {
    return tile_f16_from_f8(raw.v[0]);
  } else {
    return tile_from_bf16(raw.v[0], raw.v[1]);
  }
}

// The same from shared memory.
template <TileFormat kFormat>
__device__ __forceinline__ RawPiece<kFormat> read_raw(const uint8_t* lane_bytes) {
  RawPiece<kFormat> raw;
#pragma unroll
  for (int i = 0; i < RawPiece<kFormat>::kVectors; ++i)
    raw.v[i] = *reinterpret_cast<const uint4*>(lane_bytes + i * 512);
  return raw;
}
template <TileFormat kFormat>
__device__ __forceinline__ TileA read_piece(const uint8_t* lane_bytes) {
  return tile_from(read_raw<kFormat>(lane_bytes));
}

// Keeps the conversion of `tiles` where this stands. The assembler would sink it to where it is used, behind
// the wait for the kernel ahead, to save registers: a condition that needs all of it, and that no weights
// fulfil (neither BF16 nor FP16 from E4M3 has such bits; for BF16 it is harmless), keeps it here.
template <int kTiles>
__device__ __forceinline__ void convert_here(const TileA (&tiles)[kTiles]) {
  uint32_t all = 0;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int s = 0; s < 2; ++s)
      all ^= tiles[i].r[s][0] ^ tiles[i].r[s][1] ^ tiles[i].r[s][2] ^ tiles[i].r[s][3];
  }
  if (all == 0x12345679u) __nanosleep(0);
}

// 16 bytes that are read once.
__device__ __forceinline__ uint4 load_once(const uint8_t* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 8 values of a lane in natural order (k = 4t.. and 16 + 4t..) to slot order.
__device__ __forceinline__ uint4 slots_from_natural(uint2 s0, uint2 s1) {
  return {__byte_perm(s0.x, s0.y, 0x5410), __byte_perm(s0.x, s0.y, 0x7632), __byte_perm(s1.x, s1.y, 0x5410),
          __byte_perm(s1.x, s1.y, 0x7632)};
}

template <bool kF16>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  if constexpr (kF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    return;
  }
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A piece of W by its 32 columns of eight rows of x, which a lane finds in 16 bytes of slot order.
template <TileFormat kFormat>
__device__ __forceinline__ void multiply_piece(float (&c)[4], const TileA& tile, const uint4& x) {
  constexpr bool kF16 = kFormat == TileFormat::kF8E4M3F16;
  multiply_add<kF16>(c, tile.r[0], x.x, x.y);
  multiply_add<kF16>(c, tile.r[1], x.z, x.w);
}

// --- residual update and norms -----------------------------------------------------------------------------

constexpr int kNormVectors = 3;  // float4s of a row that a thread holds: hidden <= 3072
constexpr int kMaxHidden = 4 * kNormVectors * kProductThreads;

// kSums sums over a block, in an order that depends on nothing else; `scratch` [kSums][warps] must not be in
// use.
template <int kSums>
__device__ __forceinline__ void block_sums(float (&sum)[kSums], float* scratch) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[i] += __shfl_xor_sync(~0u, sum[i], d);
  }
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) scratch[i * kProductWarps + threadIdx.x / 32] = sum[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const float4 a = *reinterpret_cast<const float4*>(scratch + i * kProductWarps);
    const float4 b = *reinterpret_cast<const float4*>(scratch + i * kProductWarps + 4);
    sum[i] = ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
  }
}

// Norm weights, [2][hidden] in shared memory: post, then pre. Fetched before the wait, since no kernel writes
// them; a thread reads only what it copied itself.
__device__ __forceinline__ void fetch_norm_weights(const DecodeNorm& norm, int hidden, float* to) {
  for (int i = static_cast<int>(threadIdx.x); 4 * i < hidden; i += kProductThreads) {
    if (norm.y != nullptr) copy_async_16(shared_address(to + 4 * i), norm.post_norm + 4 * i);
    if (norm.pre_norm != nullptr) copy_async_16(shared_address(to + hidden + 4 * i), norm.pre_norm + 4 * i);
  }
}

__device__ __forceinline__ float dot(const float4 (&x)[kNormVectors], const float4 (&y)[kNormVectors]) {
  float4 sum = {0, 0, 0, 0};
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    sum = {__fmaf_rn(x[v].x, y[v].x, sum.x), __fmaf_rn(x[v].y, y[v].y, sum.y),
           __fmaf_rn(x[v].z, y[v].z, sum.z), __fmaf_rn(x[v].w, y[v].w, sum.w)};
  }
  return __fadd_rn(__fadd_rn(sum.x, sum.y), __fadd_rn(sum.z, sum.w));
}

// A thread's columns of row `row` of the residual stream.
__device__ __forceinline__ void load_row(const float* rows, int row, int hidden,
                                         float4 (&out)[kNormVectors]) {
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    const int i = v * kProductThreads + static_cast<int>(threadIdx.x);
    out[v] = 4 * i < hidden ? __ldcg(reinterpret_cast<const float4*>(rows + int64_t{row} * hidden) + i)
                            : float4{0, 0, 0, 0};
  }
}

// One row of DecodeNorm by a block of kProductThreads, h being the thread's columns of norm.h. load_y(part,
// out) gives the thread's columns of a part of y, where there is an update. `store` takes (column of 4, its
// values). Every operation is written out, so that no compilation fuses what another
// does not: kernels that norm a row in front of a product and the kernel that does nothing else agree bit by
// bit. `scratch`: kNormScratch floats.
//
// One pass over the block for both norms: with q = y * post_norm and r = 1 / RMS(y), the sum of (h + r q)^2
// is sum h^2 + 2 r sum h q + r^2 sum q^2.
constexpr int kNormScratch = 4 * kProductWarps;
template <class LoadY, class Store>
__device__ __forceinline__ void residual_norm_row(const DecodeNorm& norm, const float* weights,
                                                  float4 (&h)[kNormVectors], int row, int hidden,
                                                  float* scratch, bool keep, const LoadY& load_y,
                                                  const Store& store) {
  const int thread = static_cast<int>(threadIdx.x);
  const float inv_hidden = 1.0f / static_cast<float>(hidden);
  float square = 0;
  if (norm.y != nullptr) {
    float4 y[kNormVectors], q[kNormVectors];
    load_y(0, y);
    if (norm.y_parts == 4) {
      float4 p[3][kNormVectors];
#pragma unroll
      for (int i = 0; i < 3; ++i) load_y(i + 1, p[i]);
#pragma unroll
      for (int v = 0; v < kNormVectors; ++v) {
        const auto add = [](float a, float b, float c, float d) {
          return __fadd_rn(__fadd_rn(__fadd_rn(a, b), c), d);
        };
        y[v] = {add(y[v].x, p[0][v].x, p[1][v].x, p[2][v].x), add(y[v].y, p[0][v].y, p[1][v].y, p[2][v].y),
                add(y[v].z, p[0][v].z, p[1][v].z, p[2][v].z), add(y[v].w, p[0][v].w, p[1][v].w, p[2][v].w)};
      }
    }
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      const int i = v * kProductThreads + thread;
      q[v] = y[v];
      if (4 * i >= hidden) continue;
      const float4 w = *reinterpret_cast<const float4*>(weights + 4 * i);
      q[v] = {__fmul_rn(y[v].x, w.x), __fmul_rn(y[v].y, w.y), __fmul_rn(y[v].z, w.z), __fmul_rn(y[v].w, w.w)};
    }
    float sums[4] = {dot(y, y), dot(h, h), dot(h, q), dot(q, q)};
    block_sums(sums, scratch);
    const float r = rsqrtf(__fmaf_rn(sums[0], inv_hidden, norm.eps));
    square = __fmaf_rn(r, __fmaf_rn(r, sums[3], __fmul_rn(2.0f, sums[2])), sums[1]);
    square = __fmul_rn(fmaxf(square, 0.0f), __fmul_rn(norm.scale, norm.scale));
    const auto update = [&](float hv, float qv) { return __fmul_rn(__fmaf_rn(qv, r, hv), norm.scale); };
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      const int i = v * kProductThreads + thread;
      if (4 * i >= hidden) continue;
      h[v] = {update(h[v].x, q[v].x), update(h[v].y, q[v].y), update(h[v].z, q[v].z), update(h[v].w, q[v].w)};
      if (keep) reinterpret_cast<float4*>(norm.h_out)[int64_t{row} * hidden / 4 + i] = h[v];
    }
  } else if (norm.pre_norm != nullptr) {
    float sums[1] = {dot(h, h)};
    block_sums(sums, scratch);
    square = sums[0];
  }
  const float r = norm.pre_norm != nullptr ? rsqrtf(__fmaf_rn(square, inv_hidden, norm.eps)) : 1.0f;
#pragma unroll
  for (int v = 0; v < kNormVectors; ++v) {
    const int i = v * kProductThreads + thread;
    if (4 * i >= hidden) continue;
    float4 x = h[v];
    if (norm.pre_norm != nullptr) {
      const float4 w = *reinterpret_cast<const float4*>(weights + hidden + 4 * i);
      x = {__fmul_rn(__fmul_rn(x.x, r), w.x), __fmul_rn(__fmul_rn(x.y, r), w.y),
           __fmul_rn(__fmul_rn(x.z, r), w.z), __fmul_rn(__fmul_rn(x.w, r), w.w)};
    }
    if (keep) store(4 * i, x);
  }
}

// Stores the four values at `column` (a multiple of 4) of `row`, in any order but natural.
__device__ __forceinline__ void store_four(uint8_t* x, XOrder order, int row, int column, int rows,
                                           const float4& v) {
  const uint2 pairs = is_f16(order) ? uint2{pack_f16(v.x, v.y), pack_f16(v.z, v.w)}
                                    : uint2{pack_bf16(v.x, v.z), pack_bf16(v.y, v.w)};
  if (is_wide(order)) {
    *reinterpret_cast<uint32_t*>(x + 2 * wide_order(row, column, rows)) = pairs.x;
    *reinterpret_cast<uint32_t*>(x + 2 * wide_order(row, column + 1, rows)) = pairs.y;
  } else {
    *reinterpret_cast<uint2*>(x + 2 * slot_order(row, column, rows)) = pairs;
  }
}

}  // namespace jewel::cuda

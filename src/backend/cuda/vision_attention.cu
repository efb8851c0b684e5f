// A block takes 128 queries of one head, a warp 32 of them; keys and values pass through shared memory in
// tiles of 64, two at a time. mma.sync m16n8k16: at 32 queries a warp the tensor cores, the exponentials (16
// a cycle) and the reads of shared memory take about the same time, so the instructions of sm_80 lose little
// here, and one path serves all GPUs.
#include "backend/cuda/vision_attention.h"

#include <climits>

#include "backend/cuda/copy_async.h"
#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/prefill_mma.h"
#include "backend/cuda/prefill_values.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kQueries = 128;
constexpr int kKeys = 64;
constexpr int kDim = kVisionHeadDim;
constexpr int kTileBytes = kKeys * kDim * 2;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ void load_tile(uint32_t tile, const __nv_bfloat16* from, int key0, int n_keys) {
#pragma unroll
  for (int i = 0; i < kKeys * 8 / kThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * kThreads, row = at / 8, piece = at % 8;
    const bool valid = key0 + row < n_keys;
    copy_async_16(piece_at(tile, row, piece),
                  from + static_cast<int64_t>(valid ? key0 + row : 0) * kDim + piece * 8, valid);
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    vision_attention_kernel(const VisionAttention task, const __grid_constant__ VisionImages images) {
  wait_for_previous();
  __shared__ __align__(1024) uint8_t shared[4 * kTileBytes];  // K, V, K, V
  // The block's image and the first of its queries, counted within the image.
  int image = 0, query0 = static_cast<int>(blockIdx.x) * kQueries;
  for (; image < images.n - 1; ++image) {
    const int tiles = (images.first[image + 1] - images.first[image] + kQueries - 1) / kQueries * kQueries;
    if (query0 < tiles) break;
    query0 -= tiles;
  }
  const int first = images.first[image], n = images.first[image + 1] - first;
  const int64_t head_offset = (static_cast<int64_t>(blockIdx.y) * images.first[images.n] + first) * kDim;
  const __nv_bfloat16 *q = task.q + head_offset, *k = task.k + head_offset, *v = task.v + head_offset;

  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32),
            g = lane / 4, t = lane % 4;
  uint32_t queries[2][4][4];  // [16 rows][16 columns of k]
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = min(query0 + warp * 32 + m * 16 + g + i % 2 * 8, n - 1);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        queries[m][s][i] = *reinterpret_cast<const uint32_t*>(q + static_cast<int64_t>(row) * kDim + s * 16 +
                                                              2 * t + i / 2 * 8);
      }
    }
  }

  float out[2][8][4] = {};
  float maximum[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
  float sum[2][2] = {};
  constexpr float kLog2e = 1.4426950408889634f;
  const auto tile_of = [&](int i) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + i * kTileBytes;
  };
  const int tiles = (n + kKeys - 1) / kKeys;
  load_tile(tile_of(0), k, 0, n);
  load_tile(tile_of(1), v, 0, n);
  commit_copies();

  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t keys = tile_of(tile % 2 * 2), values = tile_of(tile % 2 * 2 + 1);
    if (tile + 1 < tiles) {
      load_tile(tile_of((tile + 1) % 2 * 2), k, (tile + 1) * kKeys, n);
      load_tile(tile_of((tile + 1) % 2 * 2 + 1), v, (tile + 1) * kKeys, n);
    }
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    float scores[2][8][4] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t b[4];
        load_matrices<false>(piece_at(keys, j * 8 + lane % 8, half * 4 + lane / 8), b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(scores[m][j], queries[m][half * 2], b[0], b[1]);
          mma_bf16(scores[m][j], queries[m][half * 2 + 1], b[2], b[3]);
        }
      }
    }
    if ((tile + 1) * kKeys > n) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (tile * kKeys + j * 8 + 2 * t + i % 2 >= n) scores[0][j][i] = scores[1][j][i] = -INFINITY;
        }
      }
    }

    uint32_t p[2][4][4];  // probabilities as A: [16 rows][16 keys]
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = maximum[m][r];
#pragma unroll
        for (int j = 0; j < 8; ++j) top = fmaxf(top, fmaxf(scores[m][j][2 * r], scores[m][j][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float shrink = exp2_fast((maximum[m][r] - top) * kLog2e), offset = top * kLog2e;
        maximum[m][r] = top;
        float part = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float low = exp2_fast(fmaf(scores[m][j][2 * r], kLog2e, -offset));
          const float high = exp2_fast(fmaf(scores[m][j][2 * r + 1], kLog2e, -offset));
          part += low + high;
          p[m][j / 2][j % 2 * 2 + r] = pack_bf16(low, high);
          out[m][j][2 * r] *= shrink;
          out[m][j][2 * r + 1] *= shrink;
        }
        sum[m][r] = sum[m][r] * shrink + part;
      }
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {  // 16 keys
#pragma unroll
      for (int j = 0; j < 8; j += 2) {  // 16 columns
        uint32_t b[4];
        load_matrices<true>(piece_at(values, s * 16 + lane % 16, j + lane / 16), b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          mma_bf16(out[m][j], p[m][s], b[0], b[1]);
          mma_bf16(out[m][j + 1], p[m][s], b[2], b[3]);
        }
      }
    }
    __syncthreads();  // the tile may be overwritten
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[m][r];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int row = query0 + warp * 32 + m * 16 + g + 8 * r;
      if (row >= n) continue;
      __nv_bfloat16* to = task.out + (static_cast<int64_t>(first + row) * task.n_heads + blockIdx.y) * kDim;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float low = fminf(fmaxf(__fdividef(out[m][j][2 * r], total), task.min), task.max);
        const float high = fminf(fmaxf(__fdividef(out[m][j][2 * r + 1], total), task.min), task.max);
        // Columns 8 (j % 2) + 2t of a group of 16: pair t % 2 of four columns 2 (j % 2) + t / 2.
        const int slot = 2 * (j % 2 * 2 + t / 2) + 8 * (t % 2);
        *reinterpret_cast<uint32_t*>(to + j / 2 * 16 + slot) = pack_bf16(low, high);
      }
    }
  }
}

}  // namespace

cudaError_t launch_vision_attention(const VisionAttention& attention, const VisionImages& images,
                                    cudaStream_t stream) {
  int tiles = 0;
  for (int i = 0; i < images.n; ++i)
    tiles += (images.first[i + 1] - images.first[i] + kQueries - 1) / kQueries;
  if (tiles == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(attention.n_heads));
  // Launched plainly: blocks of a dependent launch settle two to a multiprocessor beside those that still
  // run, and stay there (13.4 us became 16.6 at 630 patches).
  vision_attention_kernel<<<grid, kThreads, 0, stream>>>(attention, images);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

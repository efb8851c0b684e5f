#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "backend/cuda/tiles.h"

namespace jewel::cuda {
namespace {

__host__ __device__ int64_t tile_row(RowOrder order, int64_t base, int64_t row) {
  switch (order) {
    case RowOrder::kGate:
      return row / 8 * 16 + row % 8;
    case RowOrder::kUp:
      return row / 8 * 16 + 8 + row % 8;
    default:
      return base + row;
  }
}

// Byte offsets of four consecutive k (k % 4 == 0) of a row.
__device__ int64_t f8_offset(int64_t row, int k, int columns) {
  const int64_t tile = row / 16 * (columns / 32) + k / 32;
  const int lane = static_cast<int>(row % 8) * 4 + k % 16 / 4;
  return tile * 512 + lane * 16 + k % 32 / 16 * 8 + row % 16 / 8 * 4;
}
__device__ int64_t bf16_offset(int64_t row, int k, int columns) {
  const int64_t tile = row / 16 * (columns / 16) + k / 16;
  const int lane = static_cast<int>(row % 8) * 4 + k % 16 / 4;
  return tile * 512 + lane * 16 + row % 16 / 8 * 8;
}

// One block a row, four k a thread.
__global__ void copy_rows(TileRows t) {
  const int64_t row = tile_row(t.order, t.base, t.first_row + blockIdx.x);
  auto* tiles = static_cast<unsigned char*>(t.tiles);
  for (int k = threadIdx.x * 4; k < t.k; k += blockDim.x * 4) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * t.k + k;
    if (t.fp8) {
      *reinterpret_cast<uint32_t*>(tiles + f8_offset(row, k, t.k)) =
          *reinterpret_cast<const uint32_t*>(static_cast<const unsigned char*>(t.rows) + at);
    } else {
      *reinterpret_cast<uint2*>(tiles + bf16_offset(row, k, t.k)) =
          *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(t.rows) + at);
    }
  }
}

__global__ void quantize_rows_to_tiles(TileRows t) {
  __shared__ float warp_max[32];
  const auto* in = static_cast<const __nv_bfloat16*>(t.rows) + static_cast<int64_t>(blockIdx.x) * t.k;
  float amax = 0;
  for (int k = threadIdx.x; k < t.k; k += blockDim.x) amax = fmaxf(amax, fabsf(__bfloat162float(in[k])));
  for (int step = 16; step > 0; step /= 2) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, step));
  if (threadIdx.x % 32 == 0) warp_max[threadIdx.x / 32] = amax;
  __syncthreads();
  for (int w = 0; w < static_cast<int>(blockDim.x / 32); ++w) amax = fmaxf(amax, warp_max[w]);
  const float scale = amax > 0 ? amax / 448.0f : 1.0f;
  const int64_t row = tile_row(t.order, t.base, t.first_row + blockIdx.x);
  if (threadIdx.x == 0) t.row_scale[row] = scale;
  for (int k = threadIdx.x * 4; k < t.k; k += blockDim.x * 4) {
    uint32_t codes = 0;
    for (int i = 0; i < 4; ++i) {
      const __nv_fp8_storage_t code =
          __nv_cvt_float_to_fp8(__bfloat162float(in[k + i]) / scale, __NV_SATFINITE, __NV_E4M3);
      codes |= static_cast<uint32_t>(code) << (8 * i);
    }
    *reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(t.tiles) + f8_offset(row, k, t.k)) = codes;
  }
}

// A block a row tile, its warps share K. A lane has rows g and g + 8 (f8_offset).
constexpr int kSquaresWarps = 8;
__global__ void __launch_bounds__(32 * kSquaresWarps) row_squares(RowSquares r) {
  __shared__ float sums[kSquaresWarps][16];
  const int tile = static_cast<int>(blockIdx.x), warp = static_cast<int>(threadIdx.x) / 32,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int pieces = r.k / 32;
  const auto* from = static_cast<const uint4*>(r.tiles) + static_cast<int64_t>(tile) * pieces * 32 + lane;
  float sum[2] = {};
  for (int piece = warp; piece < pieces; piece += kSquaresWarps) {
    const uint4 v = from[piece * 32];
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};  // [16 columns of 32][row]
    for (int i = 0; i < 16; ++i) {
      __nv_fp8_e4m3 code;
      code.__x = static_cast<__nv_fp8_storage_t>(words[i / 4] >> (i % 4 * 8));
      const int k = piece * 32 + i / 8 * 16 + lane % 4 * 4 + i % 4;
      const float value = static_cast<float>(code) * r.column_weight[k];
      sum[i / 4 % 2] += value * value;
    }
  }
  for (float& s : sum) {
    s += __shfl_xor_sync(~0u, s, 1);
    s += __shfl_xor_sync(~0u, s, 2);
  }
  if (lane % 4 == 0) sums[warp][lane / 4] = sum[0], sums[warp][8 + lane / 4] = sum[1];
  __syncthreads();
  if (threadIdx.x >= 16) return;
  const int row = tile * 16 + static_cast<int>(threadIdx.x);
  const float scale = r.row_scale != nullptr ? r.row_scale[row] : 1.0f;
  float all = 0;
  for (const auto& of_warp : sums) all += of_warp[threadIdx.x];
  r.squares[row] = all * scale * scale;
}

// Magnitudes of BF16 are ordered as their bits are.
__global__ void __launch_bounds__(256) largest_magnitude(const uint4* values, int64_t n, uint32_t* bits) {
  uint32_t largest = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const uint4 v = values[i];
    for (const uint32_t two : {v.x, v.y, v.z, v.w})
      largest = max(largest, max(two & 0x7fff, two >> 16 & 0x7fff));
  }
  largest = __reduce_max_sync(~0u, largest);
  if (threadIdx.x % 32 == 0) atomicMax(bits, largest);
}

}  // namespace

cudaError_t launch_tile_rows(const TileRows& tile, cudaStream_t stream) {
  if (tile.n == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(tile.n);
  if (tile.to_fp8)
    quantize_rows_to_tiles<<<blocks, 256, 0, stream>>>(tile);
  else
    copy_rows<<<blocks, 256, 0, stream>>>(tile);
  return cudaGetLastError();
}

cudaError_t launch_row_squares(const RowSquares& rows, cudaStream_t stream) {
  if (rows.n % 16 != 0 || rows.k % 32 != 0) return cudaErrorInvalidValue;
  if (rows.n == 0) return cudaSuccess;
  row_squares<<<static_cast<unsigned>(rows.n / 16), 32 * kSquaresWarps, 0, stream>>>(rows);
  return cudaGetLastError();
}

cudaError_t launch_largest_magnitude(const void* values, int64_t n, uint32_t* bits, cudaStream_t stream) {
  if (n % 8 != 0) return cudaErrorInvalidValue;
  constexpr unsigned kBlocks = 1024;
  largest_magnitude<<<kBlocks, 256, 0, stream>>>(static_cast<const uint4*>(values), n / 8, bits);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

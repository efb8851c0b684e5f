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

__global__ void scatter_scales(ScatterScales s) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < s.n) s.row_scale[tile_row(s.order, s.base, i)] = s.scale[s.n_scales == 1 ? 0 : i];
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

cudaError_t launch_scatter_scales(const ScatterScales& scatter, cudaStream_t stream) {
  if (scatter.n == 0) return cudaSuccess;
  scatter_scales<<<static_cast<unsigned>((scatter.n + 255) / 256), 256, 0, stream>>>(scatter);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

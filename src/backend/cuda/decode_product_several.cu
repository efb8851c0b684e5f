// The product kernel of more than eight rows for matrices with few rows of their own (the per-layer inputs,
// the linears of small models): there a block owns one or two tiles of 16 rows of W, and its eight warps
// share K in eight runs. A warp copies its run's pieces of W and of the activations through a private ring in
// shared memory, lane by lane as they will be read, all of a short run at once. Where row tiles are few,
// blocks share out the activations' rows, and find W in L2.
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

// kSteps: pieces of K in flight per warp.
template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kSteps>
struct SeveralRows {
  static constexpr int kPieceBytes = RawPiece<kFormat>::kBytes;
  static constexpr int kStepBytes = kRowTiles * kPieceBytes + kColumnTiles * 512;
  static constexpr int kDepth = kSteps;
  static constexpr int kWarpBytes = kDepth * kStepBytes;
  static constexpr int kRedRows = 8 * kColumnTiles;
  static constexpr size_t kSharedBytes =
      kProductWarps * kWarpBytes + kProductWarps * kRedRows * kRedPitch * sizeof(float);
};

template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kSteps>
__global__ __launch_bounds__(kProductThreads) void several_rows_kernel(
    const __grid_constant__ ProductArgs a) {
  using K = SeveralRows<kFormat, kColumnTiles, kRowTiles, kSteps>;
  extern __shared__ __align__(128) uint8_t shared[];
  release_next_kernel();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  float* red = reinterpret_cast<float*>(shared + kProductWarps * K::kWarpBytes);
  const int first_row = static_cast<int>(blockIdx.y) * K::kRedRows;
  const int rows = min(a.rows - first_row, K::kRedRows);

  // This warp's pieces: [k_begin, k_begin + steps) of K, the same in every row group.
  const int split = static_cast<int>(blockIdx.x) % a.splits,
            first_group = static_cast<int>(blockIdx.x) / a.splits;
  const int split_begin = split * a.k32 / a.splits, length = (split + 1) * a.k32 / a.splits - split_begin;
  const int run_begin = warp * length / kProductWarps;
  const int steps = (warp + 1) * length / kProductWarps - run_begin;
  const int k_begin = split_begin + run_begin;
  const int row_groups = (a.row_tiles + kRowTiles - 1) / kRowTiles;

  const uint8_t* x_lane[kColumnTiles];
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const int row = min(first_row + 8 * j + g, a.rows - 1);
    x_lane[j] = a.x_order == XOrder::kSlots
                    ? a.x + (static_cast<int64_t>(k_begin) * a.rows + row) * 64 + t * 16
                    : a.x + (static_cast<int64_t>(row) * a.k32 + k_begin) * 64 + t * 8;
  }

  uint8_t* ring = shared + warp * K::kWarpBytes + lane * 16;
  const uint32_t ring_address = shared_address(ring);
  const auto copy_w = [&](int group, int step, int slot) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int row_tile = min(group * kRowTiles + r, a.row_tiles - 1);
      const uint8_t* from =
          a.tiles + (static_cast<int64_t>(row_tile) * a.k32 + k_begin + step) * K::kPieceBytes + lane * 16;
#pragma unroll
      for (int i = 0; i < K::kPieceBytes; i += 512) {
        copy_async_16(ring_address + slot * K::kStepBytes + r * K::kPieceBytes + i, from + i);
      }
    }
  };
  const auto copy_x = [&](int step, int slot) {
#pragma unroll
    for (int j = 0; j < kColumnTiles; ++j) {
      const uint32_t to = ring_address + slot * K::kStepBytes + kRowTiles * K::kPieceBytes + j * 512;
      if (a.x_order == XOrder::kSlots) {
        copy_async_16(to, x_lane[j] + static_cast<int64_t>(step) * a.rows * 64);
      } else {
        copy_async_8(to, x_lane[j] + step * 64);
        copy_async_8(to + 8, x_lane[j] + step * 64 + 32);
      }
    }
  };
  // The copying side walks (group, step), kDepth steps ahead of the computing side.
  int copy_group = first_group, copy_step = 0;
  const auto advance = [&] {
    if (++copy_step == steps) copy_step = 0, copy_group += a.block_rows;
  };
  const bool idle = steps == 0;
#pragma unroll
  for (int i = 0; i < K::kDepth; ++i) {
    if (!idle && copy_group < row_groups) copy_w(copy_group, copy_step, i), advance();
  }
  commit_copies();
  float2 scale[kRowTiles];
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) scale[r] = tile_scales(a, a.out_kind, first_group * kRowTiles + r, tid);
  wait_for_last_kernel();
  copy_group = first_group, copy_step = 0;
#pragma unroll
  for (int i = 0; i < K::kDepth; ++i) {
    if (!idle && copy_group < row_groups) copy_x(copy_step, i), advance();
    commit_copies();
  }

  int slot = 0;
  for (int group = first_group; group < row_groups; group += a.block_rows) {
    float acc[kRowTiles][kColumnTiles][4] = {};
    for (int step = 0; step < steps; ++step) {
      wait_for_copies<K::kDepth - 1>();
      const uint8_t* at = ring + slot * K::kStepBytes;
      TileA tile[kRowTiles];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        tile[r] = read_piece<kFormat>(at + r * K::kPieceBytes);
      }
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        uint4 b = *reinterpret_cast<const uint4*>(at + kRowTiles * K::kPieceBytes + j * 512);
        if (a.x_order == XOrder::kNatural) b = slots_from_natural({b.x, b.y}, {b.z, b.w});
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          multiply_piece<kFormat>(acc[r][j], tile[r], b);
        }
      }
      if (copy_group < row_groups) {
        copy_w(copy_group, copy_step, slot);
        copy_x(copy_step, slot);
        advance();
      }
      commit_copies();
      slot = slot + 1 == K::kDepth ? 0 : slot + 1;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      stash_sums<kColumnTiles>(red + warp * K::kRedRows * kRedPitch, acc[r], rows, lane);
      __syncthreads();
      const int row_tile = group * kRowTiles + r;
      if (row_tile < a.row_tiles)
        finish_tile(a, a.out_kind, red, K::kRedRows, split, row_tile, scale[r], tid, first_row, rows);
      __syncthreads();
      scale[r] = tile_scales(a, a.out_kind, (group + a.block_rows) * kRowTiles + r, tid);
    }
  }
}

template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kSteps>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  using K = SeveralRows<kFormat, kColumnTiles, kRowTiles, kSteps>;
  const auto kernel = several_rows_kernel<kFormat, kColumnTiles, kRowTiles, kSteps>;
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   product_device().shared_per_block);
  if (allowed != cudaSuccess) return allowed;
  a.block_rows = blocks_per_split((a.row_tiles + kRowTiles - 1) / kRowTiles, a.splits, 2);
  const dim3 grid(static_cast<unsigned>(a.block_rows * a.splits),
                  static_cast<unsigned>((a.rows + K::kRedRows - 1) / K::kRedRows));
  const LaunchShape shape{.grid = grid, .shared = K::kSharedBytes, .overlap = overlap};
  return launch_kernel<ProductArgs>(kernel, shape, stream, a);
}

template <TileFormat kFormat>
cudaError_t dispatch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  if (product_device().shared_per_block < 200 * 1024) {  // sm_80: 163 KB, sm_89: 99
    return a.rows <= 16 ? launch<kFormat, 2, 1, 5>(a, overlap, stream)
                        : launch<kFormat, 4, 1, 3>(a, overlap, stream);
  }
  // Enough blocks for the card, each with few activations: what a block waits for is its part of x.
  if (a.row_tiles <= 32) {
    return a.rows <= 16 ? launch<kFormat, 1, 1, 10>(a, overlap, stream)
                        : launch<kFormat, 2, 1, 8>(a, overlap, stream);
  }
  if (a.k32 / a.splits <= 2 * kProductWarps) {  // a warp's run is there at once
    if (a.rows <= 16) return launch<kFormat, 1, 1, 2>(a, overlap, stream);
    return a.rows <= 32 ? launch<kFormat, 4, 1, 2>(a, overlap, stream)
                        : launch<kFormat, 2, 4, 2>(a, overlap, stream);
  }
  constexpr bool kBytes = kFormat != TileFormat::kBF16;
  if (a.rows <= 16) return launch<kFormat, 2, 1, 8>(a, overlap, stream);
  if (a.rows <= 32) return launch<kFormat, 4, 1, kBytes ? 8 : 6>(a, overlap, stream);
  return launch<kFormat, 8, 2, kBytes ? 4 : 3>(a, overlap, stream);
}

}  // namespace

cudaError_t launch_several_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream) {
  return with_format(format, [&]<TileFormat kFormat>() { return dispatch<kFormat>(a, overlap, stream); });
}

}  // namespace jewel::cuda

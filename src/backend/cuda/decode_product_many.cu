// The product kernel of more than eight rows where K falls into eight equal runs. The activations of a
// block's 16 or 32 rows lie in shared memory, once for all; two teams of eight warps each own row tiles (16
// rows of W), one after another, and share K in eight runs of kRun pieces of 16 x 32. W streams through
// private rings: a lane reads only what it copied itself. Beyond 32 rows other blocks take the rest and find
// W in L2.
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

constexpr int kTeams = 2;
constexpr int kRedRows = 16;  // activation rows whose sums pass through shared memory at a time

template <TileFormat kFormat, int kRun, int kColumnTiles>
struct ManyRows {
  static constexpr int kPieceBytes = RawPiece<kFormat>::kBytes;
  static constexpr int kSlots =
      kFormat != TileFormat::kBF16 && kColumnTiles == 2 && kRun <= 10 ? kRun : kRun / 2;
  static constexpr int kWarpBytes = kSlots * kPieceBytes;
  static constexpr int kRingBytes = kTeams * kProductWarps * kWarpBytes;
  static constexpr int kRedFloats = kProductWarps * kRedRows * kRedPitch;
  static constexpr int kXBytes = 8 * kColumnTiles * kRun * kProductWarps * 64;
  static constexpr int kSharedBytes =
      kRingBytes + kXBytes + kTeams * kRedFloats * static_cast<int>(sizeof(float)) + 16;
};

__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(kProductThreads) : "memory");
}

template <TileFormat kFormat, int kRun, int kColumnTiles>
__global__ __launch_bounds__(kTeams* kProductThreads,
                             1) void many_rows_kernel(const __grid_constant__ ProductArgs a) {
  using K = ManyRows<kFormat, kRun, kColumnTiles>;
  extern __shared__ __align__(128) uint8_t shared[];
  release_next_kernel();
  const int team = static_cast<int>(threadIdx.x) / kProductThreads,
            tid = static_cast<int>(threadIdx.x) % kProductThreads;
  const int warp = tid / 32, lane = tid % 32;
  const int first_row = static_cast<int>(blockIdx.y) * 8 * kColumnTiles;
  const int rows = min(a.rows - first_row, 8 * kColumnTiles);
  uint8_t* x_shared = shared + K::kRingBytes;
  float* sums = reinterpret_cast<float*>(x_shared + K::kXBytes) + team * K::kRedFloats;
  const uint32_t x_arrived = shared_address(x_shared + K::kXBytes + kTeams * K::kRedFloats * sizeof(float));
  if (a.bulk_x && threadIdx.x == 0) {
    start_barrier(x_arrived);
    expect_bulk(static_cast<uint32_t>(kRun * kProductWarps * rows * 64), x_arrived);
  }

  const int split = static_cast<int>(blockIdx.x) / a.block_rows;
  const int stride = kTeams * a.block_rows;
  int row_tile = static_cast<int>(blockIdx.x) % a.block_rows + team * a.block_rows;
  const int first_step = split * kProductWarps * kRun, k_begin = first_step + warp * kRun;  // in pieces

  uint8_t* ring = shared + (team * kProductWarps + warp) * K::kWarpBytes + lane * 16;
  const uint32_t ring_address = shared_address(ring);
  const uint8_t* from =
      a.tiles + (static_cast<int64_t>(row_tile) * a.k32 + k_begin) * K::kPieceBytes + lane * 16;
  const int64_t tile_stride = static_cast<int64_t>(stride) * a.k32 * K::kPieceBytes;
  const auto copy_piece = [&](const uint8_t* tile, int piece, bool wanted) {
    if (wanted) {
#pragma unroll
      for (int s = 0; s < K::kPieceBytes; s += 512) {
        copy_async_16(ring_address + piece % K::kSlots * K::kPieceBytes + s,
                      tile + piece * K::kPieceBytes + s);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < K::kSlots; ++i) copy_piece(from, i, row_tile < a.row_tiles);
  float2 scale = tile_scales(a, a.out_kind, row_tile, tid);
  __syncthreads();  // the barrier's start
  wait_for_last_kernel();

  const int step_bytes = rows * 64;
  if (a.bulk_x) {
    constexpr int kPieces = kRun * kProductWarps;
    const auto fetch = [&](int piece, int bytes) {
      fetch_bulk(shared_address(x_shared + piece * step_bytes),
                 a.x + (static_cast<int64_t>(first_step + piece) * a.rows + first_row) * 64,
                 static_cast<uint32_t>(bytes), x_arrived);
    };
    if (rows == a.rows) {
      if (threadIdx.x == 0) fetch(0, kPieces * step_bytes);
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < kPieces; i += kTeams * kProductThreads)
        fetch(i, step_bytes);
    }
    wait_for_bulk(x_arrived);
  } else {
    const int count = kRun * kProductWarps * rows * 4;  // of 16 bytes
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kTeams * kProductThreads) {
      const int part = i % 4, row = first_row + i / 4 % rows, step = first_step + i / 4 / rows;
      uint4 values;
      if (a.x_order == XOrder::kSlots) {
        values = __ldcg(reinterpret_cast<const uint4*>(
            a.x + (static_cast<int64_t>(step) * a.rows + row) * 64 + part * 16));
      } else {
        const uint2* x =
            reinterpret_cast<const uint2*>(a.x + (static_cast<int64_t>(row) * a.k32 + step) * 64 + part * 8);
        values = slots_from_natural(__ldcg(x), __ldcg(x + 4));
      }
      *reinterpret_cast<uint4*>(x_shared + i * 16) = values;
    }
    __syncthreads();
  }

  int x_offset[kColumnTiles];
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) x_offset[j] = min(8 * j + lane / 4, rows - 1) * 64 + lane % 4 * 16;
  const uint8_t* x_run = x_shared + warp * kRun * step_bytes;

#pragma unroll 1
  for (; row_tile < a.row_tiles; row_tile += stride) {
    float acc[kColumnTiles][4] = {};
    const bool more = row_tile + stride < a.row_tiles;
    const uint8_t* x = x_run;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      wait_for_copies<K::kSlots - 1>();
      const TileA tile = read_piece<kFormat>(ring + i % K::kSlots * K::kPieceBytes);
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + x_offset[j]);
        multiply_piece<kFormat>(acc[j], tile, b);
      }
      x += step_bytes;
      if (i + K::kSlots < kRun) {
        copy_piece(from, i + K::kSlots, true);
      } else {
        copy_piece(from + tile_stride, i + K::kSlots - kRun, more);
      }
    }
    from += tile_stride;

#pragma unroll
    for (int j = 0; j < kColumnTiles; j += 2) {
      if (8 * j >= rows) continue;
      team_barrier(team);  // the last sums have been read
      const float pair[2][4] = {{acc[j][0], acc[j][1], acc[j][2], acc[j][3]},
                                {acc[j + 1][0], acc[j + 1][1], acc[j + 1][2], acc[j + 1][3]}};
      const int pair_rows = min(rows - 8 * j, kRedRows);
      stash_sums<2>(sums + warp * kRedRows * kRedPitch, pair, pair_rows, lane);
      team_barrier(team);
      finish_tile(a, a.out_kind, sums, kRedRows, split, row_tile, scale, tid, first_row + 8 * j, pair_rows);
    }
    scale = tile_scales(a, a.out_kind, row_tile + stride, tid);
  }
}

template <TileFormat kFormat, int kRun, int kColumnTiles>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  using K = ManyRows<kFormat, kRun, kColumnTiles>;
  const auto kernel = many_rows_kernel<kFormat, kRun, kColumnTiles>;
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const int chunks = (a.rows + 8 * kColumnTiles - 1) / (8 * kColumnTiles);
  a.block_rows = std::max(1, std::min(product_device().sms / a.splits / chunks, a.row_tiles));
  const dim3 grid(static_cast<unsigned>(a.block_rows * a.splits), static_cast<unsigned>(chunks));
  const LaunchShape shape{
      .grid = grid, .threads = kTeams * kProductThreads, .shared = K::kSharedBytes, .overlap = overlap};
  return launch_kernel<ProductArgs>(kernel, shape, stream, a);
}

// 32 rows a block where they and the rings fit into shared memory, else 16.
template <TileFormat kFormat, int kRun, class Do>
bool with_tiles(int rows, const Do& act) {
  const int limit = product_device().shared_per_block;
  if constexpr (kFormat != TileFormat::kBF16 && kRun <= 10) {
    if (rows > 16 && ManyRows<kFormat, kRun, 4>::kSharedBytes <= limit) {
      act.template operator()<4>();
      return true;
    }
  }
  if (ManyRows<kFormat, kRun, 2>::kSharedBytes > limit) return false;
  act.template operator()<2>();
  return true;
}

template <TileFormat kFormat, class Do>
bool with_run(const ProductArgs& a, const Do& act) {
  const int run = a.k32 / a.splits / kProductWarps;
  if (run * a.splits * kProductWarps != a.k32) return false;
  const auto go = [&]<int kRun>() {
    return with_tiles<kFormat, kRun>(
        a.rows, [&]<int kColumnTiles>() { act.template operator()<kRun, kColumnTiles>(); });
  };
  switch (run) {
    case 6:
      return go.template operator()<6>();
    case 8:
      return go.template operator()<8>();
    case 10:
      return go.template operator()<10>();
    case 12:
      return go.template operator()<12>();
    case 16:
      return go.template operator()<16>();
    default:
      return false;
  }
}

template <TileFormat kFormat>
bool launch_format(ProductArgs& a, bool overlap, cudaStream_t stream, cudaError_t& error) {
  return with_run<kFormat>(a, [&]<int kRun, int kColumnTiles>() {
    error = launch<kFormat, kRun, kColumnTiles>(a, overlap, stream);
  });
}

}  // namespace

bool launch_many_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream,
                      cudaError_t& error) {
  return with_format(format,
                     [&]<TileFormat kFormat>() { return launch_format<kFormat>(a, overlap, stream, error); });
}

}  // namespace jewel::cuda

// The product kernel of one to eight rows: the one that must run at the speed of W's bytes. A block owns row
// tiles (16 rows of W), one after another; its eight warps share K in eight runs of kRun pieces of 16 x 32.
//
// What a dependency costs is the time from the end of the kernel ahead to the end of this one's first tiles.
// So everything that does not need the input stands before the wait: a lane holds its part of the first row
// tile in registers, already as 16-bit numbers, and the next pieces are under way to a ring in shared memory.
// Then come the input, two tensor-core instructions a piece, and the sum over the warps. A lane reads from
// the ring only what it copied itself, so the ring needs no barrier.
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

// Copy groups in flight per warp: one row tile. Twice as much was slower: a block's input
// stands behind what the block has under way.
constexpr int kSlots = 2;

template <TileFormat kFormat, int kRun>
struct FewRows {
  static constexpr int kPieceBytes = RawPiece<kFormat>::kBytes;
  static constexpr int kGroup = kRun / 2;                   // pieces per copy group: two groups a row tile
  static constexpr int kHeld = kRun <= 10 ? kRun : kGroup;  // pieces of the first row tile in registers
  static constexpr int kGroupBytes = kGroup * kPieceBytes;
  static constexpr int kWarpBytes = kSlots * kGroupBytes;
  static constexpr int kRingBytes = kProductWarps * kWarpBytes;

  static size_t shared_bytes(int rows) {
    const int red_rows = rows + rows % 2;
    return kRingBytes + static_cast<size_t>(64 * kRun * kProductWarps * rows) +
           sizeof(float) * static_cast<size_t>(2 * kProductWarps * red_rows * kRedPitch) + 32;
  }
};

// kBulk: x comes by a bulk copy (sm_90).
template <TileFormat kFormat, int kRun, DecodeOut kOut, bool kBulk>
__global__ __launch_bounds__(kProductThreads, 2) void few_rows_kernel(const __grid_constant__ ProductArgs a) {
#if __CUDA_ARCH__ < 900
  if (kBulk) return;  // not launched
#endif
  using K = FewRows<kFormat, kRun>;
  extern __shared__ __align__(128) uint8_t shared[];
  release_next_kernel();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int red_rows = a.rows + a.rows % 2;
  uint8_t* x_shared = shared + K::kRingBytes;
  float* red = reinterpret_cast<float*>(x_shared + 64 * kRun * kProductWarps * a.rows);
  auto* zeros = reinterpret_cast<uint4*>(red + 2 * kProductWarps * red_rows * kRedPitch);
  const uint32_t x_arrived = shared_address(zeros + 1);
  if (tid == 32) *zeros = {};
  if (kBulk && tid == 0) {
    start_barrier(x_arrived);
    expect_bulk(static_cast<uint32_t>(64 * kRun * kProductWarps * a.rows), x_arrived);
  }

  // The blocks with a row tile more come first, whatever their part of K: those that start late have less to
  // do.
  const int split = static_cast<int>(blockIdx.x) % a.splits;
  int row_tile = static_cast<int>(blockIdx.x) / a.splits;
  const int k_begin = (split * kProductWarps + warp) * kRun;  // in pieces
  const uint8_t* from =
      a.tiles + (static_cast<int64_t>(row_tile) * a.k32 + k_begin) * K::kPieceBytes + lane * 16;

  // The first pieces, as they come from memory.
  RawPiece<kFormat> raw[K::kHeld];
#pragma unroll
  for (int i = 0; i < K::kHeld; ++i) {
#pragma unroll
    for (int s = 0; s < K::kPieceBytes / 512; ++s)
      raw[i].v[s] = load_once(from + i * K::kPieceBytes + s * 512);
  }

  // The ring: kSlots groups, filled with what follows the held pieces.
  uint8_t* ring = shared + warp * K::kWarpBytes + lane * 16;
  const uint32_t ring_address = shared_address(ring);
  const int64_t tile_stride = static_cast<int64_t>(a.block_rows) * a.k32 * K::kPieceBytes;
  const uint8_t* copy_from = from + (K::kHeld == kRun ? tile_stride : K::kGroupBytes);
  int copy_tile = row_tile + (K::kHeld == kRun ? a.block_rows : 0);
  int copy_group = K::kHeld == kRun ? 0 : 1;
  const auto copy_next = [&](int slot) {
    if (copy_tile < a.row_tiles) {
#pragma unroll
      for (int i = 0; i < K::kGroupBytes; i += 512) copy_async_16(ring_address + slot + i, copy_from + i);
      copy_from += K::kGroupBytes;
      if (++copy_group == 2) {
        copy_group = 0;
        copy_tile += a.block_rows;
        copy_from += tile_stride - 2 * K::kGroupBytes;
      }
    }
    commit_copies();
  };
  float2 scale = tile_scales(a, kOut, row_tile, tid);

  // The input is asked for as soon as it is there, ahead of what this warp still awaits.
  const int first_step = split * kProductWarps * kRun;
  if (kBulk && warp == 0) {
    wait_for_last_kernel();
    if (lane == 0) {
      fetch_bulk(shared_address(x_shared), a.x + static_cast<int64_t>(first_step) * a.rows * 64,
                 static_cast<uint32_t>(64 * kRun * kProductWarps * a.rows), x_arrived);
    }
    __syncwarp();
  }
  TileA held[K::kHeld];
#pragma unroll
  for (int i = 0; i < K::kHeld; ++i) held[i] = tile_from(raw[i]);
  convert_here(held);
  // The ring is filled when the held pieces have come: what a multiprocessor has under way delays the input
  // and the end of the kernel ahead.
#pragma unroll
  for (int i = 0; i < kSlots; ++i) copy_next(i * K::kGroupBytes);
  if (kBulk && kOut == DecodeOut::kF32 && warp > 0) {
    bring_keys(a, tid - 32, kProductThreads - 32);
    bring_ahead(a, tid - 32, kProductThreads - 32);
  }
  wait_for_last_kernel();

  // The input, in slot order in shared memory.
  if constexpr (!kBulk) {
    const int count = kProductWarps * kRun * a.rows * 4;  // of 16 bytes
    uint4* to = reinterpret_cast<uint4*>(x_shared);
    if (a.x_order == XOrder::kSlots) {
      const uint4* x = reinterpret_cast<const uint4*>(a.x) + static_cast<int64_t>(first_step) * a.rows * 4;
#pragma unroll 4
      for (int i = tid; i < count; i += kProductThreads) to[i] = __ldcg(x + i);
    } else {
#pragma unroll 4
      for (int i = tid; i < count; i += kProductThreads) {
        const int part = i % 4, row = i / 4 % a.rows, step = i / 4 / a.rows;
        const uint2* x = reinterpret_cast<const uint2*>(
            a.x + (static_cast<int64_t>(row) * a.k32 + first_step + step) * 64 + part * 8);
        to[i] = slots_from_natural(__ldcg(x), __ldcg(x + 4));
      }
    }
  }
  __syncthreads();
  if constexpr (kBulk) wait_for_bulk(x_arrived);
  // Columns of the instruction beyond the step's rows are zeros: the tensor cores then take fewer joules.
  const bool has_row = lane / 4 < a.rows;
  const int x_step = has_row ? a.rows * 64 : 0;
  const uint8_t* x_lane = has_row ? x_shared + warp * kRun * x_step + lane / 4 * 64 + lane % 4 * 16
                                  : reinterpret_cast<const uint8_t*>(zeros);

  float acc[1][4];
  const auto multiply = [&](const TileA& tile, int piece) {
    const uint4 b = *reinterpret_cast<const uint4*>(x_lane + piece * x_step);
    multiply_piece<kFormat>(acc[0], tile, b);
  };
  int slot = 0;
  const auto multiply_group = [&](int group) {
    wait_for_copies<kSlots - 1>();
#pragma unroll
    for (int i = 0; i < K::kGroup; ++i) {
      multiply(read_piece<kFormat>(ring + slot + i * K::kPieceBytes), group * K::kGroup + i);
    }
    copy_next(slot);
    slot = slot + K::kGroupBytes == K::kWarpBytes ? 0 : slot + K::kGroupBytes;
  };
  int buffer = 0;
  const auto finish = [&] {
    float* sums = red + buffer * kProductWarps * red_rows * kRedPitch;
    stash_sums<1>(sums + warp * red_rows * kRedPitch, acc, a.rows, lane);
    __syncthreads();
    finish_tile(a, kOut, sums, red_rows, split, row_tile, scale, tid, 0, a.rows);
    row_tile += a.block_rows;
    scale = tile_scales(a, kOut, row_tile, tid);
    buffer ^= 1;  // the next barrier is also the one that frees this buffer
  };

  acc[0][0] = acc[0][1] = acc[0][2] = acc[0][3] = 0;
#pragma unroll
  for (int i = 0; i < K::kHeld; ++i) multiply(held[i], i);
  if constexpr (K::kHeld != kRun) multiply_group(1);
  finish();
#pragma unroll 1
  while (row_tile < a.row_tiles) {
    acc[0][0] = acc[0][1] = acc[0][2] = acc[0][3] = 0;
    multiply_group(0);
    multiply_group(1);
    finish();
  }
}

template <TileFormat kFormat, int kRun>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  const auto kernel = with_out(a.out_kind, [&]<DecodeOut kOut>() {
    return a.bulk_x ? few_rows_kernel<kFormat, kRun, kOut, true>
                    : few_rows_kernel<kFormat, kRun, kOut, false>;
  });
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   product_device().shared_per_block);
  if (allowed != cudaSuccess) return allowed;
  // Two blocks an SM.
  a.block_rows = std::min(2 * product_device().sms / a.splits, a.row_tiles);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(a.block_rows * a.splits)),
                          .shared = FewRows<kFormat, kRun>::shared_bytes(a.rows),
                          .overlap = overlap};
  return launch_kernel<ProductArgs>(kernel, shape, stream, a);
}

// Calls act with the run's length in pieces, where a kernel for it exists.
template <class Do>
bool with_run(const ProductArgs& a, const Do& act) {
  const int run = a.k32 / a.splits / kProductWarps;
  if (run * a.splits * kProductWarps != a.k32) return false;
  switch (run) {
    case 6:
      return act.template operator()<6>();
    case 8:
      return act.template operator()<8>();
    case 10:
      return act.template operator()<10>();
    case 12:
      return act.template operator()<12>();
    case 16:
      return act.template operator()<16>();
    default:
      return false;
  }
}

template <TileFormat kFormat>
bool launch_format(ProductArgs& a, bool overlap, cudaStream_t stream, cudaError_t& error) {
  return with_run(a, [&]<int kRun>() {
    const size_t bytes = FewRows<kFormat, kRun>::shared_bytes(a.rows);
    if (bytes > static_cast<size_t>(product_device().shared_per_block)) return false;
    error = launch<kFormat, kRun>(a, overlap, stream);
    return true;
  });
}

}  // namespace

bool launch_few_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream,
                     cudaError_t& error) {
  if (a.rows > 8) return false;
  return with_format(format,
                     [&]<TileFormat kFormat>() { return launch_format<kFormat>(a, overlap, stream, error); });
}

}  // namespace jewel::cuda

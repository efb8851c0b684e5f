// The product kernel of many rows on sm_90: wgmma with W from registers. The 64 rows of the instruction are
// four row tiles of W, one of each warp, wherever they stand; its columns are all rows of the step, from
// shared memory. So a weight is read and converted once for all rows, and the tensor cores read the
// activations once for 64 rows of W.
//
//   block     kTileGroups x kRunGroups warpgroups that multiply, and one whose first thread brings x. A tile
//             group owns four row tiles at a time; its run groups take the eight runs of K in turn
//   W         lane-private rings by cp.async, as in the other kernels: no barrier
//   x         in wide order, stages of 64 columns of each run group, by bulk copies
//   sums      a run's in the tensor cores; then each lane adds them to its own sums in shared memory, run by
//             run: a run group waits for the one that has the run before
//
// wgmma m64nNk16 and mma.m16n8k16 give the same bits for the same values in the same order: measured on an
// H200, and compared for each shape with the kernels of one row by bench/cuda_decode check.
#include "backend/cuda/decode_product_args.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "backend/cuda/prefill_ptx.h"
#endif

namespace jewel::cuda {
namespace {

constexpr int kRuns = kProductWarps;  // into which a part of K is cut, whoever adds them up
constexpr int kGroupThreads = 128;
constexpr int kPair = 2;  // pieces of 32 columns: a stage, and what is multiplied at once
constexpr int kFillerRegisters = 24;
constexpr int kSharedLimit = 227 * 1024;

// kOdd: a run is an odd number of pairs.
template <TileFormat kFormat, int kColumns_, int kRunGroups_, int kTileGroups_, bool kOdd_>
struct Wide {
  static constexpr int kColumns = kColumns_;
  static constexpr int kRunGroups = kRunGroups_;
  static constexpr int kTileGroups = kTileGroups_;
  static constexpr bool kOdd = kOdd_;
  static constexpr int kSums = kColumns / 2;  // of a lane
  static constexpr int kWarps = 4 * kRunGroups * kTileGroups;
  static constexpr int kThreads = 32 * kWarps + kGroupThreads;
  // A block's registers are what it was launched with: who multiplies gets what the fillers give.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kRegisters =
      (kLaunchRegisters * kThreads - kFillerRegisters * kGroupThreads) / (32 * kWarps) / 8 * 8;

  static constexpr int kPieceBytes = kFormat == TileFormat::kF8E4M3 ? 512 : 1024;
  static constexpr int kSlots = (kWarps <= 8 ? 8192 : 4096) / kPieceBytes;
  static constexpr int kRingBytes = kWarps * kSlots * kPieceBytes;
  static constexpr int kSumBytes = kTileGroups * kGroupThreads * kSums * 4;
  static constexpr int kStageBytes = kPair * 64 * kColumns;
  static constexpr int kFit = (kSharedLimit - kRingBytes - kSumBytes - 256) / (kRunGroups * kStageBytes);
  static constexpr int kStages = kFit > 8 ? 8 : kFit;
  static constexpr int kXBytes = kRunGroups * kStages * kStageBytes;
  static constexpr int kSharedBytes = kRingBytes + kXBytes + kSumBytes + 2 * kRunGroups * kStages * 8;
  static_assert(kStages >= 3 && kSharedBytes <= kSharedLimit);
};

// Two pieces of W, [piece][16 columns][register].
struct PairA {
  uint32_t r[kPair][2][4];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// No swizzle: 8 rows x 16 bytes stand together; 8 more rows 128 bytes on, 8 more columns `next_columns` on.
__device__ __forceinline__ uint64_t plain_descriptor(uint32_t address, uint32_t next_columns) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | (static_cast<uint64_t>(next_columns >> 4) << 16) |
         (uint64_t{128 >> 4} << 32);
}

// One thread brings x, stage after stage.
template <class K>
__device__ __forceinline__ void fill_stages(const ProductArgs& a, int split, uint32_t stages, uint32_t full,
                                            uint32_t empty, int n_iterations) {
  const int pieces = a.k32 / a.splits, run = pieces / kRuns;
  const uint32_t piece_bytes = 64 * wide_rows(a.rows);
  const uint8_t* x = a.x + static_cast<int64_t>(split) * pieces * piece_bytes;
  uint32_t stage = 0, parity = 1;
#pragma unroll 1
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
#pragma unroll 1
    for (int first_run = 0; first_run < kRuns; first_run += K::kRunGroups) {
#pragma unroll 1
      for (int piece = 0; piece < run; piece += kPair) {
#pragma unroll
        for (int group = 0; group < K::kRunGroups; ++group) {
          const uint32_t at = group * K::kStages + stage;
          barrier_wait(empty + 8 * at, parity);
          expect_bulk(kPair * piece_bytes, full + 8 * at);
          fetch_bulk(stages + at * K::kStageBytes, x + ((first_run + group) * run + piece) * piece_bytes,
                     kPair * piece_bytes, full + 8 * at);
        }
        if (++stage == K::kStages) stage = 0, parity ^= 1;
      }
    }
  }
}

// The finished sums of a lane: of W's rows g and g + 8, for the step's rows 2 t, 2 t + 1, 8 + 2 t, …
template <class K>
__device__ __forceinline__ void finish_sums(const ProductArgs& a, int split, int row_tile, int lane,
                                            const float* mine) {
  const int g = lane / 4, first = lane % 4 * 2;
  const auto scale_of = [&](int row) {
    return a.row_scale == nullptr ? 1.0f : __ldg(a.row_scale + row_tile * 16 + row);
  };
  const float scales[2] = {scale_of(g), scale_of(g + 8)};
  const int width = a.out_kind == DecodeOut::kGatedUp ? a.n / 2 : a.n;
  const int64_t row_stride = a.out_kind != DecodeOut::kGatedUp ? a.n
                             : a.out_order == XOrder::kWide    ? 8
                             : a.out_order == XOrder::kSlots   ? 32
                                                               : width;
  const auto each = [&](const auto& store) {
#pragma unroll
    for (int i = 0; i < K::kSums / 2; ++i) {
      const int on = i / 2 * 8 + i % 2;
      if (first + on < a.rows) {
        store(on * row_stride, __fmul_rn(mine[(i / 2 * 4 + i % 2) * kGroupThreads], scales[0]),
              __fmul_rn(mine[(i / 2 * 4 + 2 + i % 2) * kGroupThreads], scales[1]));
      }
    }
  };
  if (a.out_kind == DecodeOut::kGatedUp) {
    auto* out =
        static_cast<__nv_bfloat16*>(a.out) + x_index(a.out_order, first, row_tile * 8 + g, a.rows, width);
    each([&](int64_t at, float gate, float up) { out[at] = gated(gate, up); });
    return;
  }
  float* out = static_cast<float*>(a.out) + (int64_t{split} * a.rows + first) * a.n + row_tile * 16 + g;
  const float cap = a.out_kind == DecodeOut::kLogits ? a.cap : 0;
  if (cap == 0) {
    each([&](int64_t at, float low, float high) { out[at] = low, out[at + 8] = high; });
  } else {
    each([&](int64_t at, float low, float high) {
      out[at] = capped(low, cap), out[at + 8] = capped(high, cap);
    });
  }
}
#endif

template <TileFormat kFormat, class K>
__global__ __launch_bounds__(K::kThreads, 1) void wide_kernel(const __grid_constant__ ProductArgs a,
                                                              int n_iterations) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) uint8_t shared[];
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const uint32_t stages = shared_address(shared) + K::kRingBytes;
  const uint32_t full = stages + K::kXBytes + K::kSumBytes, empty = full + 8 * K::kRunGroups * K::kStages;
  release_next_kernel();
  if (tid == 0) {
    for (int i = 0; i < K::kRunGroups * K::kStages; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 4 * K::kTileGroups);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  const int split = static_cast<int>(blockIdx.x) / a.block_rows;

  if (warp >= K::kWarps) {
    give_registers<kFillerRegisters>();
    __syncthreads();
    wait_for_last_kernel();
    if (tid == 32 * K::kWarps) fill_stages<K>(a, split, stages, full, empty, n_iterations);
    return;
  }
  take_registers<K::kRegisters>();
  const int group = warp / 4, run_group = group % K::kRunGroups, tile_group = group / K::kRunGroups;
  // A block's tiles stand block_rows apart; neighbours go to different tile groups, so that all have work.
  const int first_tile =
      static_cast<int>(blockIdx.x) % a.block_rows + (warp % 4 * K::kTileGroups + tile_group) * a.block_rows;
  const int tile_stride = 4 * K::kTileGroups * a.block_rows;
  const int pieces = a.k32 / a.splits, run = pieces / kRuns;

  // This warp's pieces: of each of its tiles the runs run_group, run_group + kRunGroups, …
  const uint8_t* ring = shared + warp * K::kSlots * K::kPieceBytes + lane * 16;
  const uint32_t ring_address = shared_address(ring);
  const uint8_t* from =
      a.tiles +
      (static_cast<int64_t>(first_tile) * a.k32 + split * pieces + run_group * run) * K::kPieceBytes +
      lane * 16;
  int copy_tile = first_tile, copy_run = run_group, copy_piece = 0;
  uint32_t copied = 0, taken = 0;
  const auto copy_next = [&] {
    if (copy_tile < a.row_tiles) {
      const uint32_t to = ring_address + copied % K::kSlots * K::kPieceBytes;
#pragma unroll
      for (int s = 0; s < K::kPieceBytes; s += 512) copy_async_16(to + s, from + s);
    }
    ++copied;
    from += K::kPieceBytes;
    if (++copy_piece == run) {
      copy_piece = 0;
      from += (K::kRunGroups - 1) * run * K::kPieceBytes;
      if ((copy_run += K::kRunGroups) >= kRuns) {
        copy_run = run_group;
        copy_tile += tile_stride;
        from += (static_cast<int64_t>(tile_stride) * a.k32 - pieces) * K::kPieceBytes;
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < K::kSlots; ++i) copy_next();
  // The next pair of pieces as A operands; their places in the ring go to later ones.
  const auto take = [&](PairA& to) {
#pragma unroll
    for (int i = 0; i < kPair; ++i) {
      wait_for_copies<K::kSlots - 1>();
      const TileA tile = read_piece<kFormat>(ring + taken++ % K::kSlots * K::kPieceBytes);
#pragma unroll
      for (int j = 0; j < 8; ++j) to.r[i][j / 4][j % 4] = tile.r[j / 4][j % 4];
      hold(to.r[i][0]), hold(to.r[i][1]);
      copy_next();
    }
  };
  PairA now, later;
  take(now);
  __syncthreads();         // the barriers' start
  wait_for_last_kernel();  // the epilogue writes what kernels ahead may still read

  const uint32_t column_bytes = 16 * wide_rows(a.rows);  // from 8 columns to the next 8
  uint32_t stage = 0, parity = 0;
  // Multiplies `w`, and takes the next pair meanwhile. Which registers hold which pair is settled by the
  // compiler: a copy between them would make ptxas run one wgmma at a time (C7513).
  const auto multiply_pair = [&](float(&acc)[K::kSums], PairA& w, PairA& next) {
    const uint32_t at = run_group * K::kStages + stage;
    const uint32_t x = stages + at * K::kStageBytes;
    barrier_wait(full + 8 * at, parity);
#pragma unroll
    for (int i = 0; i < kPair * 2; ++i) hold(w.r[i / 2][i % 2]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kPair * 2; ++i) {
      Wgmma<K::kColumns, false>::run(acc, w.r[i / 2][i % 2],
                                     plain_descriptor(x + i * 2 * column_bytes, column_bytes), 1);
    }
    wgmma_commit();
    take(next);
    wgmma_wait<0>();
    if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + 8 * at) : "memory");
    if (++stage == K::kStages) stage = 0, parity ^= 1;
  };

  float* mine = reinterpret_cast<float*>(shared + K::kRingBytes + K::kXBytes) +
                tile_group * kGroupThreads * K::kSums + tid % kGroupThreads;
  const int turn = 1 + tile_group * K::kRunGroups, next_group = (run_group + 1) % K::kRunGroups;
  // A run, added to what stands in `mine`. Starts with the pair in `w`, ends with the next run's in `other`
  // where kOdd, else in `w`.
  const auto add_run = [&](PairA& w, PairA& other, int index, bool first_ever) {
    float acc[K::kSums];
#pragma unroll
    for (int i = 0; i < K::kSums; ++i) acc[i] = 0;
    const int pairs = run / kPair;
#pragma unroll 1
    for (int pair = 1; pair < pairs; pair += 2) {
      multiply_pair(acc, w, other);
      multiply_pair(acc, other, w);
    }
    if constexpr (K::kOdd) multiply_pair(acc, w, other);
    if (K::kRunGroups > 1 && !first_ever) named_barrier(turn + run_group, 2 * kGroupThreads);
#pragma unroll
    for (int i = 0; i < K::kSums; ++i) {
      float& sum = mine[i * kGroupThreads];
      sum = index == 0 ? acc[i] : __fadd_rn(sum, acc[i]);
    }
    if (K::kRunGroups > 1 && index + 1 < kRuns) named_barrier_arrive(turn + next_group, 2 * kGroupThreads);
  };

#pragma unroll 1
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
#pragma unroll 1
    for (int index = run_group; index < kRuns; index += 2 * K::kRunGroups) {
      add_run(now, later, index, index == 0 && iteration == 0);
      add_run(K::kOdd ? later : now, K::kOdd ? now : later, index + K::kRunGroups, false);
    }
    if (run_group + 1 < K::kRunGroups) continue;
    const int row_tile = first_tile + iteration * tile_stride;
    if (row_tile < a.row_tiles) finish_sums<K>(a, split, row_tile, lane, mine);
    // The next tile's first run may have the sums' place.
    if (K::kRunGroups > 1 && iteration + 1 < n_iterations) {
      __syncwarp();
      named_barrier_arrive(turn, 2 * kGroupThreads);
    }
  }
#else
  static_cast<void>(K::kOdd && K::kRegisters > 0);  // nvcc warns of what no code names
#endif
}

template <TileFormat kFormat, int kColumns, int kRunGroups, int kTileGroups, bool kOdd>
cudaError_t launch_as(ProductArgs& a, bool overlap, cudaStream_t stream) {
  using K = Wide<kFormat, kColumns, kRunGroups, kTileGroups, kOdd>;
  const auto kernel = wide_kernel<kFormat, K>;
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  constexpr int kTiles = 4 * kTileGroups;
  a.block_rows = std::max(1, std::min(product_device().sms / a.splits, a.row_tiles));
  const int n_iterations = (a.row_tiles + a.block_rows * kTiles - 1) / (a.block_rows * kTiles);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(a.block_rows * a.splits)),
                          .threads = K::kThreads,
                          .shared = K::kSharedBytes,
                          .overlap = overlap};
  return launch_kernel<ProductArgs, int>(kernel, shape, stream, a, n_iterations);
}

template <TileFormat kFormat, int kColumns, int kRunGroups, int kTileGroups>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  return a.k32 / a.splits / kRuns / kPair % 2 == 1
             ? launch_as<kFormat, kColumns, kRunGroups, kTileGroups, true>(a, overlap, stream)
             : launch_as<kFormat, kColumns, kRunGroups, kTileGroups, false>(a, overlap, stream);
}

// Few row tiles an SM: the runs are shared out. Many: the tiles are.
template <TileFormat kFormat, int kColumns>
cudaError_t launch_columns(ProductArgs& a, bool overlap, cudaStream_t stream) {
  const int per_block = (a.row_tiles * a.splits + product_device().sms - 1) / product_device().sms;
  if (per_block <= 4) return launch<kFormat, kColumns, kColumns <= 64 ? 4 : 2, 1>(a, overlap, stream);
  if (per_block <= 8) return launch<kFormat, kColumns, kColumns <= 64 ? 2 : 1, 2>(a, overlap, stream);
  return launch<kFormat, kColumns, 1, 3>(a, overlap, stream);
}

template <TileFormat kFormat>
cudaError_t launch_format(ProductArgs& a, bool overlap, cudaStream_t stream) {
  if (a.rows <= 64) return launch_columns<kFormat, 64>(a, overlap, stream);
  if (a.rows <= 104) return launch_columns<kFormat, 104>(a, overlap, stream);
  return launch_columns<kFormat, 128>(a, overlap, stream);
}

}  // namespace

bool takes_wide_rows(const TiledWeight& w, int rows) {
  const int pieces = w.k / 32, splits = product_splits(w.k);
  // With fewer row tiles (qkv, o) a block's warps have no four of them, and its tensor cores idle.
  const bool tiles_for_all = w.n / 16 * splits > 4 * product_device().sms;
  return product_device().wgmma && rows > kWideFrom && rows <= kMaxDecodeRows && tiles_for_all &&
         pieces % (splits * kRuns * kPair) == 0;
}

cudaError_t launch_wide_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream) {
  return format == TileFormat::kF8E4M3 ? launch_format<TileFormat::kF8E4M3>(a, overlap, stream)
                                       : launch_format<TileFormat::kBF16>(a, overlap, stream);
}

}  // namespace jewel::cuda

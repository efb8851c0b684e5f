// The product kernel of many rows on sm_90: wgmma with W from registers. The 64 rows of the instruction are
// four row tiles of W, one of each warp, wherever they stand; its columns are all rows of the step, from
// shared memory. So a weight is read and converted once for all rows, and the tensor cores read the
// activations once for 64 rows of W.
//
//   block     kTileGroups x kRunGroups warpgroups that multiply, and one whose first thread brings x. A tile
//             group owns four row tiles at a time; its run groups take the eight runs of K in turn
//   W         lane-private rings by cp.async, as in the other kernels: no barrier
//   x         in wide order, stages of 64 columns of each run group, by bulk copies
//   sums      a run's in the tensor cores; then each lane adds them to its own sums, in registers where they
//             fit, else in shared memory, run by run: a run group waits for the one that has the run before
//
// wgmma m64nNk16 and mma.m16n8k16 give the same bits for the same values in the same order: measured on an
// H200, and compared for each shape with the kernels of one row by bench/cuda_decode check.
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

constexpr int kRuns = kProductWarps;  // into which a part of K is cut, whoever adds them up
constexpr int kGroupThreads = 128;
constexpr int kPair = 2;  // pieces of 32 columns: a stage of x
constexpr int kFillerRegisters = 24;
constexpr int kSharedLimit = 227 * 1024;

// kPairs: of a run, 3 where 1,536 columns are cut into eight runs (E2B), 5 where 2,560 are (E4B).
template <TileFormat kFormat, int kColumns_, int kRunGroups_, int kTileGroups_, int kPairs_>
struct Wide {
  static constexpr int kColumns = kColumns_;
  static constexpr int kRunGroups = kRunGroups_;
  static constexpr int kTileGroups = kTileGroups_;
  static constexpr int kPairs = kPairs_;
  static constexpr int kSums = kColumns / 2;  // of a lane
  static constexpr int kWarps = 4 * kRunGroups * kTileGroups;
  static constexpr int kThreads = 32 * kWarps + kGroupThreads;
  // A block's registers are what it was launched with: who multiplies gets what the fillers give.
  static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kRegisters =
      (kLaunchRegisters * kThreads - kFillerRegisters * kGroupThreads) / (32 * kWarps) / 8 * 8;
  // Whether a lane's sums of the runs so far stay in its registers.
  static constexpr bool kSumsStay = kRunGroups == 1 && 2 * kSums + 56 <= kRegisters;

  static constexpr int kPieceBytes = RawPiece<kFormat>::kBytes;
  static constexpr int kSumBytes = kSumsStay ? 0 : kTileGroups * kGroupThreads * kSums * 4;
  static constexpr int kStageBytes = kPair * 64 * kColumns;
  static constexpr int kStages = kPairs;  // each pair of a run has its stage
  static constexpr int kXBytes = kRunGroups * kStages * kStageBytes;
  static constexpr int shared_beside(int ring) {
    return kWarps * ring + kXBytes + kSumBytes + 2 * kRunGroups * kStages * 8;
  }
  // Deeper rings are slower: what is under way delays x and the end of the kernel ahead.
  static constexpr int kWantedRing = kFormat == TileFormat::kBF16 ? 8192 : kColumns <= 32 ? 6144 : 4096;
  static constexpr int kWarpRing = shared_beside(kWantedRing) <= kSharedLimit ? kWantedRing : 4096;
  static constexpr int kPairBytes = kPair * kPieceBytes;
  static constexpr int kRingBytes = kWarps * kWarpRing;
  static constexpr int kRingPairs = kWarpRing / kPairBytes;
  static constexpr int kSharedBytes = shared_beside(kWarpRing);
  static_assert(kSharedBytes <= kSharedLimit);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
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
  // By now all of W is asked for, so that memory has time for what the next kernel asks for first.
#pragma unroll 1
  for (int i = static_cast<int>(blockIdx.x); i < a.ahead_count; i += static_cast<int>(gridDim.x)) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(a.ahead + i * a.ahead_stride),
                 "r"(a.ahead_lines * 128)
                 : "memory");
  }
}

// The finished sums of a lane, sum(0) and on: of W's rows g and g + 8, for the step's rows 2 t, 2 t + 1,
// 8 + 2 t and so on.
template <class K, DecodeOut kOut, class Sum>
__device__ __forceinline__ void finish_sums(const ProductArgs& a, int split, int row_tile, float2 scales,
                                            int lane, const Sum& sum) {
  const int g = lane / 4, first = lane % 4 * 2;
  const int width = kOut == DecodeOut::kGatedUp ? a.n / 2 : a.n;
  const int64_t row_stride = kOut != DecodeOut::kGatedUp       ? a.n
                             : is_wide(a.out_order)            ? 8
                             : a.out_order != XOrder::kNatural ? 32
                                                               : width;
  const auto each = [&](const auto& store) {
#pragma unroll
    for (int i = 0; i < K::kSums / 2; ++i) {
      const int on = i / 2 * 8 + i % 2;
      store(first + on < a.rows, on * row_stride, __fmul_rn(sum(i / 2 * 4 + i % 2), scales.x),
            __fmul_rn(sum(i / 2 * 4 + 2 + i % 2), scales.y));
    }
  };
  if constexpr (kOut == DecodeOut::kGatedUp) {
    auto* out = static_cast<uint16_t*>(a.out) + x_index(a.out_order, first, row_tile * 8 + g, a.rows, width);
    each([&](bool wanted, int64_t at, float gate, float up) {
      const uint16_t value = gated_bits(a, gate, up);  // before the question, so that several are under way
      if (wanted) out[at] = value;
    });
    return;
  }
  float* out = static_cast<float*>(a.out) + (int64_t{split} * a.rows + first) * a.n + row_tile * 16 + g;
  const float cap = kOut == DecodeOut::kLogits ? a.cap : 0;
  if constexpr (kOut == DecodeOut::kLogits && K::kColumns <= kTileMaxRows) {
    if (a.tile_max != nullptr) {
      constexpr int kAtOnce = K::kColumns == 16 ? 4 : 8;  // columns
      float largest[kAtOnce];
      int i = 0;
      each([&](bool wanted, int64_t at, float low, float high) {
        low = capped(low, cap), high = capped(high, cap);
        if (wanted) out[at] = low, out[at + 8] = high;
        largest[i % kAtOnce] = fmaxf(low, high);
        if (++i % kAtOnce != 0) return;
        const int column = i - kAtOnce + g, row = first + column / 2 * 8 + column % 2;
        const float of_tile = largest_of_g(largest, g);
        if (g < kAtOnce && row < a.rows)
          a.tile_max[int64_t{row} * logit_tile_stride(a.n) + row_tile] = of_tile;
      });
      return;
    }
  }
  if (cap == 0) {
    each([&](bool wanted, int64_t at, float low, float high) {
      if (wanted) out[at] = low, out[at + 8] = high;
    });
  } else {
    each([&](bool wanted, int64_t at, float low, float high) {
      low = capped(low, cap), high = capped(high, cap);
      if (wanted) out[at] = low, out[at + 8] = high;
    });
  }
}
#endif

template <TileFormat kFormat, class K, DecodeOut kOut>
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
    barrier_init_fence();
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
  // By a shuffle, which tells the compiler that all lanes agree: uniform registers hold what follows from it.
  const int group = __shfl_sync(~0u, warp, 0) / 4;
  const int run_group = group % K::kRunGroups, tile_group = group / K::kRunGroups;
  // A block's tiles stand block_rows apart; neighbours go to different tile groups, so that all have work.
  const int first_tile =
      static_cast<int>(blockIdx.x) % a.block_rows + (warp % 4 * K::kTileGroups + tile_group) * a.block_rows;
  const int tile_stride = 4 * K::kTileGroups * a.block_rows;
  const int pieces = a.k32 / a.splits;
  constexpr int kRun = kPair * K::kPairs;

  // This warp's pieces: of each of its tiles the runs run_group, run_group + kRunGroups, …
  const uint8_t* ring = shared + warp * K::kWarpRing + lane * 16;
  const uint32_t ring_address = shared_address(ring);
  const uint8_t* from =
      a.tiles +
      (static_cast<int64_t>(first_tile) * a.k32 + split * pieces + run_group * kRun) * K::kPieceBytes +
      lane * 16;
  const int64_t tile_jump = (static_cast<int64_t>(tile_stride) * a.k32 - pieces) * K::kPieceBytes;
  int copy_tile = first_tile, runs_of_tile = kRuns / K::kRunGroups;
  uint32_t slot = 0;
  const auto copy_pair = [&](bool last_of_run) {
    if (copy_tile < a.row_tiles) {
#pragma unroll
      for (int i = 0; i < K::kPairBytes; i += 512) copy_async_16(ring_address + slot + i, from + i);
    }
    commit_copies();
    slot = slot + K::kPairBytes == K::kWarpRing ? 0 : slot + K::kPairBytes;
    from += K::kPairBytes;
    if (last_of_run) {
      from += (K::kRunGroups - 1) * kRun * K::kPieceBytes;
      if (--runs_of_tile == 0) {
        runs_of_tile = kRuns / K::kRunGroups;
        copy_tile += tile_stride;
        from += tile_jump;
      }
    }
  };
#pragma unroll
  for (int i = 0; i < K::kRingPairs; ++i) copy_pair((i + 1) % K::kPairs == 0);

  // The next pair as it came from memory; its place in the ring goes to a later one.
  RawPiece<kFormat> raw[kPair];
  const auto fetch_pair = [&](int place_in_run) {
    wait_for_copies<K::kRingPairs - 1>();
#pragma unroll
    for (int i = 0; i < kPair; ++i) raw[i] = read_raw<kFormat>(ring + slot + i * K::kPieceBytes);
    copy_pair((place_in_run + K::kRingPairs + 1) % K::kPairs == 0);
  };
  // A piece as A operands, [16 columns][register].
  using Piece = uint32_t[2][4];
  const auto convert = [&](const RawPiece<kFormat>& from_ring, Piece& to) {
    const TileA tile = tile_from(from_ring);
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j / 4][j % 4] = tile.r[j / 4][j % 4];
    hold(to[0]), hold(to[1]);
  };
  // A piece is multiplied while the next is converted. ptxas runs one wgmma at a time where registers of a
  // wgmma in flight are copied (C7513), so the two pieces have their registers for good.
  Piece even, odd;
  __syncthreads();  // the barriers' start: a block that starts late asks for x while W is on its way
  fetch_pair(0);
  convert(raw[0], even);
  wait_for_last_kernel();  // the epilogue writes what kernels ahead may still read

  const uint32_t column_bytes = 16 * wide_rows(a.rows);  // from 8 columns to the next 8
  float acc[K::kSums] = {};
  const auto multiply = [&](Piece& w, uint32_t x, bool keep) {
    hold(w[0]), hold(w[1]);
    wgmma_fence();
    using Multiply = Wgmma<K::kColumns, kWgmmaType<kFormat>>;
    Multiply::run(acc, w[0], plain_descriptor(x, column_bytes), keep);
    Multiply::run(acc, w[1], plain_descriptor(x + 2 * column_bytes, column_bytes), 1);
    wgmma_commit();
  };
  uint32_t parity = 0;
  const uint32_t my_stages = stages + run_group * K::kStages * K::kStageBytes;
  const uint32_t my_full = full + 8 * run_group * K::kStages, my_empty = empty + 8 * run_group * K::kStages;
  // Predicated, not branched around: a branch between wgmmas in flight is taken for a reason to run them one
  // at a time.
  const auto release_stage = [&](int pair) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.eq.b32 p, %1, 0;\n@p mbarrier.arrive.shared::cta.b64 _, [%0];\n}" ::"r"(
            my_empty + 8 * pair),
        "r"(lane)
        : "memory");
  };
  // A run's sums in `acc`. Begins with its first piece in `even` and its second in `raw`, ends with those of
  // the next run there.
  const auto multiply_run = [&] {
#pragma unroll
    for (int pair = 0; pair < K::kPairs; ++pair) {
      const uint32_t x = my_stages + pair * K::kStageBytes;
      barrier_wait(my_full + 8 * pair, parity);
      multiply(even, x, pair > 0);
      wgmma_wait<1>();
      if (pair > 0) release_stage(pair - 1);
      convert(raw[1], odd);
      multiply(odd, x + 4 * column_bytes, true);
      fetch_pair((pair + 1) % K::kPairs);
      wgmma_wait<1>();
      convert(raw[0], even);
    }
    parity ^= 1;
    wgmma_wait<0>();
    release_stage(K::kPairs - 1);
  };

  // Asked for long before they are wanted.
  float2 scales = lane_scales(a, first_tile, lane);
  float stay[K::kSumsStay ? K::kSums : 1];
  float* mine = reinterpret_cast<float*>(shared + K::kRingBytes + K::kXBytes) +
                tile_group * kGroupThreads * K::kSums + tid % kGroupThreads;
  const int turn = 1 + tile_group * K::kRunGroups, next_group = (run_group + 1) % K::kRunGroups;

#pragma unroll 1
  for (int iteration = 0; iteration < n_iterations; ++iteration) {
#pragma unroll 1
    for (int index = run_group; index < kRuns; index += K::kRunGroups) {
      multiply_run();
      if constexpr (K::kSumsStay) {
#pragma unroll
        for (int i = 0; i < K::kSums; ++i) stay[i] = index == 0 ? acc[i] : __fadd_rn(stay[i], acc[i]);
      } else {
        const bool first_ever = index == 0 && iteration == 0;
        if (K::kRunGroups > 1 && !first_ever) named_barrier(turn + run_group, 2 * kGroupThreads);
#pragma unroll
        for (int i = 0; i < K::kSums; ++i) {
          float& sum = mine[i * kGroupThreads];
          sum = index == 0 ? acc[i] : __fadd_rn(sum, acc[i]);
        }
        if (K::kRunGroups > 1 && index + 1 < kRuns)
          named_barrier_arrive(turn + next_group, 2 * kGroupThreads);
      }
    }
    if (run_group + 1 < K::kRunGroups) continue;
    const int row_tile = first_tile + iteration * tile_stride;
    if (row_tile < a.row_tiles) {
      finish_sums<K, kOut>(a, split, row_tile, scales, lane, [&](int i) {
        if constexpr (K::kSumsStay) return stay[i];
        return mine[i * kGroupThreads];
      });
    }
    scales = lane_scales(a, row_tile + tile_stride, lane);
    // The next tile's first run may have the sums' place.
    if (K::kRunGroups > 1 && iteration + 1 < n_iterations) {
      __syncwarp();
      named_barrier_arrive(turn, 2 * kGroupThreads);
    }
  }
#else
  // nvcc warns of what no code names.
  static_cast<void>(K::kRegisters + K::kPieceBytes + K::kRingBytes + K::kPairBytes + K::kRingPairs);
#endif
}

template <TileFormat kFormat, int kColumns, int kRunGroups, int kTileGroups, int kPairs, DecodeOut kOut>
cudaError_t launch_as(ProductArgs& a, bool overlap, cudaStream_t stream) {
  using K = Wide<kFormat, kColumns, kRunGroups, kTileGroups, kPairs>;
  const auto kernel = wide_kernel<kFormat, K, kOut>;
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

// Calls act.operator()<pairs of a run>() if there are kernels for it.
template <class Do>
bool with_pairs(int k32, int splits, const Do& act) {
  switch (k32 / splits / kRuns / kPair) {
    case 3:
      act.template operator()<3>();
      return true;
    case 5:
      act.template operator()<5>();
      return true;
    default:
      return false;
  }
}

template <TileFormat kFormat, int kColumns, DecodeOut kOut, int kRunGroups, int kTileGroups>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  with_pairs(a.k32, a.splits, [&]<int kPairs>() {
    error = launch_as<kFormat, kColumns, kRunGroups, kTileGroups, kPairs, kOut>(a, overlap, stream);
  });
  return error;
}

// Few row tiles an SM: the runs are shared out. Many: the tiles are.
template <TileFormat kFormat, int kColumns, DecodeOut kOut>
cudaError_t launch_columns(ProductArgs& a, bool overlap, cudaStream_t stream) {
  const int per_block = (a.row_tiles * a.splits + product_device().sms - 1) / product_device().sms;
  if constexpr (kOut == DecodeOut::kLogits) {
    // A head has many row tiles.
    return launch<kFormat, kColumns, kOut, 1, kColumns <= 32 ? 4 : 3>(a, overlap, stream);
  } else if constexpr (kColumns <= 32) {
    // Two groups of runs where more warps were faster: of 16 columns with nine tiles and more an SM
    // (gate-up), of 32 with up to eight (down), which leave half of three tile groups idle.
    if constexpr (kColumns == 16) {
      if (per_block > 8 && per_block <= 12) return launch<kFormat, kColumns, kOut, 2, 3>(a, overlap, stream);
    } else {
      if (per_block <= 8) return launch<kFormat, kColumns, kOut, 2, 2>(a, overlap, stream);
    }
    return per_block <= 12 ? launch<kFormat, kColumns, kOut, 1, 3>(a, overlap, stream)
                           : launch<kFormat, kColumns, kOut, 1, 4>(a, overlap, stream);
  } else {
    return per_block <= 8 ? launch<kFormat, kColumns, kOut, kColumns <= 64 ? 2 : 1, 2>(a, overlap, stream)
                          : launch<kFormat, kColumns, kOut, 1, 3>(a, overlap, stream);
  }
}

template <TileFormat kFormat>
cudaError_t launch_format(ProductArgs& a, bool overlap, cudaStream_t stream) {
  return with_columns(a.rows, [&]<int kColumns>() {
    return with_wide_out(a.out_kind, [&]<DecodeOut kOut>() {
      return launch_columns<kFormat, kColumns, kOut>(a, overlap, stream);
    });
  });
}

}  // namespace

bool takes_wide_rows(const TiledWeight& w, int rows) {
  const int pieces = w.k / 32, splits = product_splits(w.k), sms = product_device().sms;
  // With fewer row tiles (qkv, o) a block's warps have no four of them, and its tensor cores idle; and the
  // fewer rows, the more tiles it takes for this kernel's start and end not to matter.
  const int row_tiles = w.n / 16 * splits;
  const bool bytes = w.format != TileFormat::kBF16;
  const int wanted = (rows > 32 || (rows > 16 && (bytes || splits == 1)) ? 4 : bytes ? 8 : 32) * sms;
  return product_device().wgmma && rows > 8 && rows <= kMaxDecodeRows && row_tiles > wanted &&
         pieces % (splits * kRuns * kPair) == 0 && with_pairs(pieces, splits, []<int kPairs>() {});
}

cudaError_t launch_wide_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream) {
  if (a.out_kind == DecodeOut::kGatedPle) return cudaErrorInvalidValue;
  return with_format(format,
                     [&]<TileFormat kFormat>() { return launch_format<kFormat>(a, overlap, stream); });
}

}  // namespace jewel::cuda

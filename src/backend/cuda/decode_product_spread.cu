// The product kernel of many rows on sm_90 where W has too few row tiles for every multiprocessor to have
// four (qkv, o): wgmma with W from registers, and the eight runs of K spread over a cluster of two blocks.
//
//   block     four warpgroups, each with one of the cluster's eight runs; each of the four warps of a
//             warpgroup has a row tile of W, 64 rows together
//   W         a run's pieces in registers, those that fit before the wait for the kernel ahead
//   x         in wide order, stages of 64 columns of each warpgroup, by bulk copies
//   sums      a run's in the tensor cores, then in shared memory where x was; each block adds those of half
//             of the rows, its own and the other block's, in the order of K
//
// The bits are those of the other kernels (decode_product_wide.cu). FP8 weights alone.
#include "backend/cuda/cluster.h"
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

constexpr int kRuns = kProductWarps;
constexpr int kGroupThreads = 128;
constexpr int kGroups = 4;  // warpgroups, runs of a block
constexpr int kBlocks = kRuns / kGroups;
constexpr int kThreads = kGroups * kGroupThreads;
constexpr int kPair = 2;  // pieces of 32 columns: a stage of x
constexpr int kPieceBytes = 512;
constexpr int kSharedLimit = 227 * 1024;

// kRun: pieces of a run.
template <int kColumns_, int kRun_>
struct Spread {
  static constexpr int kColumns = kColumns_, kRun = kRun_;
  static constexpr int kPairs = kRun / kPair;
  static constexpr int kSums = kColumns / 2;  // of a lane
  // Pieces of W in registers: all, where the sums leave room for them.
  static constexpr int kHeld = std::min(kRun, kColumns <= 32 ? 16 : kColumns <= 104 ? 8 : 6);
  static constexpr int kStageBytes = kPair * 64 * kColumns;
  static constexpr int kStages = std::min(kPairs, (kSharedLimit - 1024) / (kGroups * kStageBytes));
  static constexpr int kSumBytes = kGroups * kGroupThreads * kSums * 4;  // where x was
  static constexpr int kXBytes = std::max(kGroups * kStages * kStageBytes, kSumBytes);
  static constexpr int kSharedBytes = kXBytes + 8 * kGroups * kStages;
  static_assert(kRun % kPair == 0 && kSharedBytes <= kSharedLimit);
};

template <TileFormat kFormat, class K, DecodeOut kOut>
__global__ __launch_bounds__(kThreads, 1) void spread_kernel(const __grid_constant__ ProductArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) uint8_t shared[];
  if (!a.late_release) release_next_kernel();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32;
  const int group = __shfl_sync(~0u, tid / kGroupThreads, 0), warp = __shfl_sync(~0u, tid / 32 % 4, 0);
  const int rank = static_cast<int>(cluster_rank()), run = rank * kGroups + group;
  const int n_clusters = static_cast<int>(gridDim.x) / kBlocks;
  const uint32_t stages = shared_address(shared) + group * K::kStages * K::kStageBytes;
  const uint32_t full = shared_address(shared) + K::kXBytes + 8 * group * K::kStages;
  if (tid % kGroupThreads == 0) {
#pragma unroll
    for (int s = 0; s < K::kStages; ++s) barrier_init(full + 8 * s, 1);
    barrier_init_fence();
  }

  const uint32_t piece_bytes = 64 * wide_rows(a.rows), column_bytes = 16 * wide_rows(a.rows);
  const uint8_t* x = a.x + static_cast<int64_t>(run) * K::kRun * piece_bytes;
  const auto fetch_pair = [&](int pair) {  // by one thread of the warpgroup
    const uint32_t barrier = full + 8 * (pair % K::kStages);
    expect_bulk(kPair * piece_bytes, barrier);
    fetch_bulk(stages + pair % K::kStages * K::kStageBytes, x + pair * kPair * piece_bytes,
               kPair * piece_bytes, barrier);
  };
  RawPiece<kFormat> raw[K::kHeld];
  const auto load_piece = [&](int row_tile, int piece) {
    raw[piece % K::kHeld].v[0] = load_once(
        a.tiles + (static_cast<int64_t>(row_tile) * a.k32 + run * K::kRun + piece) * kPieceBytes + lane * 16);
  };
  using Piece = uint32_t[2][4];  // a piece as A operands, [16 columns][register]
  const auto convert = [&](int piece, Piece& to) {
    const TileA tile = tile_from(raw[piece % K::kHeld]);
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j / 4][j % 4] = tile.r[j / 4][j % 4];
    hold(to[0]), hold(to[1]);
  };

  int row_group = static_cast<int>(blockIdx.x) / kBlocks;
#pragma unroll
  for (int i = 0; i < K::kHeld; ++i) load_piece(4 * row_group + warp, i);
  constexpr int kLanes = kGroupThreads / kBlocks;  // whose sums a block adds
  const int who = rank * kLanes + tid % kLanes;    // of the 128, this thread's
  // Asked for long before they are wanted.
  float2 scales = lane_scales(a, 4 * row_group + who / 32, who % 32);
  __syncthreads();  // the barriers' start
  if constexpr (kOut == DecodeOut::kF32) bring_ahead(a, tid, kThreads);
  const auto fetch_stages = [&] {
#pragma unroll
    for (int pair = 0; pair < K::kStages; ++pair) fetch_pair(pair);
  };
  if (tid % kGroupThreads == 0) {  // a block that starts late asks for x while W is on its way
    wait_for_last_kernel();
    fetch_stages();
  }
  __syncwarp();
  Piece even, odd;
  convert(0, even);
  wait_for_last_kernel();
  if (a.late_release) release_next_kernel();

  uint32_t filled = 0;  // times that the stages were, before this group of rows
#pragma unroll 1
  for (; 4 * row_group < a.row_tiles; row_group += n_clusters) {
    const int row_tile = 4 * row_group + warp, next_tile = 4 * (row_group + n_clusters) + warp;
    const bool more = next_tile < a.row_tiles;
    if (filled > 0 && tid % kGroupThreads == 0) {
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // sums were here
      fetch_stages();
    }
    float acc[K::kSums] = {};
    const auto multiply = [&](Piece& w, uint32_t from, bool keep) {
      hold(w[0]), hold(w[1]);
      wgmma_fence();
      using Multiply = Wgmma<K::kColumns, kWgmmaType<kFormat>>;
      Multiply::run(acc, w[0], plain_descriptor(from, column_bytes), keep);
      Multiply::run(acc, w[1], plain_descriptor(from + 2 * column_bytes, column_bytes), 1);
      wgmma_commit();
    };
    // A piece is multiplied while the next is converted.
#pragma unroll
    for (int pair = 0; pair < K::kPairs; ++pair) {
      constexpr int kPairs = K::kPairs, kStages = K::kStages;
      const int stage = pair % kStages, fills = (kPairs - stage + kStages - 1) / kStages;
      barrier_wait(full + 8 * stage, (filled * fills + pair / kStages) & 1);
      // In a cluster an address in shared memory has the block's rank above its 18 bits.
      const uint32_t from = (stages & 0x3ffff) + stage * K::kStageBytes;
      const auto replace = [&](int piece) {
        if (piece + K::kHeld < K::kRun) {
          load_piece(row_tile, piece + K::kHeld);
        } else if (more) {
          load_piece(next_tile, piece % K::kHeld);
        }
      };
      multiply(even, from, pair > 0);
      wgmma_wait<1>();
      convert(2 * pair + 1, odd);
      multiply(odd, from + 4 * column_bytes, true);
      replace(2 * pair), replace(2 * pair + 1);
      if (pair + 1 < kPairs) {
        wgmma_wait<1>();
        convert(2 * pair + 2, even);
      }
      if (pair + kStages < kPairs) {  // the stage is wanted again
        wgmma_wait<0>();
        named_barrier(1 + group, kGroupThreads);
        if (tid % kGroupThreads == 0) fetch_pair(pair + kStages);
      }
    }
    wgmma_wait<0>();
    ++filled;
    __syncthreads();  // all of x has been read

    // [run of the block][pair of sums][lane of the 128]
    constexpr int kSumPairs = K::kSums / 2;
    auto* sums = reinterpret_cast<float2*>(shared);
#pragma unroll
    for (int i = 0; i < kSumPairs; ++i) {
      sums[(group * kSumPairs + i) * kGroupThreads + tid % kGroupThreads] =
          make_float2(acc[2 * i], acc[2 * i + 1]);
    }
    cluster_arrive_shared();
    cluster_wait();
    static_assert(kThreads % kLanes == 0);
    uint32_t from[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) from[b] = address_in(shared, b);
    // Two pairs of a lane: W's rows g and g + 8, for two rows of the step.
#pragma unroll 1
    for (int at = tid; at < kSumPairs / 2 * kLanes; at += kThreads) {
      const int i = at / kLanes * 2;  // the first pair
      float2 sum[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 run_sums[kRuns];
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          const int place = (r % kGroups * kSumPairs + i + half) * kGroupThreads + who;
          run_sums[r] = load_cluster2(from[r / kGroups] + static_cast<uint32_t>(place) * 8);
        }
        sum[half] = run_sums[0];
#pragma unroll
        for (int r = 1; r < kRuns; ++r) {
          sum[half] = {__fadd_rn(sum[half].x, run_sums[r].x), __fadd_rn(sum[half].y, run_sums[r].y)};
        }
      }
      const int tile = 4 * row_group + who / 32, g = who % 32 / 4, row = i / 2 * 8 + who % 4 * 2;
      const auto finish = [&](int of_step, float low, float high) {
        low = __fmul_rn(low, scales.x), high = __fmul_rn(high, scales.y);
        if constexpr (kOut == DecodeOut::kLogits) {
          if (a.tile_max != nullptr) {
            float both[1] = {fmaxf(capped(low, a.cap), capped(high, a.cap))};
            const float largest = largest_of_g(both, g);
            if (g == 0 && of_step < a.rows)
              a.tile_max[int64_t{of_step} * logit_tile_stride(a.n) + tile] = largest;
          }
        }
        if (of_step >= a.rows) return;
        if constexpr (kOut == DecodeOut::kGatedUp) {
          store_gated(a, of_step, tile * 8 + g, low, high);
        } else {
          store_value(a, kOut, 0, of_step, tile * 16 + g, low);
          store_value(a, kOut, 0, of_step, tile * 16 + g + 8, high);
        }
      };
      finish(row, sum[0].x, sum[1].x);
      finish(row + 1, sum[0].y, sum[1].y);
    }
    scales = lane_scales(a, 4 * (row_group + n_clusters) + who / 32, who % 32);
    if (more) convert(0, even);
    cluster_arrive_relaxed();  // nobody leaves, or brings x again, while its sums are being read
    cluster_wait();
  }
#else
  static_cast<void>(K::kPairs + K::kHeld);
#endif
}

template <TileFormat kFormat, int kColumns, int kRun>
cudaError_t launch_as(ProductArgs& a, bool overlap, cudaStream_t stream) {
  using K = Spread<kColumns, kRun>;
  const auto kernel =
      with_wide_out(a.out_kind, []<DecodeOut kOut>() { return spread_kernel<kFormat, K, kOut>; });
  const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, K::kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const int clusters = std::min(a.row_tiles / 4, product_device().sms / kBlocks);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(clusters * kBlocks)),
                          .threads = kThreads,
                          .shared = K::kSharedBytes,
                          .overlap = overlap,
                          .cluster = kBlocks};
  return launch_kernel<ProductArgs>(kernel, shape, stream, a);
}

template <TileFormat kFormat, int kRun>
cudaError_t launch(ProductArgs& a, bool overlap, cudaStream_t stream) {
  return with_columns(a.rows,
                      [&]<int kColumns>() { return launch_as<kFormat, kColumns, kRun>(a, overlap, stream); });
}

// Calls act.operator()<pieces of a run>() if there are kernels for it.
template <class Do>
bool with_run(int run, const Do& act) {
  switch (run) {
    case 6:
      act.template operator()<6>();
      return true;
    case 8:
      act.template operator()<8>();
      return true;
    case 10:
      act.template operator()<10>();
      return true;
    case 16:
      act.template operator()<16>();
      return true;
    default:
      return false;
  }
}

}  // namespace

// With few rows of W its blocks would be too few. (down, whose K is cut into parts, was slower by this
// kernel.)
bool takes_spread_rows(const TiledWeight& w, int rows) {
  const int run = w.k / 32 / kRuns;
  return product_device().wgmma && w.format != TileFormat::kBF16 && rows > 8 && rows <= kMaxDecodeRows &&
         product_splits(w.k) == 1 && w.n % 64 == 0 && w.n >= 1024 && run * kRuns * 32 == w.k &&
         with_run(run, []<int kRun>() {});
}

cudaError_t launch_spread_rows(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  if (a.out_kind == DecodeOut::kGatedPle) return error;
  with_run(a.k32 / kRuns, [&]<int kRun>() {
    error = format == TileFormat::kF8E4M3F16 ? launch<TileFormat::kF8E4M3F16, kRun>(a, overlap, stream)
                                             : launch<TileFormat::kF8E4M3, kRun>(a, overlap, stream);
  });
  return error;
}

}  // namespace jewel::cuda

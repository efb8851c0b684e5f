// The keys of a row are cut into pieces, a piece into kRanks runs. A block takes one KV head of one row and
// one or more runs of a piece in turn; the blocks of a piece are a cluster. Small batches have a run a block,
// large ones several, which spares preparation; the arithmetic is that of the runs, the same for any number
// of them a block.
//
// Block: 8 warps, tiles of 64 keys, K and V straight from memory to registers (the next tile's loads are
// issued as soon as a tile's registers are free, the first tile's before the wait for q).
//   scores   a warp takes 8 keys and the whole head: m16n8k16 with the group's queries as rows, their upper
//            parts in rows 0-7, lower parts in rows 8-15, the two sums added afterwards
//   values   a warp takes 64 columns and 64 keys (head_dim 512) or 32 (256): rows of P split the same way;
//            lane (g, t) holds columns 8 g .. 8 g + 7 of keys 4 t .. 4 t + 3 of each 16, and the order of
//            keys and columns inside the product is permuted to fit
//   merge    over distributed shared memory inside a piece, through the workspace between pieces: the last to
//            arrive adds them in order
// FLOPs hardly matter (E4B, 512 keys: 8 MFLOP a layer); bytes of K and V, the length of this chain at batch 1
// and the instructions that unpack E4M3 at large batches do.
#include <algorithm>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/attention_device.h"
#include "backend/cuda/cluster.h"
#include "backend/cuda/decode_product.h"
#include "backend/cuda/dependent_launch.h"

namespace jewel::cuda {
namespace {

using namespace device;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTileKeys = 64;
constexpr int kMaxGroup = 8;
constexpr int kScoreStride = 80;  // floats; spreads the rows of P over the banks

template <bool kClusters>
constexpr int kRanksOf = kClusters ? 8 : 1;
template <bool kClusters>
constexpr int kMaxPiecesOf = kClusters ? 8 : 32;

// How the keys [first, first + n) of a row are cut: `pieces` pieces of kRanks blocks of `block_keys` keys.
// Every piece has a key.
struct Cut {
  int pieces;
  int block_keys;
};
template <bool kClusters>
__host__ __device__ __forceinline__ Cut cut_keys(int n) {
  constexpr int kRanks = kRanksOf<kClusters>, kAllKeys = kMaxPiecesOf<kClusters> * kRanks * kTileKeys;
  const int block_keys = kTileKeys * ((n + kAllKeys - 1) / kAllKeys);
  return {(n + kRanks * block_keys - 1) / (kRanks * block_keys), block_keys};
}
// The most pieces that any number of keys up to n is cut into (4096 keys make 8 pieces, 4097 make 5).
template <bool kClusters>
int most_pieces(int n) {
  return std::min(
      kMaxPiecesOf<kClusters>,
      cut_keys<kClusters>(std::min(n, kMaxPiecesOf<kClusters> * kRanksOf<kClusters> * kTileKeys)).pieces);
}

// Workspace: counters [rows, kv_heads, ranks] in a place that all shapes of a model share, then sums [rows,
// kv_heads, pieces, group, head_dim], then (maximum, sum) [rows, kv_heads, pieces, ranks, group].
struct Workspace {
  unsigned* counters;
  float* sums;
  float2* stats;
};

constexpr int kMaxSlots = 8;  // runs a block may take

template <int DIM>
struct Shared {
  static constexpr int kSpans = DIM / 64;             // columns, 64 a warp
  static constexpr int kKeyGroups = kWarps / kSpans;  // 2 for 256, 1 for 512
  static constexpr int kOutStride = DIM + 4;
  uint4 q[DIM / 16][32];                // A fragments by step and lane
  float p[2][kMaxGroup][kScoreStride];  // relative to the warp's maximum
  float warp_max[2][kMaxGroup][kWarps];
  const std::byte* k_rows[4][kTileKeys];  // of tile n at n % 4; zeros for keys that are not to be read
  alignas(16) const std::byte* v_rows[4][kTileKeys];
  float4 stats[kMaxSlots][kMaxGroup];  // of a run: maximum, sums of its key groups
  alignas(16) std::byte newest_k[DIM * 2];
  alignas(16) std::byte newest_v[DIM * 2];
  unsigned arrived;
};

// What keys outside of a block's run are read from: their probability is 0, and 0 times what an unwritten
// place of a page holds need not be 0.
__device__ const uint4 kZeroRow[64] = {};

template <int DIM, KvFormat F>
struct Sizes {
  static constexpr int kElement = F == KvFormat::kF8E4M3 ? 1 : 2;
  static constexpr int kRowBytes = DIM * kElement;
  static constexpr int kKLoads = kRowBytes / 64;              // 16-byte loads a lane for one key
  static constexpr int kSteps = 4 / Shared<DIM>::kKeyGroups;  // 16-key steps of a warp
  static constexpr int kVWords = 2 * kElement;                // 8 columns
};

__device__ __forceinline__ uint4 load_streaming(const std::byte* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 load_streaming8(const std::byte* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// K and V of one tile in registers.
template <int DIM, KvFormat F>
struct Tile {
  using S = Sizes<DIM, F>;
  uint4 k[S::kKLoads];                   // the lane's key (g of the warp's 8), bytes 64 c + 16 t
  uint32_t v[S::kSteps][4][S::kVWords];  // keys 4 t + i of a step, columns 8 g .. 8 g + 7 of the warp's span
};

// Where a block's keys lie.
template <int DIM, KvFormat F>
struct Place {
  std::byte* k_head;  // K of the KV head in page 0
  size_t v_offset;    // from K to V of the same position
  size_t page_bytes;
  int end;     // keys from here on are not read
  int newest;  // nor is this one

  __device__ __forceinline__ std::byte* row(int key, int page) const {
    return k_head + static_cast<size_t>(page) * page_bytes +
           static_cast<size_t>(key & 15) * Sizes<DIM, F>::kRowBytes;
  }
  __device__ __forceinline__ void put_rows(Shared<DIM>& shared, int n, int i, int key, int page) const {
    const bool read = key < end && key != newest;
    const auto* zeros = reinterpret_cast<const std::byte*>(kZeroRow);
    const std::byte* k = row(key, page);
    shared.k_rows[n % 4][i] = read ? k : zeros;
    shared.v_rows[n % 4][i] = read ? k + v_offset : zeros;
  }
};

template <int DIM, KvFormat F>
__device__ __forceinline__ void load_k(Tile<DIM, F>& tile, const Shared<DIM>& shared, int n, int warp, int g,
                                       int t) {
  const std::byte* from = shared.k_rows[n % 4][8 * warp + g] + 16 * t;
#pragma unroll
  for (int c = 0; c < Sizes<DIM, F>::kKLoads; ++c) tile.k[c] = load_streaming(from + 64 * c);
}

template <int DIM, KvFormat F>
__device__ __forceinline__ void load_v(Tile<DIM, F>& tile, const Shared<DIM>& shared, int n, int span,
                                       int key_group, int g, int t) {
  using S = Sizes<DIM, F>;
  const int column = (64 * span + 8 * g) * S::kElement;
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) {
    const std::byte* const* rows = &shared.v_rows[n % 4][16 * (key_group * S::kSteps + s) + 4 * t];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t(&v)[S::kVWords] = tile.v[s][i];
      if constexpr (S::kVWords == 2) {
        const uint2 x = load_streaming8(rows[i] + column);
        v[0] = x.x, v[1] = x.y;
      } else {
        const uint4 x = load_streaming(rows[i] + column);
        v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
      }
    }
  }
}

// Brings tile n's K and V on their way: into L2, from where load_k() and load_v() will take them.
template <int DIM, KvFormat F>
__device__ __forceinline__ void fetch_ahead(const Shared<DIM>& shared, int n) {
  constexpr int kLines = Sizes<DIM, F>::kRowBytes / 128;  // of a row
  static_assert(2 * kLines * kTileKeys % kThreads == 0);
#pragma unroll
  for (int i = 0; i < 2 * kLines * kTileKeys / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x), line = at % (2 * kLines),
              key = at / (2 * kLines);
    const std::byte* row = line < kLines ? shared.k_rows[n % 4][key] : shared.v_rows[n % 4][key];
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + 128 * (line % kLines)));
  }
}

// The newest position's K and V, from shared memory, into the registers of the lanes that hold its key.
template <int DIM, KvFormat F>
__device__ __forceinline__ void take_newest_k(Tile<DIM, F>& tile, const Shared<DIM>& shared, int tile_key,
                                              int newest, int warp, int g, int t) {
  if (tile_key + 8 * warp + g != newest) return;
#pragma unroll
  for (int c = 0; c < Sizes<DIM, F>::kKLoads; ++c) {
    tile.k[c] = *reinterpret_cast<const uint4*>(shared.newest_k + 64 * c + 16 * t);
  }
}
template <int DIM, KvFormat F>
__device__ __forceinline__ void take_newest_v(Tile<DIM, F>& tile, const Shared<DIM>& shared, int tile_key,
                                              int newest, int span, int key_group, int g, int t) {
  using S = Sizes<DIM, F>;
#pragma unroll
  for (int s = 0; s < S::kSteps; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (tile_key + 16 * (key_group * S::kSteps + s) + 4 * t + i != newest) continue;
      const auto* p = reinterpret_cast<const uint32_t*>(shared.newest_v + (64 * span + 8 * g) * S::kElement);
#pragma unroll
      for (int w = 0; w < S::kVWords; ++w) tile.v[s][i][w] = p[w];
    }
  }
}

// Four consecutive values of query head `head` to their place among the A fragments. Which values share a
// product's step follows from the bytes a lane loads of K: see scores().
template <int DIM, KvFormat F>
__device__ __forceinline__ void put_query4(Shared<DIM>& shared, int head, int index, const float (&x)[4]) {
  constexpr int kSteps = F == KvFormat::kF8E4M3 ? 4 : 2;  // in the 16 bytes that a lane loads at once
  const int step = index / (16 * kSteps) * kSteps + index / 4 % kSteps, t = index / (4 * kSteps) % 4;
  constexpr float kScale = Number<F>::kQueryScale;
  const Split a = Number<F>::split(x[0] * kScale, x[1] * kScale);
  const Split b = Number<F>::split(x[2] * kScale, x[3] * kScale);
  shared.q[step][4 * head + t] = make_uint4(a.hi, a.lo, b.hi, b.lo);
}

// Products of the group's queries with the warp's 8 keys: head g, keys 2 t and 2 t + 1.
template <int DIM, KvFormat F>
__device__ __forceinline__ void scores(const Shared<DIM>& shared, const Tile<DIM, F>& tile, int group,
                                       int lane, float& s0, float& s1) {
  float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
  const bool used = lane / 4 < group;
#pragma unroll
  for (int c = 0; c < Sizes<DIM, F>::kKLoads; ++c) {
    const uint32_t words[4] = {tile.k[c].x, tile.k[c].y, tile.k[c].z, tile.k[c].w};
    constexpr int kStepsPerLoad = F == KvFormat::kF8E4M3 ? 4 : 2;
#pragma unroll
    for (int s = 0; s < kStepsPerLoad; ++s) {
      const int step = c * kStepsPerLoad + s;
      uint4 a = make_uint4(0, 0, 0, 0);
      if (used) a = shared.q[step][lane];
      uint32_t b0, b1;
      if constexpr (F == KvFormat::kF8E4M3) {
        b0 = f16_of_f8x2(words[s]), b1 = f16_of_f8x2(words[s] >> 16);
      } else {
        b0 = words[2 * s], b1 = words[2 * s + 1];
      }
      Number<F>::mma(s % 2 == 0 ? even : odd, a, b0, b1);
    }
  }
  s0 = (even[0] + odd[0]) + (even[2] + odd[2]);
  s1 = (even[1] + odd[1]) + (even[3] + odd[3]);
}

// B fragments of columns 8 g + j (b[0], keys 4 t, 4 t + 1; b[1], keys 4 t + 2, 4 t + 3) and 8 g + j + 1
// (b[2], b[3]) of the span; j is even.
template <KvFormat F, int kWords>
__device__ __forceinline__ void value_fragments(const uint32_t (&v)[4][kWords], int j, uint32_t (&b)[4]) {
  if constexpr (F == KvFormat::kF8E4M3) {
    const uint32_t pick = j % 4 == 0 ? 0x5140u : 0x7362u;
    const uint32_t low = __byte_perm(v[0][j / 4], v[1][j / 4], pick);
    const uint32_t high = __byte_perm(v[2][j / 4], v[3][j / 4], pick);
    b[0] = f16_of_f8x2(low), b[1] = f16_of_f8x2(high);
    b[2] = f16_of_f8x2(low >> 16), b[3] = f16_of_f8x2(high >> 16);
  } else {
    b[0] = __byte_perm(v[0][j / 2], v[1][j / 2], 0x5410),
    b[1] = __byte_perm(v[2][j / 2], v[3][j / 2], 0x5410);
    b[2] = __byte_perm(v[0][j / 2], v[1][j / 2], 0x7632),
    b[3] = __byte_perm(v[2][j / 2], v[3][j / 2], 0x7632);
  }
}

// RMS norm and RoPE of the group's queries, into fragments; the newest K and V, into their page and into
// shared memory.
template <int DIM, KvFormat F>
__device__ __forceinline__ void prepare_rows(const DecodeAttention& p, Shared<DIM>& shared, int row,
                                             int kv_head, int position, std::byte* newest_row,
                                             size_t v_offset, int warp, int lane,
                                             const HeadRotation<DIM>& rotation) {
  const int group = p.shape.n_heads / p.shape.n_kv_heads;
  const float* x = p.qkv + static_cast<size_t>(row) * p.qkv_stride;
  const bool makes_newest = newest_row != nullptr && p.owns_kv && !p.prepared;
  const int tasks = group + (makes_newest ? 2 : 0);
  for (int task = warp; task < tasks; task += kWarps) {
    Head<DIM> head;
    if (task < group) {
      head.load(x + (kv_head * group + task) * DIM, lane);
      if (!p.prepared) {
        Head<DIM> weight;
        weight.load(p.norms.q, lane);
        head.norm(weight, p.norms.eps);
        head.rotate(rotation);
      }
      head.for_fours(
          lane, [&](int index, const float(&four)[4]) { put_query4<DIM, F>(shared, task, index, four); });
      continue;
    }
    const bool is_k = task == group;
    head.load(x + (p.shape.n_heads + (is_k ? 0 : p.shape.n_kv_heads) + kv_head) * DIM, lane);
    Head<DIM> weight;
    if (is_k) {
      weight.load(p.norms.k, lane);
    } else {
      weight.fill(1.0f);
    }
    head.norm(weight, p.norms.eps);
    if (is_k) head.rotate(rotation);
    std::byte* global = newest_row + (is_k ? 0 : v_offset);
    std::byte* local = is_k ? shared.newest_k : shared.newest_v;
    const float inverse_scale = 1.0f / (is_k ? p.kv.k_scale : p.kv.v_scale);
    head.for_fours(lane, [&](int index, const float(&four)[4]) {
      store_kv4<F>(global, index, four, inverse_scale);
      store_kv4<F>(local, index, four, inverse_scale);
    });
  }
  // Written by an earlier kernel: by now it is complete.
  if (newest_row != nullptr && !makes_newest) {
    constexpr int kWords = Sizes<DIM, F>::kRowBytes / 16;
    for (int i = threadIdx.x; i < 2 * kWords; i += kThreads) {
      const bool is_k = i < kWords;
      const int word = is_k ? i : i - kWords;
      const uint4 x16 = load_streaming(newest_row + (is_k ? 0 : v_offset) + 16 * word);
      *reinterpret_cast<uint4*>((is_k ? shared.newest_k : shared.newest_v) + 16 * word) = x16;
    }
  }
}

// Adds what the runs of a piece found, each block of the cluster for its share of the columns, and then what
// the pieces found. `out` is [slots, kKeyGroups, group, kOutStride] in every block of the cluster.
template <int DIM, bool kClusters>
__device__ __forceinline__ void merge(const DecodeAttention& p, Shared<DIM>& shared, const float* results,
                                      const Workspace& workspace, int slots_log2, int block, int piece,
                                      int n_pieces) {
  constexpr int kRanks = kRanksOf<kClusters>, kMaxPieces = kMaxPiecesOf<kClusters>;
  constexpr int kGroups = Shared<DIM>::kKeyGroups, kStride = Shared<DIM>::kOutStride;
  const int group = p.shape.n_heads / p.shape.n_kv_heads;
  const int row = blockIdx.z, kv_head = blockIdx.y;
  const int64_t unit = int64_t{row} * p.shape.n_kv_heads + kv_head;
  float* sums = workspace.sums + unit * kMaxPieces * group * DIM;
  float2* stats = workspace.stats + unit * kMaxPieces * kRanks * group;
  const auto put = [&](int head, int column, float x, float y) {
    const int k = (kv_head * group + head) * DIM + column;
    auto* out = static_cast<__nv_bfloat16*>(p.out);
    if (p.out_order != XOrder::kNatural) {
      const int width = p.shape.n_heads * DIM;
      out[x_index(p.out_order, row, k, p.rows.n, width)] = __float2bfloat16_rn(x);
      out[x_index(p.out_order, row, k + 1, p.rows.n, width)] = __float2bfloat16_rn(y);
    } else {
      *reinterpret_cast<__nv_bfloat162*>(out + int64_t{row} * p.shape.n_heads * DIM + k) =
          __floats2bfloat162_rn(x, y);
    }
  };
  const int pairs_log2 = __ffs(DIM / 2 / kRanks) - 1 + slots_log2;  // pairs of columns a block adds
  const int n = group << pairs_log2, pair_mask = (1 << pairs_log2) - 1;

  for (int i = threadIdx.x; i < n; i += kThreads) {
    const int head = i >> pairs_log2;
    const int column = 2 * ((block << pairs_log2) + (i & pair_mask));
    float max[kRanks], sum[kRanks][kGroups];
    float2 o[kRanks][kGroups];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const int from = r >> slots_log2, slot = r & ((1 << slots_log2) - 1);
      const float4 stats4 = load_cluster4(address_in(&shared.stats[slot][head], from));
      const uint32_t values = address_in(results + (slot * kGroups * group + head) * kStride + column, from);
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        o[r][k] = load_cluster2(values + static_cast<uint32_t>(k * group * kStride) * 4);
        sum[r][k] = k == 0 ? stats4.y : stats4.z;
      }
      max[r] = stats4.x;
    }
    float top = max[0];
#pragma unroll
    for (int r = 1; r < kRanks; ++r) top = fmaxf(top, max[r]);
    float total = 0;
    float2 value = make_float2(0, 0);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      if (max[r] == -INFINITY) continue;  // a run without keys left no results
      const float weight = exp2_fast(max[r] - top);
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        total = fmaf(weight, sum[r][k], total);
        value.x = fmaf(weight, o[r][k].x, value.x);
        value.y = fmaf(weight, o[r][k].y, value.y);
      }
    }
    if (n_pieces == 1) {
      const float scale = __fdividef(p.kv.v_scale, total);
      put(head, column, value.x * scale, value.y * scale);
    } else {
      __stcg(reinterpret_cast<float2*>(sums + (piece * group + head) * DIM + column), value);
      if ((i & pair_mask) == 0) {
        __stcg(stats + (piece * kRanks + block) * group + head, make_float2(top, total));
      }
    }
  }
  if (n_pieces == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* counter = workspace.counters + unit * kRanks + block;
    const unsigned before = atomicAdd(counter, 1u);
    if (before == static_cast<unsigned>(n_pieces - 1)) *counter = 0;
    shared.arrived = before;
  }
  __syncthreads();
  if (shared.arrived != static_cast<unsigned>(n_pieces - 1)) return;
  __threadfence();

  for (int i = threadIdx.x; i < n; i += kThreads) {
    const int head = i >> pairs_log2;
    const int column = 2 * ((block << pairs_log2) + (i & pair_mask));
    const auto stat_of = [&](int s) { return __ldcg(stats + (s * kRanks + block) * group + head); };
    float top = -INFINITY;
#pragma unroll 8
    for (int s = 0; s < n_pieces; ++s) top = fmaxf(top, stat_of(s).x);
    float total = 0;
    float2 value = make_float2(0, 0);
#pragma unroll 8
    for (int s = 0; s < n_pieces; ++s) {
      const float2 stat = stat_of(s);
      const float2 o = __ldcg(reinterpret_cast<const float2*>(sums + (s * group + head) * DIM + column));
      const float weight = exp2_fast(stat.x - top);
      total = fmaf(weight, stat.y, total);
      value.x = fmaf(weight, o.x, value.x);
      value.y = fmaf(weight, o.y, value.y);
    }
    const float scale = __fdividef(p.kv.v_scale, total);
    put(head, column, value.x * scale, value.y * scale);
  }
}

// A run's results to shared memory: columns 16 t + j and 16 t + 8 + j of the span, upper and lower parts
// added.
template <int DIM>
__device__ __forceinline__ void put_results(float* results, const float (&out)[8][4], int row, int span,
                                            int t) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float* o = results + row * Shared<DIM>::kOutStride + 64 * span + 16 * t + 8 * half;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      *reinterpret_cast<float4*>(o + j) =
          make_float4(out[j][half] + out[j][2 + half], out[j + 1][half] + out[j + 1][2 + half],
                      out[j + 2][half] + out[j + 2][2 + half], out[j + 3][half] + out[j + 3][2 + half]);
    }
  }
}

template <int DIM, KvFormat F>
constexpr int min_blocks() {
  return DIM == 512 ? (F == KvFormat::kF8E4M3 ? 2 : 1) : 2;
}

template <int DIM, KvFormat F, bool kClusters>
__global__ void __launch_bounds__(kThreads, min_blocks<DIM, F>())
    decode_attention_kernel(const __grid_constant__ DecodeAttention p,
                            const __grid_constant__ Workspace workspace, int slots_log2) {
  using S = Sizes<DIM, F>;
  constexpr int kRanks = kRanksOf<kClusters>, kGroups = Shared<DIM>::kKeyGroups;
  __shared__ Shared<DIM> shared;
  extern __shared__ __align__(16) float results[];  // [slots, kGroups, group, kOutStride], then the page list

  const int row = blockIdx.z, kv_head = blockIdx.y;
  const int position = p.rows.positions[row], table_row = p.rows.slots[row];
  const int slots = 1 << slots_log2, blocks_log2 = (kClusters ? 3 : 0) - slots_log2;
  const int block = blockIdx.x & ((1 << blocks_log2) - 1), piece = blockIdx.x >> blocks_log2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int span = warp % Shared<DIM>::kSpans, key_group = warp / Shared<DIM>::kSpans;
  const int group = p.shape.n_heads / p.shape.n_kv_heads;
  release_next_kernel();

  if (position < 0) return;
  const int first = p.shape.window > 0 ? max(0, position - p.shape.window + 1) : 0;
  const Cut cut = cut_keys<kClusters>(position + 1 - first);
  if (piece >= cut.pieces) return;
  const int begin = first + (piece * kRanks + block * slots) * cut.block_keys;
  const int end = min(begin + slots * cut.block_keys, position + 1);
  const int n_tiles = begin < end ? (end - begin + kTileKeys - 1) / kTileKeys : 0;
  const int run_tiles = cut.block_keys / kTileKeys;

  const size_t head_bytes = size_t{16} * S::kRowBytes;
  const Place<DIM, F> place = {.k_head = p.kv.data + kv_head * head_bytes,
                               .v_offset = p.shape.n_kv_heads * head_bytes,
                               .page_bytes = 2 * p.shape.n_kv_heads * head_bytes,
                               .end = end,
                               .newest = position};
  const int32_t* table = p.kv.page_table + int64_t{table_row} * p.kv.max_pages;
  auto* pages = reinterpret_cast<int32_t*>(results + slots * kGroups * group * Shared<DIM>::kOutStride);
  const int first_page = begin >> 4;
  if (threadIdx.x < 2 * kTileKeys) {
    const int i = static_cast<int>(threadIdx.x), key = begin + i;
    place.put_rows(shared, i / kTileKeys, i % kTileKeys, key, key < end ? table[key >> 4] : 0);
  }
  if (n_tiles > 2) {
    const int n_pages = ((end - 1) >> 4) - first_page + 1;
    for (int i = threadIdx.x; i < n_pages; i += kThreads) pages[i] = table[first_page + i];
  }
  if (threadIdx.x < kMaxSlots * kMaxGroup) {
    shared.stats[threadIdx.x / kMaxGroup][threadIdx.x % kMaxGroup] = make_float4(-INFINITY, 0, 0, 0);
  }
  __syncthreads();

  Tile<DIM, F> tile;
  HeadRotation<DIM> rotation;
  std::byte* newest_row = nullptr;
  if (n_tiles > 0) {
    load_k<DIM, F>(tile, shared, 0, warp, g, t);
    load_v<DIM, F>(tile, shared, 0, span, key_group, g, t);
    if (n_tiles > 1) fetch_ahead<DIM, F>(shared, 1);
    if (!p.prepared) rotation.set(p.rope, position, lane);
    if (end == position + 1) newest_row = place.row(position, table[position >> 4]);
  }

  wait_for_last_kernel();
  if (n_tiles > 0) {
    prepare_rows<DIM, F>(p, shared, row, kv_head, position, newest_row, place.v_offset, warp, lane, rotation);
  }
  __syncthreads();

  const float to_log2 = p.kv.k_scale * kLog2E / Number<F>::kQueryScale;
  float max = -INFINITY, sum = 0;  // of head g; sum over the lane's share of the key group
  float out[8][4];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[j][i] = 0;
  }
  int slot = 0, left_of_run = run_tiles;
  for (int n = 0; n < n_tiles; ++n) {
    const int tile_key = begin + n * kTileKeys, buffer = n % 2;
    const bool more = n + 1 < n_tiles;
    const bool has_newest = newest_row != nullptr && !more;
    if (has_newest) take_newest_k(tile, shared, tile_key, position, warp, g, t);
    float s0, s1;
    scores(shared, tile, group, lane, s0, s1);
    if (more) load_k<DIM, F>(tile, shared, n + 1, warp, g, t);

    const int key = tile_key + 8 * warp + 2 * t;
    s0 = key < end ? s0 * to_log2 : -INFINITY;
    s1 = key + 1 < end ? s1 * to_log2 : -INFINITY;
    float warp_max = fmaxf(s0, s1);
    warp_max = fmaxf(warp_max, __shfl_xor_sync(kAllLanes, warp_max, 1));
    warp_max = fmaxf(warp_max, __shfl_xor_sync(kAllLanes, warp_max, 2));
    const float base = warp_max == -INFINITY ? 0 : warp_max;
    *reinterpret_cast<float2*>(&shared.p[buffer][g][8 * warp + 2 * t]) =
        make_float2(exp2_fast(s0 - base), exp2_fast(s1 - base));
    if (t == 0) shared.warp_max[buffer][g][warp] = warp_max;
    if (n + 2 < n_tiles && threadIdx.x < kTileKeys) {
      const int i = static_cast<int>(threadIdx.x), ahead = tile_key + 2 * kTileKeys + i;
      place.put_rows(shared, n + 2, i, ahead, ahead < end ? pages[(ahead >> 4) - first_page] : 0);
    }
    __syncthreads();

    if (n + 2 < n_tiles) fetch_ahead<DIM, F>(shared, n + 2);
    if (has_newest) take_newest_v(tile, shared, tile_key, position, span, key_group, g, t);
    float new_max = max;
#pragma unroll
    for (int w = 0; w < kWarps; w += 4) {
      const float4 m = *reinterpret_cast<const float4*>(&shared.warp_max[buffer][g][w]);
      new_max = fmaxf(fmaxf(fmaxf(new_max, m.x), fmaxf(m.y, m.z)), m.w);
    }
    const float shrink = exp2_fast(max - new_max);  // a tile has a key, so new_max is a number
    max = new_max;
    sum *= shrink;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] *= shrink;
    }
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) {
      const int step = key_group * S::kSteps + s;
      float4 x = *reinterpret_cast<const float4*>(&shared.p[buffer][g][16 * step + 4 * t]);
      const float scale =
          exp2_fast(shared.warp_max[buffer][g][2 * step + t / 2] - max + Number<F>::kHeadroom);
      x.x *= scale, x.y *= scale, x.z *= scale, x.w *= scale;
      sum += (x.x + x.y) + (x.z + x.w);
      const Split a = Number<F>::split(x.x, x.y), b = Number<F>::split(x.z, x.w);
      const uint4 rows = g < group ? make_uint4(a.hi, a.lo, b.hi, b.lo) : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t v[4];
        value_fragments<F>(tile.v[s], j, v);
        Number<F>::mma(out[j], rows, v[0], v[1]);
        Number<F>::mma(out[j + 1], rows, v[2], v[3]);
      }
    }
    if (more) load_v<DIM, F>(tile, shared, n + 1, span, key_group, g, t);

    if (--left_of_run > 0 && more) continue;
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (g < group) {
      if (t == 0 && span == 0) {
        float4& stats = shared.stats[slot][g];
        (key_group == 0 ? stats.y : stats.z) = sum;
        if (key_group == 0) stats.x = max;
      }
      put_results<DIM>(results, out, (slot * kGroups + key_group) * group + g, span, t);
    }
    ++slot, left_of_run = run_tiles, max = -INFINITY, sum = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] = 0;
    }
  }

  if constexpr (kClusters) {
    cluster_arrive();
    cluster_wait();
  } else {
    __syncthreads();
  }
  merge<DIM, kClusters>(p, shared, results, workspace, slots_log2, block, piece, cut.pieces);
  if constexpr (kClusters) {
    cluster_arrive_relaxed();  // nobody leaves while its results are being read
    cluster_wait();
  }
}

struct WorkspaceBytes {
  size_t counters, sums, stats;
};
template <bool kClusters>
WorkspaceBytes workspace_bytes(const AttentionShape& shape, int max_rows) {
  const size_t heads = static_cast<size_t>(max_rows) * static_cast<size_t>(shape.n_heads);
  const size_t pieces = heads * kMaxPiecesOf<kClusters>;
  return {.counters = (heads * kRanksOf<kClusters> * sizeof(unsigned) + 255) / 256 * 256,
          .sums = pieces * static_cast<size_t>(shape.head_dim) * sizeof(float),
          .stats = pieces * kRanksOf<kClusters> * sizeof(float2)};
}

// log2 of the runs a block takes, by what was fastest on an H200 (docs of bench/cuda_attention.cu's
// decode_runs): at 512 keys E4B's sliding layers want 1 up to batch 8, 2 at 16 and 24, 4 at 32 and 64, 8 at
// 100. Layers that see everything may have seven more pieces to fill the card with.
int slots_log2_for(const DecodeAttention& p, bool clusters) {
  if (!clusters) return 0;
  const int group = p.shape.n_heads / p.shape.n_kv_heads;
  int most = group > 4 ? 2 : 3;  // shared memory for the runs' results
  int wanted = 0;
  if (p.runs_a_block > 0) {
    while (2 << wanted <= p.runs_a_block) ++wanted;
  } else {
    int units = p.rows.n * p.shape.n_kv_heads;
    if (p.shape.window == 0 && p.max_context > 1024) units += units / 2, most = std::min(most, 2);
    wanted = units <= 16 ? 0 : units <= 48 ? 1 : units <= 150 ? 2 : 3;
  }
  return std::min(wanted, most);
}

template <int DIM, KvFormat F, bool kClusters>
cudaError_t launch(const DecodeAttention& p, cudaStream_t stream) {
  const int keys = p.shape.window > 0 ? std::min(p.shape.window, p.max_context) : p.max_context;
  const WorkspaceBytes sizes = workspace_bytes<kClusters>(p.shape, p.workspace_rows);
  auto* bytes = static_cast<std::byte*>(p.workspace);
  const Workspace workspace = {.counters = reinterpret_cast<unsigned*>(bytes),
                               .sums = reinterpret_cast<float*>(bytes + sizes.counters),
                               .stats = reinterpret_cast<float2*>(bytes + sizes.counters + sizes.sums)};
  const int slots_log2 = slots_log2_for(p, kClusters), slots = 1 << slots_log2;
  const int blocks = kRanksOf<kClusters> >> slots_log2;
  const int group = p.shape.n_heads / p.shape.n_kv_heads;
  const int result_rows = slots * Shared<DIM>::kKeyGroups * group;
  const int page_entries = slots * cut_keys<kClusters>(keys).block_keys / 16 + 2;

  auto* kernel = decode_attention_kernel<DIM, F, kClusters>;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(most_pieces<kClusters>(keys) * blocks),
                        static_cast<unsigned>(p.shape.n_kv_heads), static_cast<unsigned>(p.rows.n));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(result_rows * Shared<DIM>::kOutStride) * sizeof(float) +
                            static_cast<size_t>(page_entries) * sizeof(int32_t);
  config.stream = stream;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(config.dynamicSmemBytes));
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if constexpr (kClusters) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 2;
  }
  return cudaLaunchKernelEx(&config, kernel, p, workspace, slots_log2);
}

template <bool kClusters>
cudaError_t launch(const DecodeAttention& p, cudaStream_t stream) {
  const bool f8 = p.kv.format == KvFormat::kF8E4M3;
  if (p.shape.head_dim == 256) {
    return f8 ? launch<256, KvFormat::kF8E4M3, kClusters>(p, stream)
              : launch<256, KvFormat::kBF16, kClusters>(p, stream);
  }
  return f8 ? launch<512, KvFormat::kF8E4M3, kClusters>(p, stream)
            : launch<512, KvFormat::kBF16, kClusters>(p, stream);
}

}  // namespace

size_t decode_attention_workspace(const AttentionShape& shape, int max_rows, AttentionDesign design) {
  const WorkspaceBytes sizes = design == AttentionDesign::kSm90 ? workspace_bytes<true>(shape, max_rows)
                                                                : workspace_bytes<false>(shape, max_rows);
  return sizes.counters + sizes.sums + sizes.stats;
}

cudaError_t launch_decode_attention(const DecodeAttention& attention, AttentionDesign design,
                                    cudaStream_t stream) {
  const AttentionShape& shape = attention.shape;
  const int group = shape.n_kv_heads > 0 ? shape.n_heads / shape.n_kv_heads : 0;
  const bool known = (shape.head_dim == 256 || shape.head_dim == 512) && group >= 1 && group <= kMaxGroup &&
                     group * shape.n_kv_heads == shape.n_heads && attention.max_context > 0 &&
                     attention.rows.n <= attention.workspace_rows;
  if (!known) return cudaErrorInvalidValue;
  if (attention.rows.n == 0) return cudaSuccess;
  return design == AttentionDesign::kSm90 ? launch<true>(attention, stream)
                                          : launch<false>(attention, stream);
}

}  // namespace jewel::cuda

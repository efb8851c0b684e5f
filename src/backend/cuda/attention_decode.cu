// The keys of a row are cut into pieces, a piece into kRanks runs. A block takes up to four query heads of
// one KV head of one row, and one or more runs of a piece; the blocks of a piece are a cluster. Small batches
// have a run or two a block, large ones all of a piece, which spares preparation; the arithmetic is that of
// the runs (attention_decode_runs.h), the same for any number of them a block.
//
// Block: 8 warps. The first tile's loads stand before the wait for q, whose norm and rotation the warps
// share. What the runs found is merged over distributed shared memory inside a piece, and two pieces too
// where a block has runs of both; otherwise pieces are merged through the workspace: the last to arrive adds
// them in order. Either way the sums are the same.
//
// FLOPs hardly matter (E4B, 512 keys: 8 MFLOP a layer); bytes of K and V, the length of this chain at batch 1
// and the number of instructions at large batches do.
#include <algorithm>
#include <bit>

#include "backend/cuda/attention_decode.h"
#include "backend/cuda/attention_decode_runs.h"
#include "backend/cuda/attention_device.h"
#include "backend/cuda/cluster.h"
#include "backend/cuda/decode_device.h"
#include "backend/cuda/decode_product.h"
#include "backend/cuda/dependent_launch.h"

namespace jewel::cuda {
namespace {

using namespace device;

constexpr int kThreads = kBlockThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxRanks = 8;

// Without clusters a piece is what a block takes at once.
template <class S, bool kClusters>
constexpr int kRanksOf = kClusters ? kMaxRanks : S::kTeams;
template <bool kClusters>
constexpr int kMaxPiecesOf = kClusters ? 8 : 32;

// Blocks that share a KV head, each with its own queries, and the queries of one.
__host__ __device__ __forceinline__ int query_parts(int group) {
  return group > kBlockHeads ? group / kBlockHeads : 1;
}

// How the keys [first, first + n) of a row are cut: `pieces` pieces of kRanks runs of `run_keys` keys.
// Every piece has a key.
struct Cut {
  int pieces;
  int run_keys;
};
template <int kRanks, int kMaxPieces>
__host__ __device__ __forceinline__ Cut cut_keys(int n) {
  constexpr int kAllKeys = kMaxPieces * kRanks * kTileKeys;
  const int run_keys = kTileKeys * ((n + kAllKeys - 1) / kAllKeys);
  return {(n + kRanks * run_keys - 1) / (kRanks * run_keys), run_keys};
}
// The most pieces that any number of keys up to n is cut into (with clusters, 4096 keys make 8 pieces and
// 4097 make 5).
template <int kRanks, int kMaxPieces>
int most_pieces(int n) {
  return std::min(kMaxPieces,
                  cut_keys<kRanks, kMaxPieces>(std::min(n, kMaxPieces * kRanks * kTileKeys)).pieces);
}

// A unit is a row's queries of one block. Workspace: counters [units, kMaxRanks] in a place that all shapes
// of a model share, then sums [units, pieces, heads, head_dim], then (maximum, sum) [units, pieces, ranks,
// heads].
struct Workspace {
  unsigned* counters;
  float* sums;
  float2* stats;
};

template <class S>
struct Shared {
  RowShared<S> row;
  TeamShared<S> teams[S::kTeams];
  float2 stats[kMaxRanks][kBlockHeads];                        // of a run: maximum, sum
  alignas(16) float cosines[S::kDim / 2], sines[S::kDim / 2];  // of the row's position
  unsigned arrived;
};

// How a launch is laid out, and what the host divides for all. gridDim.y is KV heads times parts.
struct Layout {
  int slots_log2;  // of the runs that a block takes
  int parts_log2;  // of query_parts()
  int heads;       // queries of a block
  float inverse_k_scale, inverse_v_scale;
};

// A row's queries that a block takes.
struct Unit {
  int index;  // among all of the launch
  int row, kv_head, first_head, heads;
  bool keeps_newest;  // writes the newest K and V to their page, which other units of the KV head make too
  __device__ __forceinline__ explicit Unit(const Layout& layout) {
    const auto y = static_cast<int>(blockIdx.y);
    row = static_cast<int>(blockIdx.z), kv_head = y >> layout.parts_log2;
    index = row * static_cast<int>(gridDim.y) + y;
    heads = layout.heads, first_head = y * heads;
    keeps_newest = y == kv_head << layout.parts_log2;
  }
};

// What a warp prepares: one of the unit's queries, or the newest K or V.
template <class S>
struct Preparation {
  bool is_q, is_v, any;
  Head<S::kDim> weight;  // of the norm

  // No kernel writes the weights, so they are asked for before the wait.
  __device__ __forceinline__ Preparation(const DecodeAttention& p, const Unit& unit, bool makes_newest) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    static_assert(kBlockHeads + 2 <= kWarps);
    is_q = warp < unit.heads, is_v = warp == unit.heads + 1, any = warp < unit.heads + (makes_newest ? 2 : 0);
    if (any && !is_v && !p.prepared) {
      weight.load(is_q ? p.norms.q : p.norms.k, lane);
    } else {
      weight.fill(1.0f);
    }
  }
};

// RMS norm and RoPE of the unit's queries, into fragments; the newest K and V, into their page and into
// shared memory: to newest_place(is V, byte).
template <class S, class Place>
__device__ __forceinline__ void prepare_rows(const DecodeAttention& p, const Layout& layout,
                                             Shared<S>& shared, const Unit& unit, const Preparation<S>& mine,
                                             bool makes_newest, std::byte* newest_row, size_t v_offset,
                                             const Place& newest_place) {
  constexpr int DIM = S::kDim;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (mine.any) {
    const int place = mine.is_q ? unit.first_head + warp
                                : p.shape.n_heads + (mine.is_v ? p.shape.n_kv_heads : 0) + unit.kv_head;
    Head<DIM> head;
    head.load(p.qkv + static_cast<size_t>(unit.row) * p.qkv_stride + place * DIM, lane);
    if (!p.prepared) {
      head.norm(mine.weight, p.norms.eps);
      if (!mine.is_v) {
        HeadRotation<DIM> rotation;
        rotation.set(shared.cosines, shared.sines, lane);
        head.rotate(rotation);
      }
    }
    if (mine.is_q) {
      head.for_fours(lane,
                     [&](int index, const float(&four)[4]) { put_query4(shared.row, warp, index, four); });
    } else {
      std::byte* global = newest_row + (mine.is_v ? v_offset : 0);
      const float inverse_scale = mine.is_v ? layout.inverse_v_scale : layout.inverse_k_scale;
      head.for_fours(lane, [&](int index, const float(&four)[4]) {
        if (unit.keeps_newest) store_kv4<S::kFormat>(global, index, four, inverse_scale);
        store_kv4<S::kFormat>(newest_place(mine.is_v, index * S::kElement), 0, four, inverse_scale);
      });
    }
  }
  // Written by an earlier kernel: by now it is complete. The last warps have no query to prepare.
  if (newest_row != nullptr && !makes_newest) {
    constexpr int kWords = S::kRowBytes / 16;
    for (int i = kThreads - 1 - static_cast<int>(threadIdx.x); i < 2 * kWords; i += kThreads) {
      const bool is_v = i >= kWords;
      const int byte = 16 * (is_v ? i - kWords : i);
      *reinterpret_cast<uint4*>(newest_place(is_v, byte)) =
          load_streaming(newest_row + (is_v ? v_offset : 0) + byte);
    }
  }
}

// Adds what the runs of a piece found, each block of the cluster for its share of the columns, and then what
// the pieces found. `results` is [slots, heads, kOutStride] in every block of the cluster, of a second piece
// behind those of the first.
template <class S, bool kClusters, class W>
__device__ __forceinline__ void merge(const DecodeAttention& p, Shared<S>& shared, const float* results,
                                      const Workspace& workspace, const Unit& unit, int slots_log2, int block,
                                      int piece, int n_pieces) {
  constexpr int DIM = S::kDim, kRanks = kRanksOf<S, kClusters>, kMaxPieces = kMaxPiecesOf<kClusters>;
  constexpr int kStride = S::kOutStride;
  const int row = unit.row;
  float* sums = workspace.sums + int64_t{unit.index} * kMaxPieces * unit.heads * DIM;
  float2* stats = workspace.stats + int64_t{unit.index} * kMaxPieces * kRanks * unit.heads;
  const auto put = [&](int head, int column, float x, float y) {
    const int k = (unit.first_head + head) * DIM + column;
    auto* out = static_cast<__nv_bfloat16*>(p.out);
    if (is_f16(p.out_order)) {
      *reinterpret_cast<uint32_t*>(out + x_index(p.out_order, row, k, p.rows.n, p.shape.n_heads * DIM)) =
          pack_f16(x, y);
    } else if (p.out_order != XOrder::kNatural) {
      const int width = p.shape.n_heads * DIM;
      out[x_index(p.out_order, row, k, p.rows.n, width)] = __float2bfloat16_rn(x);
      out[x_index(p.out_order, row, k + 1, p.rows.n, width)] = __float2bfloat16_rn(y);
    } else {
      *reinterpret_cast<__nv_bfloat162*>(out + int64_t{row} * p.shape.n_heads * DIM + k) =
          __floats2bfloat162_rn(x, y);
    }
  };
  const int pairs_log2 = __ffs(DIM / 2 / kRanks) - 1 + slots_log2;  // pairs of columns a block adds
  const int n = unit.heads << pairs_log2, pair_mask = (1 << pairs_log2) - 1;

  struct Merged {
    float top = -INFINITY, total = 0;
    float2 value = make_float2(0, 0);
    __device__ __forceinline__ void add(float their_top, float their_total, float2 their_value) {
      const float weight = exp2_fast(their_top - top);
      total = fmaf(weight, their_total, total);
      value.x = fmaf(weight, their_value.x, value.x);
      value.y = fmaf(weight, their_value.y, value.y);
    }
  };
  // Of the runs that the blocks have from slot `first` on.
  const auto merge_runs = [&](int first, int head, int column) {
    float2 stat[kRanks], o[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      const int from = r >> slots_log2, slot = first + (r & ((1 << slots_log2) - 1));
      stat[r] = load_cluster2(address_in(&shared.stats[slot][head], from));
      o[r] = load_cluster2(address_in(results + (slot * unit.heads + head) * kStride + column, from));
    }
    Merged merged;
#pragma unroll
    for (int r = 0; r < kRanks; ++r) merged.top = fmaxf(merged.top, stat[r].x);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      if (stat[r].x != -INFINITY) merged.add(stat[r].x, stat[r].y, o[r]);  // else it left no results
    }
    return merged;
  };

#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const int head = i >> pairs_log2;
    const int column = 2 * ((block << pairs_log2) + (i & pair_mask));
    Merged merged = merge_runs(0, head, column);
    if (W::kPair && n_pieces == 2) {
      const Merged first = merged, second = merge_runs(1 << slots_log2, head, column);
      merged = {.top = fmaxf(first.top, second.top)};
      merged.add(first.top, first.total, first.value);
      merged.add(second.top, second.total, second.value);
    }
    if (W::kPieces != kAny || n_pieces == 1) {
      const float scale = __fdividef(p.kv.v_scale, merged.total);
      put(head, column, merged.value.x * scale, merged.value.y * scale);
    } else {
      __stcg(reinterpret_cast<float2*>(sums + (piece * unit.heads + head) * DIM + column), merged.value);
      if ((i & pair_mask) == 0) {
        __stcg(stats + (piece * kRanks + block) * unit.heads + head, make_float2(merged.top, merged.total));
      }
    }
  }
  if (W::kPieces != kAny || n_pieces == 1) return;

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* counter = workspace.counters + unit.index * kMaxRanks + block;
    const unsigned before = atomicAdd(counter, 1u);
    if (before == static_cast<unsigned>(n_pieces - 1)) *counter = 0;
    shared.arrived = before;
  }
  __syncthreads();
  if (shared.arrived != static_cast<unsigned>(n_pieces - 1)) return;
  __threadfence();

#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += kThreads) {
    const int head = i >> pairs_log2;
    const int column = 2 * ((block << pairs_log2) + (i & pair_mask));
    const auto stat_of = [&](int s) { return __ldcg(stats + (s * kRanks + block) * unit.heads + head); };
    Merged merged;
#pragma unroll 8
    for (int s = 0; s < n_pieces; ++s) merged.top = fmaxf(merged.top, stat_of(s).x);
#pragma unroll 8
    for (int s = 0; s < n_pieces; ++s) {
      const float2 stat = stat_of(s);
      const float2 o = __ldcg(reinterpret_cast<const float2*>(sums + (s * unit.heads + head) * DIM + column));
      merged.add(stat.x, stat.y, o);
    }
    const float scale = __fdividef(p.kv.v_scale, merged.total);
    put(head, column, merged.value.x * scale, merged.value.y * scale);
  }
}

// Entries of the list of pages that a team keeps for its runs.
template <class S>
__host__ __device__ __forceinline__ int team_pages(int slots, int run_keys) {
  return slots / S::kTeams * run_keys / 16 + 2;
}

// Shared memory of a tile, and of a block's tiles.
template <class S, class W>
constexpr int kStagedTileBytes = W::kRing ? RingTile<S>::kBytes : StagedTile<S>::kBytes;
template <class S, class W>
constexpr size_t kStagedBytes = W::kStaged ? size_t{S::kTeams} * W::kPlaces * kStagedTileBytes<S, W> : 0;

template <class S, bool kClusters, class W>
__global__ void __launch_bounds__(kThreads, S::kFormat == KvFormat::kF8E4M3 ? 2 : 1)
    decode_attention_kernel(const __grid_constant__ DecodeAttention p,
                            const __grid_constant__ Workspace workspace, Layout layout) {
#if __CUDA_ARCH__ < 900
  if (kClusters) return;  // not launched
#endif
  constexpr int kRanks = kRanksOf<S, kClusters>, kPieceKeys = kRanks * kTileKeys;
  __shared__ Shared<S> shared;
  // The teams' tiles, then results [slots, heads, kOutStride], then the teams' pages.
  extern __shared__ __align__(128) std::byte dynamic[];
  auto* results = reinterpret_cast<float*>(dynamic + kStagedBytes<S, W>);

  const int slots_log2 = W::kTiles > 0 ? W::kTiles * S::kTeams / 2 : layout.slots_log2;
  static_assert(W::kTiles <= 2 && S::kTeams <= 2);  // so that half of their product is its logarithm
  const Unit unit(layout);
  const int position = p.rows.positions[unit.row], table_row = p.rows.slots[unit.row];
  const int slots = 1 << slots_log2, team_slots = slots / S::kTeams, blocks = kRanks >> slots_log2;
  const int block = static_cast<int>(blockIdx.x) & (blocks - 1),
            piece = static_cast<int>(blockIdx.x) / blocks;
  const Lane<S> at;
  if constexpr (!W::kLate) release_next_kernel();

  if ((position | table_row) < 0) return;  // one question about both, so that both are asked for at once
  const int first = p.shape.window > 0 ? max(0, position - p.shape.window + 1) : 0;
  const int n_keys = position + 1 - first;
  const Cut cut = W::kShortRuns ? Cut{(n_keys + kPieceKeys - 1) / kPieceKeys, kTileKeys}
                                : cut_keys<kRanks, kMaxPiecesOf<kClusters>>(n_keys);
  if (piece >= cut.pieces) return;
  const int block_begin = first + (piece * kRanks + block * slots) * cut.run_keys;
  const int begin = block_begin + at.team * team_slots * cut.run_keys;
  const size_t head_bytes = size_t{16} * S::kRowBytes;
  const Keys<S> keys = {.begin = begin,
                        .end = W::kPair ? position + 1 : min(begin + team_slots * cut.run_keys, position + 1),
                        .step = W::kPair ? kPieceKeys : kTileKeys,
                        .newest = position,
                        .k_head = p.kv.data + unit.kv_head * head_bytes,
                        .v_offset = p.shape.n_kv_heads * head_bytes,
                        .page_bytes = 2 * p.shape.n_kv_heads * head_bytes};
  const int n_tiles = keys.tiles();

  const int32_t* table = p.kv.page_table + int64_t{table_row} * p.kv.max_pages;
  const int pair = static_cast<int>(threadIdx.x);  // of values that turn together
  const float frequency = !p.prepared && pair < p.rope.n_rotating ? __ldg(p.rope.frequencies + pair) : 0;
  // Whether the block has the newest position, how far from the block's first, and in which piece.
  const bool in_second = W::kPair && position >= block_begin + kPieceKeys;
  const int newest_from_first = position - block_begin - (in_second ? kPieceKeys : 0);
  const bool has_newest = newest_from_first >= 0 && newest_from_first < slots * cut.run_keys;
  const int newest_page = has_newest ? table[position >> 4] : 0;
  TeamShared<S>& mine = shared.teams[at.team];
  std::byte* staged = dynamic + at.team * W::kPlaces * kStagedTileBytes<S, W>;
  auto* pages = reinterpret_cast<int32_t*>(results + slots * unit.heads * S::kOutStride) +
                at.team * team_pages<S>(slots, cut.run_keys);
  const int32_t* pages_there = table + (begin >> 4);
  [[maybe_unused]] RingShared* ring = nullptr;
  if constexpr (W::kRing) ring = ring_shared<S>() + at.team;
  const RingTiles ring_tiles(begin, slots_log2 - (S::kTeams - 1), kPieceKeys, position + 1);
  const RingPages ring_pages = W::kRing ? RingPages(ring_tiles, table, position, at.lane) : RingPages();
  if constexpr (W::kRing) {
    start_ring(*ring, keys, ring_tiles, ring_pages, staged, at);
  } else if constexpr (W::kStaged) {
#pragma unroll
    for (int n = 0; n < W::kMost; ++n) {
      const int from = begin + n * keys.step;
      if (n < n_tiles) {
        stage_tile(staged + n * StagedTile<S>::kBytes, keys, table + (from >> 4), from, at);
      }
      commit_copies();
    }
  } else {
    if (n_tiles > 0) put_rows<W::kMost == 1 ? 1 : 2>(mine, keys, pages_there, 0, at);
    if (W::kMost == 0 && n_tiles > 2) {
      const int n_pages = ((keys.end - 1) >> 4) - (begin >> 4) + 1;
      for (int i = at.team_thread; i < n_pages; i += S::kTeamThreads) pages[i] = pages_there[i];
    }
  }
  if (threadIdx.x < kMaxRanks * kBlockHeads) {
    shared.stats[threadIdx.x / kBlockHeads][threadIdx.x % kBlockHeads] = make_float2(-INFINITY, 0);
  }
  if (!p.prepared && pair < S::kDim / 2) {
    sine_cosine(static_cast<float>(position) * frequency, shared.sines[pair], shared.cosines[pair]);
  }
  if (unit.heads < kBlockHeads) {  // what no head fills is multiplied too
    auto* q = reinterpret_cast<uint4*>(shared.row.q);
    for (int i = threadIdx.x; i < S::kDim; i += kThreads) q[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();

  std::byte* newest_row = has_newest ? keys.row(position, newest_page) : nullptr;
  const auto newest_place = [&](bool is_v, int byte) {
    if constexpr (W::kStaged && !W::kRing) {
      const int tile = newest_from_first / kTileKeys, row = newest_from_first % kTileKeys;
      static_assert(!W::kPair);
      return dynamic + tile * StagedTile<S>::kBytes +
             (is_v ? StagedTile<S>::v_place(row, byte) : StagedTile<S>::k_place(row, byte));
    } else {
      return (is_v ? shared.row.newest_v : shared.row.newest_k) + byte;
    }
  };
  Runs<S> runs;
  if constexpr (!W::kStaged) runs.template start<W>(mine, keys, at);
  const bool makes_newest = newest_row != nullptr && p.owns_kv && !p.prepared;
  const Preparation<S> preparation(p, unit, makes_newest);
  wait_for_last_kernel();
  if (block_begin <= position) {
    prepare_rows(p, layout, shared, unit, preparation, makes_newest, newest_row, keys.v_offset, newest_place);
  }
  if constexpr (W::kStaged && !W::kRing) wait_for_copies<W::kPlaces - 1>();
  __syncthreads();
  if constexpr (W::kLate) release_next_kernel();

  const float to_log2 = p.kv.k_scale * kLog2E / Number<S::kFormat>::kQueryScale;
  const RunResults to = {.stats = &shared.stats[0][0],
                         .sums = results,
                         .heads = unit.heads,
                         .run = at.team * team_slots,
                         .run_step = W::kPair ? slots : 1};
  if constexpr (W::kRing) {
    take_ring(mine, *ring, shared.row, keys, ring_tiles, ring_pages, staged, to_log2, to, slots, at);
  } else if constexpr (W::kStaged) {
    take_staged<W>(mine, shared.row, keys, staged, to_log2, to, at);
  } else {
    runs.template take<W>(mine, shared.row, keys, pages, cut.run_keys / kTileKeys, to_log2, to, at);
  }

  if (kClusters && blocks > 1) {
    cluster_arrive_shared();
    cluster_wait();
  } else {
    __syncthreads();
  }
  merge<S, kClusters, W>(p, shared, results, workspace, unit, slots_log2, block, piece, cut.pieces);
  if (kClusters && blocks > 1) {
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
  return {.counters = (heads * kMaxRanks * sizeof(unsigned) + 255) / 256 * 256,
          .sums = pieces * static_cast<size_t>(shape.head_dim) * sizeof(float),
          .stats = pieces * kMaxRanks * sizeof(float2)};
}

// Whether a block has room for two tiles of each team.
template <class S>
constexpr bool kTwoTilesFit = S::kTeams * 2 * StagedTile<S>::kBytes <= 128 * 1024;

// How many of a piece's runs a block takes of both pieces, where blocks take two; else 0. By what was fastest
// on an H200 in the decode chain: a run a team at 5 to 8 rows (even at 4, slower at 1 and 16); four, in a
// ring, where such blocks fill the multiprocessors once or twice (24, 32 and 64 rows of E4B; even at 16,
// slower at 48).
template <class S>
int pair_slots(const DecodeAttention& p, int pieces, int units) {
  constexpr int kRingSlots = 4;
  if (pieces != 2 || p.max_context > 1024 || p.rows.n <= 4) return 0;
  if (p.rows.n <= 8) return S::kTeams;
  const int sms = product_device().sms, blocks = units * kMaxRanks / kRingSlots;
  const bool fill = (blocks > sms / 2 && blocks <= sms) || (blocks > sms * 15 / 8 && blocks <= 2 * sms);
  return kTwoTilesFit<S> && p.shape.window == 0 && fill ? kRingSlots : 0;
}

// log2 of the runs a block takes, by what was fastest on an H200 in the decode chain: at 512 keys E4B's
// layers want 2 (a run a team) up to batch 24, 4 up to 64, 8 above. Layers that see everything may have seven
// more pieces to fill the card with.
template <class S>
int slots_log2_for(const DecodeAttention& p, bool clusters, int units) {
  constexpr int kLeast = S::kTeams == 2 ? 1 : 0;
  if (!clusters) return kLeast;
  int most = 3, wanted = 0;
  if (p.runs_a_block > 0) {
    while (2 << wanted <= p.runs_a_block) ++wanted;
  } else {
    if (p.shape.window == 0 && p.max_context > 1024) units += units / 2, most = 2;
    // A second piece doubles the blocks, and up to 1,024 keys most of its blocks have none.
    const bool two_pieces = p.shape.window == 0 && p.max_context > 512 && p.max_context <= 1024;
    if (two_pieces && units >= 16 && units <= 48) units *= 2;
    wanted = units <= 16 ? 0 : units <= 48 ? 1 : units <= 130 ? 2 : 3;
  }
  return std::max(kLeast, std::min(wanted, most));
}

using AttentionKernel = void (*)(DecodeAttention, Workspace, Layout);
struct KernelChoice {
  AttentionKernel kernel;
  size_t staged_bytes;  // of a block's tiles
};
template <class S, bool kClusters, class W>
KernelChoice kernel_of() {
  return {decode_attention_kernel<S, kClusters, W>, kStagedBytes<S, W>};
}

// Which kernel, by what was fastest on an H200 in the decode chain: staged tiles were slower at four rows,
// two a team at 48. tiles: of a team of each piece; 0 where runs are longer than a tile.
template <class S>
KernelChoice kernel_for(int rows, int tiles, int pieces, bool pair) {
  if constexpr (kTwoTilesFit<S>) {
    if (pair && tiles > 1) return kernel_of<S, true, Work<kSeveral, 2, true, true>>();
  }
  if (pair) return kernel_of<S, true, Work<1, 2>>();
  // o_proj's weights would stand in the way of what attention reads. With fewer rows or more pieces there is
  // time for both, and with more rows o_proj has to start at once.
  const bool late = rows >= 8 && rows <= 32;
  if (pieces == 1) {
    if (late && tiles == 1) return kernel_of<S, true, Work<1, 1, true, true>>();
    if constexpr (kTwoTilesFit<S>) {
      if (late && tiles == 2) return kernel_of<S, true, Work<2, 1, true, true>>();
    }
    if (late) return kernel_of<S, true, Work<kSeveral, 1, false, true>>();
    if (rows == 1 && tiles == 1) return kernel_of<S, true, Work<1, 1, true>>();
    return tiles == 1 ? kernel_of<S, true, Work<1, 1>>() : kernel_of<S, true, Work<kSeveral, 1>>();
  }
  return tiles == 1  ? kernel_of<S, true, Work<1, kAny>>()
         : tiles > 0 ? kernel_of<S, true, Work<kSeveral, kAny>>()
                     : kernel_of<S, true, Work<kAny, kAny>>();
}

template <class S, bool kClusters>
cudaError_t launch(const DecodeAttention& p, cudaStream_t stream) {
  constexpr int kRanks = kRanksOf<S, kClusters>, kMaxPieces = kMaxPiecesOf<kClusters>;
  const int keys = p.shape.window > 0 ? std::min(p.shape.window, p.max_context) : p.max_context;
  const WorkspaceBytes sizes = workspace_bytes<kClusters>(p.shape, p.workspace_rows);
  auto* bytes = static_cast<std::byte*>(p.workspace);
  const Workspace workspace = {.counters = reinterpret_cast<unsigned*>(bytes),
                               .sums = reinterpret_cast<float*>(bytes + sizes.counters),
                               .stats = reinterpret_cast<float2*>(bytes + sizes.counters + sizes.sums)};
  const int pieces = most_pieces<kRanks, kMaxPieces>(keys);
  const int group = p.shape.n_heads / p.shape.n_kv_heads, parts = query_parts(group);
  const int units = p.rows.n * p.shape.n_kv_heads * parts;
  const int of_both = kClusters && p.runs_a_block == 0 ? pair_slots<S>(p, pieces, units) : 0;
  const bool pair = of_both > 0;
  const int slots_log2 =
      pair ? std::bit_width(static_cast<unsigned>(of_both)) - 1 : slots_log2_for<S>(p, kClusters, units);
  const int slots = 1 << slots_log2, blocks = kRanks >> slots_log2;
  const int run_keys = cut_keys<kRanks, kMaxPieces>(keys).run_keys;
  const int page_entries = S::kTeams * team_pages<S>(slots, run_keys);
  KernelChoice choice{};
  if constexpr (kClusters) {
    const int tiles = run_keys == kTileKeys ? slots / S::kTeams : 0;
    choice = kernel_for<S>(p.rows.n, tiles, pieces, pair);
  } else {
    choice = kernel_of<S, false, Work<kAny, kAny>>();
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((pair ? 1 : pieces) * blocks),
                        static_cast<unsigned>(p.shape.n_kv_heads * parts), static_cast<unsigned>(p.rows.n));
  config.blockDim = dim3(kThreads);
  const int held = pair ? 2 * slots : slots;  // runs whose results a block has
  config.dynamicSmemBytes = static_cast<size_t>(held * (group / parts) * S::kOutStride) * sizeof(float) +
                            static_cast<size_t>(page_entries) * sizeof(int32_t) + choice.staged_bytes;
  config.stream = stream;
  // With no more blocks than multiprocessors, each on its own. (Clusters of more than two blocks find no such
  // places, but for those of one row.)
  const bool finds_places = blocks <= 2 || (p.rows.n == 1 && p.shape.window > 0);
  if (kClusters && product_device().wgmma && finds_places &&
      config.gridDim.x * config.gridDim.y * config.gridDim.z <= static_cast<unsigned>(product_device().sms)) {
    config.dynamicSmemBytes = std::max(config.dynamicSmemBytes, kAttentionShared - sizeof(Shared<S>));
  }
  const cudaError_t error = cudaFuncSetAttribute(choice.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
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
  const Layout layout = {.slots_log2 = slots_log2,
                         .parts_log2 = parts / 2,
                         .heads = group / parts,
                         .inverse_k_scale = 1 / p.kv.k_scale,
                         .inverse_v_scale = 1 / p.kv.v_scale};
  return cudaLaunchKernelEx(&config, choice.kernel, p, workspace, layout);
}

template <bool kClusters>
cudaError_t launch(const DecodeAttention& p, cudaStream_t stream) {
  const bool f8 = p.kv.format == KvFormat::kF8E4M3;
  if (p.shape.head_dim == 256) {
    return f8 ? launch<RunShape<256, KvFormat::kF8E4M3>, kClusters>(p, stream)
              : launch<RunShape<256, KvFormat::kBF16>, kClusters>(p, stream);
  }
  return f8 ? launch<RunShape<512, KvFormat::kF8E4M3>, kClusters>(p, stream)
            : launch<RunShape<512, KvFormat::kBF16>, kClusters>(p, stream);
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
  const bool known = (shape.head_dim == 256 || shape.head_dim == 512) && group >= 1 && group <= 8 &&
                     (group & (group - 1)) == 0 && group * shape.n_kv_heads == shape.n_heads &&
                     attention.max_context > 0 && attention.rows.n <= attention.workspace_rows;
  if (!known) return cudaErrorInvalidValue;
  if (attention.rows.n == 0) return cudaSuccess;
  return design == AttentionDesign::kSm90 ? launch<true>(attention, stream)
                                          : launch<false>(attention, stream);
}

}  // namespace jewel::cuda

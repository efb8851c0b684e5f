// Device code of attention_decode.cu: the keys of a run times a row's queries, and the values weighed by the
// scores. Include from .cu files only.
//
// A run is worked on by a team of head_dim / 64 warps, tiles of 64 keys. K and V come straight from memory to
// registers, the next tile's as soon as a tile's registers are free (Runs), or by way of shared memory: all
// of them at once where a team has one or two tiles (take_staged), else in turn (take_ring). A team meets
// once a tile, at its own barrier. Keys and columns of V are the 16 rows of m16n8k16, the queries its 8
// columns: head h's upper part is column 2 h, its lower part 2 h + 1, and the two sums are added afterwards.
//   scores   a warp takes 16 keys and 256 values of the head; through shared memory to the whole team
//   values   a warp takes 64 columns and all 64 keys: lane (g, t) holds columns 8 g .. 8 g + 7 of keys 4 t ..
//            4 t + 3 of each 16, and the order of keys and columns inside the product is permuted to fit
#pragma once

#include <type_traits>

#include "backend/cuda/attention_device.h"
#include "backend/cuda/attention_types.h"
#include "backend/cuda/copy_async.h"
#include "backend/cuda/decode_tiles.h"
#include "backend/cuda/device_values.h"

namespace jewel::cuda::device {

constexpr int kTileKeys = 64;
constexpr int kKeySteps = kTileKeys / 16;  // of the product with V
constexpr int kBlockThreads = 256;
constexpr int kBlockHeads = 4;    // queries that a block takes
constexpr int kScoreStride = 72;  // floats; spreads the heads over the banks

template <int kHeadDim, KvFormat kKvFormat>
struct RunShape {
  static constexpr int kDim = kHeadDim;
  static constexpr KvFormat kFormat = kKvFormat;
  static constexpr int kElement = kFormat == KvFormat::kF8E4M3 ? 1 : 2;
  static constexpr int kRowBytes = kDim * kElement;
  static constexpr int kTeamWarps = kDim / 64, kTeamThreads = 32 * kTeamWarps;
  static constexpr int kTeams = kBlockThreads / kTeamThreads;
  static constexpr int kParts = kDim / 256;         // of a head's values, in the scores
  static constexpr int kStepsALoad = 4 / kElement;  // 16-value steps in the 16 bytes that a lane loads of K
  static constexpr int kRowSets = 4;                // tiles whose rows are known
  static constexpr int kOutStride = kDim + 4;
};

// What a team of warps keeps of its tiles.
template <class S>
struct TeamShared {
  alignas(16) float scores[2][S::kParts][kBlockHeads][kScoreStride];
  // Of tile n at n % kRowSets; zeros for keys that are not to be read.
  const std::byte* k_rows[S::kRowSets][kTileKeys];
  alignas(16) const std::byte* v_rows[S::kRowSets][kTileKeys];
};

// What a block's runs have in common.
template <class S>
struct RowShared {
  uint2 q[S::kDim / 32][32][2];  // B fragments by pair of steps, lane, step
  alignas(16) std::byte newest_k[S::kRowBytes];
  alignas(16) std::byte newest_v[S::kRowBytes];
};

// Where a thread stands.
template <class S>
struct Lane {
  int team, team_thread, warp;  // of the team
  int lane, g, t;
  int keys, part;  // the first of 16 keys, and which 256 values, that its warp scores
  __device__ __forceinline__ Lane() {
    const int thread = static_cast<int>(threadIdx.x);
    team = S::kTeams == 1 ? 0 : thread / S::kTeamThreads;
    team_thread = thread % S::kTeamThreads;
    warp = team_thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    keys = warp % kKeySteps * 16, part = warp / kKeySteps;
  }
  // Waits for the team.
  __device__ __forceinline__ void meet() const {
    asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(S::kTeamThreads) : "memory");
  }
};

// A team's keys.
template <class S>
struct Keys {
  int begin, end;     // from `end` on they are not read
  int step;           // from the first key of a tile to that of the next
  int newest;         // not read either: its K and V come from elsewhere
  std::byte* k_head;  // K of the KV head in page 0
  size_t v_offset;    // from K to V of the same position
  size_t page_bytes;

  __device__ __forceinline__ std::byte* row(int key, int page) const {
    return k_head + static_cast<size_t>(page) * page_bytes + static_cast<size_t>(key & 15) * S::kRowBytes;
  }
  __device__ __forceinline__ int tiles() const { return begin < end ? (end - begin + step - 1) / step : 0; }
};

// What keys outside of a block's run are read from: their probability is 0, and 0 times what an unwritten
// place of a page holds need not be 0.
__device__ const uint4 kZeroRow[64] = {};

// Puts down where the rows of kCount tiles from the first on lie, all at once: a loop over tiles would wait
// for memory in each. pages[i] is the page of keys [16 i, 16 i + 16) from begin's page on.
template <int kCount, class S>
__device__ __forceinline__ void put_rows(TeamShared<S>& shared, const Keys<S>& keys, const int32_t* pages,
                                         int first, const Lane<S>& at) {
  const auto* zeros = reinterpret_cast<const std::byte*>(kZeroRow);
#pragma unroll
  for (int from = 0; from < kCount * kTileKeys; from += S::kTeamThreads) {
    const int row = from + at.team_thread, n = first + row / kTileKeys, i = row % kTileKeys;
    if (row >= kCount * kTileKeys) break;
    const int key = keys.begin + n * keys.step + i;
    const bool read = key < keys.end && key != keys.newest;
    const std::byte* k = keys.row(key, read ? pages[(key >> 4) - (keys.begin >> 4)] : 0);
    shared.k_rows[n % S::kRowSets][i] = read ? k : zeros;
    shared.v_rows[n % S::kRowSets][i] = read ? k + keys.v_offset : zeros;
  }
}

// Brings tile n's K and V on their way: into L2, from where they are loaded.
template <class S>
__device__ __forceinline__ void fetch_ahead(const TeamShared<S>& shared, int n, const Lane<S>& at) {
  constexpr int kLines = S::kRowBytes / 128;  // of a row
  static_assert(2 * kLines * kTileKeys % S::kTeamThreads == 0);
#pragma unroll
  for (int i = 0; i < 2 * kLines * kTileKeys / S::kTeamThreads; ++i) {
    const int line = (i * S::kTeamThreads + at.team_thread) % (2 * kLines),
              key = (i * S::kTeamThreads + at.team_thread) / (2 * kLines);
    const std::byte* row =
        line < kLines ? shared.k_rows[n % S::kRowSets][key] : shared.v_rows[n % S::kRowSets][key];
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + 128 * (line % kLines)));
  }
}

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
// From shared memory at each call: what the compiler keeps in registers for the next one is missing
// elsewhere.
__device__ __forceinline__ float4 read_shared4(uint32_t address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address));
  return x;
}

// --- tiles in shared memory ---

// K of 64 keys, then V. The 16-byte chunks of a row stand in an order of their own, so that the lanes of a
// warp find theirs in different banks.
template <class S>
struct StagedTile {
  static constexpr int kKeyBytes = kTileKeys * S::kRowBytes;
  static constexpr int kBytes = 2 * kKeyBytes;
  static constexpr int kChunks = S::kRowBytes / 16;  // of a row

  // Of the byte `byte` of a row.
  __device__ __forceinline__ static int k_place(int row, int byte) {
    return row * S::kRowBytes + ((byte / 16) ^ (row & 1) << 2) * 16 + byte % 16;
  }
  __device__ __forceinline__ static int v_place(int row, int byte) {
    return kKeyBytes + row * S::kRowBytes + ((byte / 16) ^ (row >> 2 & 3) << 1) * 16 + byte % 16;
  }
};

// Brings the tile of the keys from `first` on on its way: the caller commits. Rows from keys.end on are
// zeros, and that of keys.newest is left to whoever has it. pages[i] is the page of keys [16 i, 16 i + 16)
// from first's page on.
template <class S>
__device__ __forceinline__ void stage_tile(std::byte* tile, const Keys<S>& keys, const int32_t* pages,
                                           int first, const Lane<S>& at) {
  constexpr int kRows = S::kTeamThreads / StagedTile<S>::kChunks, kPasses = kTileKeys / kRows;
  const int byte = at.team_thread % StagedTile<S>::kChunks * 16;
  const int first_row = at.team_thread / StagedTile<S>::kChunks;
  const uint32_t to = shared_address(tile);
  int page[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int key = first + i * kRows + first_row;
    page[i] = key < keys.end ? pages[(key >> 4) - (first >> 4)] : 0;
  }
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int row = i * kRows + first_row, key = first + row;
    if (key == keys.newest) continue;
    const std::byte* k = keys.row(key, page[i]) + byte;
    copy_async_16(to + StagedTile<S>::k_place(row, byte), k, key < keys.end);
    copy_async_16(to + StagedTile<S>::v_place(row, byte), k + keys.v_offset, key < keys.end);
  }
}

// --- scores ---

// Four consecutive values of query head `head` to their place among the B fragments. Which values share a
// product's step follows from the bytes a lane loads of K: see KeyTile.
template <class S>
__device__ __forceinline__ void put_query4(RowShared<S>& shared, int head, int index, const float (&x)[4]) {
  using N = Number<S::kFormat>;
  constexpr int kSteps = S::kStepsALoad;
  const int step = index / (16 * kSteps) * kSteps + index / 4 % kSteps, t = index / (4 * kSteps) % 4;
  const Split a = N::split(x[0] * N::kQueryScale, x[1] * N::kQueryScale);
  const Split b = N::split(x[2] * N::kQueryScale, x[3] * N::kQueryScale);
  shared.q[step / 2][8 * head + t][step % 2] = make_uint2(a.hi, b.hi);
  shared.q[step / 2][8 * head + 4 + t][step % 2] = make_uint2(a.lo, b.lo);
}

// K of a tile: the lane's keys, g and g + 8 of the warp's 16, bytes 64 c + 16 t of its part.
template <class S>
struct KeyTile {
  static constexpr int kLoads = 4 * S::kElement;
  uint4 x[2][kLoads];

  __device__ __forceinline__ static int first_byte(const Lane<S>& at) {
    return 256 * S::kElement * at.part + 16 * at.t;
  }
  __device__ __forceinline__ void load(const TeamShared<S>& shared, int n, const Lane<S>& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::byte* from = shared.k_rows[n % S::kRowSets][at.keys + at.g + 8 * r] + first_byte(at);
#pragma unroll
      for (int c = 0; c < kLoads; ++c) x[r][c] = load_streaming(from + 64 * c);
    }
  }
  template <class Tile = StagedTile<S>>
  __device__ __forceinline__ void load(const std::byte* staged, const Lane<S>& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < kLoads; ++c) {
        x[r][c] = *reinterpret_cast<const uint4*>(
            staged + Tile::k_place(at.keys + at.g + 8 * r, first_byte(at) + 64 * c));
      }
    }
  }
  // The newest position's K instead, in the lanes that hold its key, counted from the tile's first.
  __device__ __forceinline__ void take_newest(const RowShared<S>& shared, int newest, const Lane<S>& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (at.keys + at.g + 8 * r != newest) continue;
#pragma unroll
      for (int c = 0; c < kLoads; ++c) {
        x[r][c] = *reinterpret_cast<const uint4*>(shared.newest_k + first_byte(at) + 64 * c);
      }
    }
  }
  // Products of head t with keys g and g + 8, over the warp's 256 values.
  __device__ __forceinline__ float2 scores(const RowShared<S>& shared, const Lane<S>& at) const {
    using N = Number<S::kFormat>;
    float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
    for (int c = 0; c < kLoads; ++c) {
      const uint32_t low[4] = {x[0][c].x, x[0][c].y, x[0][c].z, x[0][c].w};
      const uint32_t high[4] = {x[1][c].x, x[1][c].y, x[1][c].z, x[1][c].w};
#pragma unroll
      for (int s = 0; s < S::kStepsALoad; s += 2) {
        const int pair = 8 * at.part + (c * S::kStepsALoad + s) / 2;
        const uint4 b = *reinterpret_cast<const uint4*>(shared.q[pair][at.lane]);
        if constexpr (S::kFormat == KvFormat::kF8E4M3) {
          const uint4 first = f16_of_f8x8(low[s], high[s]), second = f16_of_f8x8(low[s + 1], high[s + 1]);
          N::mma(even, make_uint4(first.x, first.z, first.y, first.w), b.x, b.y);
          N::mma(odd, make_uint4(second.x, second.z, second.y, second.w), b.z, b.w);
        } else {
          N::mma(even, make_uint4(low[0], high[0], low[1], high[1]), b.x, b.y);
          N::mma(odd, make_uint4(low[2], high[2], low[3], high[3]), b.z, b.w);
        }
      }
    }
    return make_float2((even[0] + odd[0]) + (even[1] + odd[1]), (even[2] + odd[2]) + (even[3] + odd[3]));
  }
};

// The team's scores of head g / 2, read twice since registers are short.
template <class S>
struct Weights {
  uint32_t from;
  int g;
  __device__ __forceinline__ Weights(const float (&scores)[S::kParts][kBlockHeads][kScoreStride],
                                     const Lane<S>& at)
      : from(shared_address(&scores[0][at.g / 2][4 * at.t])), g(at.g) {}

  // With keys 4 t .. 4 t + 3 of a step.
  __device__ __forceinline__ float4 scores(int step) const {
    float4 x = read_shared4(from + 64 * step);
    if constexpr (S::kParts == 2) {
      const float4 y = read_shared4(from + 64 * step + 4 * kBlockHeads * kScoreStride);
      x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
    }
    return x;
  }
  __device__ __forceinline__ float max() const {
    float max = -INFINITY;
#pragma unroll
    for (int s = 0; s < kKeySteps; ++s) {
      const float4 x = scores(s);
      max = fmaxf(fmaxf(fmaxf(max, x.x), fmaxf(x.y, x.z)), x.w);
    }
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, 1));
    return fmaxf(max, __shfl_xor_sync(kAllLanes, max, 2));
  }
  // The B fragment of a step: 2^(score - base), upper parts where g is even, lower ones where it is odd.
  __device__ __forceinline__ uint2 fragment(int step, float base, float& sum) const {
    float4 x = scores(step);
    x.x = exp2_fast(x.x - base), x.y = exp2_fast(x.y - base), x.z = exp2_fast(x.z - base),
    x.w = exp2_fast(x.w - base);
    sum += (x.x + x.y) + (x.z + x.w);
    const Split a = Number<S::kFormat>::split(x.x, x.y), b = Number<S::kFormat>::split(x.z, x.w);
    return g % 2 == 0 ? make_uint2(a.hi, b.hi) : make_uint2(a.lo, b.lo);
  }
};

// --- values ---

// V of a step: columns 8 g .. 8 g + 7 of the warp's 64, keys 4 t + i of the step's 16.
template <class S>
struct ValueStep {
  static constexpr int kWords = 2 * S::kElement;
  uint32_t x[4][kWords];

  __device__ __forceinline__ static int first_column(const Lane<S>& at) { return 64 * at.warp + 8 * at.g; }
  __device__ __forceinline__ void set(int i, uint2 v) { x[i][0] = v.x, x[i][1] = v.y; }
  __device__ __forceinline__ void set(int i, uint4 v) {
    x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
  }
  __device__ __forceinline__ void load(const TeamShared<S>& shared, int n, int step, const Lane<S>& at) {
    const std::byte* const* rows = &shared.v_rows[n % S::kRowSets][16 * step + 4 * at.t];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::byte* from = rows[i] + first_column(at) * S::kElement;
      if constexpr (kWords == 2) {
        set(i, load_streaming8(from));
      } else {
        set(i, load_streaming(from));
      }
    }
  }
  template <class Tile = StagedTile<S>>
  __device__ __forceinline__ void load(const std::byte* staged, int step, const Lane<S>& at) {
    using Words = std::conditional_t<kWords == 2, uint2, uint4>;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      set(i, *reinterpret_cast<const Words*>(
                 staged + Tile::v_place(16 * step + 4 * at.t + i, first_column(at) * S::kElement)));
    }
  }
  // Zeros for keys of the tile from `end` on.
  __device__ __forceinline__ void clear_from(int end, int step, const Lane<S>& at) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (16 * step + 4 * at.t + i < end) continue;
#pragma unroll
      for (int w = 0; w < kWords; ++w) x[i][w] = 0;
    }
  }
  __device__ __forceinline__ void take_newest(const RowShared<S>& shared, int newest, int step,
                                              const Lane<S>& at) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (16 * step + 4 * at.t + i != newest) continue;
      const auto* from = reinterpret_cast<const uint32_t*>(shared.newest_v + first_column(at) * S::kElement);
#pragma unroll
      for (int w = 0; w < kWords; ++w) x[i][w] = from[w];
    }
  }
  // The A fragment whose rows g and g + 8 are columns j and j + 1; j is even.
  __device__ __forceinline__ uint4 fragment(int j) const {
    if constexpr (S::kFormat == KvFormat::kF8E4M3) {
      const uint32_t pick = j % 4 == 0 ? 0x5140u : 0x7362u;
      const uint32_t low = __byte_perm(x[0][j / 4], x[1][j / 4], pick);
      const uint32_t high = __byte_perm(x[2][j / 4], x[3][j / 4], pick);
      return make_uint4(f16_of_f8x2(low), f16_of_f8x2(low >> 16), f16_of_f8x2(high), f16_of_f8x2(high >> 16));
    } else {
      return make_uint4(
          __byte_perm(x[0][j / 2], x[1][j / 2], 0x5410), __byte_perm(x[0][j / 2], x[1][j / 2], 0x7632),
          __byte_perm(x[2][j / 2], x[3][j / 2], 0x5410), __byte_perm(x[2][j / 2], x[3][j / 2], 0x7632));
    }
  }
};

// Sums of columns 8 g + 2 j and 8 g + 2 j + 1 of the warp's 64, head t, two parts of each.
template <class S>
struct Sums {
  float x[4][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j][0] = x[j][1] = x[j][2] = x[j][3] = 0;
  }
  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j][0] *= by, x[j][1] *= by, x[j][2] *= by, x[j][3] *= by;
  }
  __device__ __forceinline__ void add(const ValueStep<S>& v, uint2 weights) {
#pragma unroll
    for (int j = 0; j < 4; ++j) Number<S::kFormat>::mma(x[j], v.fragment(2 * j), weights.x, weights.y);
  }
  // Both parts together, to a run's results [heads, kOutStride].
  __device__ __forceinline__ void put(float* results, int heads, const Lane<S>& at) const {
    if (at.t >= heads) return;
    float* to = results + at.t * S::kOutStride + ValueStep<S>::first_column(at);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      *reinterpret_cast<float4*>(to + 2 * j) = make_float4(
          x[j][0] + x[j][1], x[j][2] + x[j][3], x[j + 1][0] + x[j + 1][1], x[j + 1][2] + x[j + 1][3]);
    }
  }
};

// --- runs ---

// How much of a row's keys a block may have, which a kernel is made for: most of its instructions run once,
// so that those it does not need cost time (docs/cuda-decode.md, 30).
//   tiles    that a team has of a piece, a run each: 1, 2 or kSeveral; kAny: runs of any length
//   pieces   1: the keys are one piece. 2: they are one or two, and a block takes its runs of both. kAny: a
//            block takes those of one piece, and the workspace has what the pieces found
//   staged   tiles come by way of shared memory: of kSeveral in a ring of two places
//   late     the next kernel may start only when the queries are prepared
constexpr int kAny = 0, kSeveral = -1;
template <int tiles, int pieces, bool staged = false, bool late = false>
struct Work {
  static constexpr int kTiles = tiles, kPieces = pieces;
  static constexpr bool kStaged = staged, kLate = late;
  static constexpr bool kShortRuns = tiles != kAny;
  static constexpr bool kPair = pieces == 2;
  static constexpr int kMost = tiles > 0 ? tiles*(kPair ? 2 : 1) : 0;  // tiles of a team; 0: not known
  static constexpr bool kRing = staged && tiles == kSeveral;
  static constexpr int kPlaces = kRing ? 2 : kMost;  // for the staged tiles of a team
};

// Where runs' results go.
struct RunResults {
  float2* stats;  // [runs, kBlockHeads]: maximum, sum
  float* sums;    // [runs, heads, kOutStride]
  int heads;
  int run, run_step;  // of the team's first run, and from one to the next

  // Of head g / 2; `sum` over the lane's share of the keys.
  template <class S>
  __device__ __forceinline__ void put(float max, float sum, const Sums<S>& values, const Lane<S>& at) {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    if (at.warp == 0 && at.t == 0 && at.g % 2 == 0) {
      stats[run * kBlockHeads + at.g / 2] = make_float2(max, sum);
    }
    values.put(sums + run * heads * S::kOutStride, heads, at);
    run += run_step;
  }
};

// A tile's scores of the lane's keys, to the whole team.
template <class S>
__device__ __forceinline__ void put_scores(float (&exchange)[S::kParts][kBlockHeads][kScoreStride],
                                           float2 score, float to_log2, int keys_left, const Lane<S>& at) {
  const int key = at.keys + at.g;
  exchange[at.part][at.t][key] = key < keys_left ? score.x * to_log2 : -INFINITY;
  exchange[at.part][at.t][key + 8] = key + 8 < keys_left ? score.y * to_log2 : -INFINITY;
}

// A team's runs, one after another: start() before the queries are there, take() after.
template <class S>
struct Runs {
  KeyTile<S> k;
  ValueStep<S> v[kKeySteps];

  __device__ __forceinline__ void load_v(const TeamShared<S>& shared, int n, const Lane<S>& at) {
#pragma unroll
    for (int s = 0; s < kKeySteps; ++s) v[s].load(shared, n, s, at);
  }
  template <class W>
  __device__ __forceinline__ void start(const TeamShared<S>& shared, const Keys<S>& keys, const Lane<S>& at) {
    if (keys.tiles() == 0) return;
    k.load(shared, 0, at);
    load_v(shared, 0, at);
    if (W::kMost != 1 && keys.tiles() > 1) fetch_ahead(shared, 1, at);
  }
  // pages: as for put_rows(); there if the team has more than two tiles.
  template <class W>
  __device__ __forceinline__ void take(TeamShared<S>& shared, const RowShared<S>& row, const Keys<S>& keys,
                                       const int32_t* pages, int run_tiles, float to_log2, RunResults results,
                                       const Lane<S>& at) {
    const int n_tiles = keys.tiles();
    // Whether tile n, further on, exists.
    const auto follows = [&](int n) { return W::kMost != 1 && n < n_tiles; };
    const auto follows_next = [&](int n) { return W::kMost != 2 && follows(n); };
    float max = -INFINITY, sum = 0;
    Sums<S> sums;
    sums.clear();
    int left_of_run = run_tiles;
    for (int n = 0; n < n_tiles; ++n) {
      const int first = keys.begin + n * keys.step;
      const bool more = follows(n + 1), has_newest = !more && keys.end == keys.newest + 1;
      float(&exchange)[S::kParts][kBlockHeads][kScoreStride] = shared.scores[n % 2];
      if (has_newest) k.take_newest(row, keys.newest - first, at);
      const float2 score = k.scores(row, at);
      if (more) k.load(shared, n + 1, at);
      put_scores<S>(exchange, score, to_log2, keys.end - first, at);
      if (follows_next(n + 2)) put_rows<1>(shared, keys, pages, n + 2, at);
      at.meet();

      if (follows_next(n + 2)) fetch_ahead(shared, n + 2, at);
      const Weights<S> weights(exchange, at);
      const float new_max = fmaxf(max, weights.max());  // a tile has a key, so it is a number
      if (!W::kShortRuns && left_of_run < run_tiles) {
        const float shrink = exp2_fast(max - new_max);
        sum *= shrink;
        sums.scale(__shfl_sync(kAllLanes, shrink, 8 * at.t));
      }
      max = new_max;
#pragma unroll
      for (int s = 0; s < kKeySteps; ++s) {
        // A second piece's last tile has few keys as often as many.
        if (W::kPair && s == kKeySteps / 2 && first + kTileKeys / 2 >= keys.end) break;
        if (has_newest) v[s].take_newest(row, keys.newest - first, s, at);
        sums.add(v[s], weights.fragment(s, max - Number<S::kFormat>::kHeadroom, sum));
      }
      if (more) load_v(shared, n + 1, at);

      if (!W::kShortRuns && --left_of_run > 0 && more) continue;
      results.put(max, sum, sums, at);
      if constexpr (W::kMost == 1) break;
      left_of_run = run_tiles, max = -INFINITY, sum = 0;
      sums.clear();
    }
  }
};

// The same for one or two tiles, a run each, that stand in shared memory one behind the other: the first is
// there, the second may be on its way.
template <class W, class S>
__device__ __forceinline__ void take_staged(TeamShared<S>& shared, const RowShared<S>& row,
                                            const Keys<S>& keys, const std::byte* staged, float to_log2,
                                            RunResults results, const Lane<S>& at) {
  const int n_tiles = keys.tiles();
#pragma unroll 1
  for (int n = 0; n < n_tiles; ++n) {
    const std::byte* tile = staged + n * StagedTile<S>::kBytes;
    float(&exchange)[S::kParts][kBlockHeads][kScoreStride] = shared.scores[n % 2];
    KeyTile<S> k;
    k.load(tile, at);
    put_scores<S>(exchange, k.scores(row, at), to_log2, keys.end - (keys.begin + n * keys.step), at);
    if (W::kMost > 1 && n == 0) wait_for_copies<0>();  // all of the team know when they meet
    at.meet();
    const Weights<S> weights(exchange, at);
    const float max = weights.max();  // a tile has a key, so it is a number
    float sum = 0;
    Sums<S> sums;
    sums.clear();
#pragma unroll
    for (int s = 0; s < kKeySteps; ++s) {
      ValueStep<S> v;
      v.load(tile, s, at);
      sums.add(v, weights.fragment(s, max - Number<S::kFormat>::kHeadroom, sum));
    }
    results.put(max, sum, sums, at);
    if constexpr (W::kMost == 1) break;
  }
}

// --- a ring of tiles ---

// mbarriers that count what bulk copies have brought to a team's two places.
struct RingShared {
  alignas(8) uint64_t keys_there[2], values_there[2];
};
// Of a block's teams.
template <class S>
__device__ __forceinline__ RingShared* ring_shared() {
  __shared__ RingShared rings[S::kTeams];
  return rings;
}

// K of 64 keys, then V, as bulk copies bring them: K by rows, V by four rows, so placed that what a warp
// reads at once lies in different banks.
template <class S>
struct RingTile {
  static constexpr int kKeyBytes = kTileKeys * (S::kRowBytes + 64);
  static constexpr int kBytes = kKeyBytes + kTileKeys * S::kRowBytes + kTileKeys / 4 * 32;
  __device__ __forceinline__ static int k_place(int row, int byte) {
    return row * (S::kRowBytes + 64) + byte;
  }
  __device__ __forceinline__ static int v_place(int row, int byte) {
    return kKeyBytes + row * S::kRowBytes + (row >> 2) * 32 + byte;
  }
};

// Which tiles a team has of a pair of pieces: its runs of the first, then the same runs of the second.
struct RingTiles {
  int begin;      // its first key
  int runs_log2;  // of a piece
  int piece_keys;
  int n;

  // end: from this key on there are none.
  __device__ __forceinline__ RingTiles(int begin, int runs_log2, int piece_keys, int end)
      : begin(begin), runs_log2(runs_log2), piece_keys(piece_keys), n(runs(end)) {
    if (n == 1 << runs_log2) n += runs(end - piece_keys);
  }
  __device__ __forceinline__ int first_key(int tile) const {
    return begin + piece(tile) * piece_keys + in_piece(tile) * kTileKeys;
  }
  __device__ __forceinline__ int piece(int tile) const { return tile >> runs_log2; }
  __device__ __forceinline__ int in_piece(int tile) const { return tile & ((1 << runs_log2) - 1); }

 private:
  __device__ __forceinline__ int runs(int end) const {
    return min(max(end - begin + kTileKeys - 1, 0) / kTileKeys, 1 << runs_log2);
  }
};

// The lane's of the 32 pages of a ring's eight tiles.
struct RingPages {
  int32_t page = 0;
  RingPages() = default;
  __device__ __forceinline__ RingPages(const RingTiles& tiles, const int32_t* table, int position, int lane) {
    const int tile = lane / 4;
    if (tile >= tiles.n) return;
    const int i = tiles.first_key(tile) / 16 + lane % 4;
    if (i <= position / 16) page = table[i];
  }
  __device__ __forceinline__ int32_t of(int tile, int entry) const {
    return __shfl_sync(kAllLanes, page, 4 * tile + entry);
  }
};

// By all of a team: brings what a tile has of keys or values, kRows rows a copy, from the rows' places in
// memory plus `offset` to `to` plus place(row). The newest position's is not wanted.
template <int kRows, class S, class Place>
__device__ __forceinline__ void bring_rows(uint32_t to, const Place& place, uint64_t* there,
                                           const Keys<S>& keys, size_t offset, const RingPages& pages, int n,
                                           int first, const Lane<S>& at) {
  constexpr int kParts = kTileKeys / kRows / S::kTeamWarps, kBytes = kRows * S::kRowBytes;
  const int parts = (min(keys.newest - first, kTileKeys) + kRows - 1) / kRows;
  const int part = at.warp * kParts + at.lane % kParts;
  const uint32_t barrier = shared_address(there);
  if (at.team_thread == 0) expect_bulk(static_cast<uint32_t>(parts * kBytes), barrier);
  const int32_t page = pages.of(n, part / (16 / kRows));
  if (at.lane < kParts && part < parts) {
    fetch_bulk(to + place(kRows * part), keys.row(first + kRows * part, page) + offset, kBytes, barrier);
  }
}
template <class S>
__device__ __forceinline__ void bring_keys(std::byte* place, uint64_t* there, const Keys<S>& keys,
                                           const RingPages& pages, int n, int first, const Lane<S>& at) {
  const auto place_of = [](int row) { return RingTile<S>::k_place(row, 0); };
  bring_rows<1>(shared_address(place), place_of, there, keys, 0, pages, n, first, at);
}
template <class S>
__device__ __forceinline__ void bring_values(std::byte* place, uint64_t* there, const Keys<S>& keys,
                                             const RingPages& pages, int n, int first, const Lane<S>& at) {
  const auto place_of = [](int row) { return RingTile<S>::v_place(row, 0); };
  bring_rows<4>(shared_address(place), place_of, there, keys, keys.v_offset, pages, n, first, at);
}

// Before the queries are there: the first two tiles are on their way.
template <class S>
__device__ __forceinline__ void start_ring(RingShared& ring, const Keys<S>& keys, const RingTiles& tiles,
                                           const RingPages& pages, std::byte* staged, const Lane<S>& at) {
  if (at.team_thread == 0) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      start_barrier(shared_address(&ring.keys_there[i]));
      start_barrier(shared_address(&ring.values_there[i]));
    }
  }
  at.meet();
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (n >= tiles.n) break;
    const int first = tiles.first_key(n);
    bring_keys(staged + n * RingTile<S>::kBytes, &ring.keys_there[n], keys, pages, n, first, at);
    bring_values(staged + n * RingTile<S>::kBytes, &ring.values_there[n], keys, pages, n, first, at);
  }
}

// When a team meets, all have read a tile's keys, and when it meets once more, its values: those of the tile
// after the next take their places.
template <class S>
__device__ __forceinline__ void take_ring(TeamShared<S>& shared, RingShared& ring, const RowShared<S>& row,
                                          const Keys<S>& keys, const RingTiles& tiles, const RingPages& pages,
                                          std::byte* staged, float to_log2, RunResults results,
                                          int second_piece, const Lane<S>& at) {
  const int first_run = results.run;
#pragma unroll 1
  for (int n = 0; n < tiles.n; ++n) {
    const int first = tiles.first_key(n), phase = (n >> 1) & 1, newest = keys.newest - first;
    const bool has_newest = newest < kTileKeys;  // it is the last key of all
    std::byte* tile = staged + (n & 1) * RingTile<S>::kBytes;
    float(&exchange)[S::kParts][kBlockHeads][kScoreStride] = shared.scores[n % 2];
    wait_for_bulk(shared_address(&ring.keys_there[n & 1]), phase);
    KeyTile<S> k;
    k.template load<RingTile<S>>(tile, at);
    if (has_newest) k.take_newest(row, newest, at);
    put_scores<S>(exchange, k.scores(row, at), to_log2, keys.end - first, at);
    at.meet();
    const bool more = n + 2 < tiles.n;
    if (more) bring_keys(tile, &ring.keys_there[n & 1], keys, pages, n + 2, tiles.first_key(n + 2), at);
    const Weights<S> weights(exchange, at);
    const float max = weights.max();  // a tile has a key, so it is a number
    float sum = 0;
    Sums<S> sums;
    sums.clear();
    wait_for_bulk(shared_address(&ring.values_there[n & 1]), phase);
#pragma unroll
    for (int s = 0; s < kKeySteps; ++s) {
      // A second piece's last tile has few keys as often as many.
      if (s == kKeySteps / 2 && first + kTileKeys / 2 >= keys.end) break;
      ValueStep<S> v;
      v.template load<RingTile<S>>(tile, s, at);
      if (has_newest) v.clear_from(newest, s, at), v.take_newest(row, newest, s, at);
      sums.add(v, weights.fragment(s, max - Number<S::kFormat>::kHeadroom, sum));
    }
    if (more) {
      at.meet();
      bring_values(tile, &ring.values_there[n & 1], keys, pages, n + 2, tiles.first_key(n + 2), at);
    }
    results.run = first_run + tiles.in_piece(n) + tiles.piece(n) * second_piece;
    results.put(max, sum, sums, at);
  }
}

}  // namespace jewel::cuda::device

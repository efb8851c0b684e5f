#include "backend/cuda/persistent_step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "backend/cuda/persistent_ptx.h"

namespace jewel::cuda {
namespace {

using namespace persistent;

constexpr int kHidden = 2560, kInner = 10240, kPle = 256, kHeads = 8, kKvHeads = 2, kMaxDim = 512;
constexpr int kChunk = 10240, kSlots = 16, kWarps = 16, kThreads = 32 * kWarps;
constexpr int kTileSlots = 8;  // row tiles whose sums are under way; the ring lets warps be 5 apart
// The producer is at most kSlots chunks ahead of a row tile's sum; a tile has four chunks or more, but for
// three tiles a layer. With eight slots a late sum was seen to meet the scales of a later tile.
constexpr int kScaleSlots = 16;
constexpr int kSplits = 4;  // of a head's keys
constexpr int kAttentionCopies = 8;
constexpr int kCopies = 4;  // of what all blocks poll: one copy alone is a hot spot of L2
constexpr int kDownHalf = kInner / 2;

// E4M3 weights become F16 by one instruction a pair, exactly; BF16 inputs become F16 exactly by range, in two
// columns of the product: those of at least 2^-4 in column 0, times 2^-11, the others in column 1, times 2^13
// (exact down to 2^-30).
constexpr float kLargeFrom = 0.0625f, kLargeScale = 0x1p-11f, kSmallScale = 0x1p13f;

// What stages hand over. Words of 16 bytes end in the tag of the layer and step that wrote them.
struct State {
  uint32_t epoch[32];
  uint32_t counters[64][32];            // of attention, by layer
  uint4 qkv[2 * kHeads * kMaxDim / 2];  // two values and the tag, twice
  float attention[kAttentionCopies][kHeads][kSplits][kMaxDim];
  float2 softmax[kAttentionCopies][kHeads][kSplits];  // maximum, sum
  uint4 y_o[kCopies][kHidden / 16][6];                // three values a word, 16 rows in six
  uint4 y_down[kCopies][2][kHidden / 16][6];
  uint4 y_up[kCopies][kHidden / 16][6];
  uint4 ple_gate[kCopies][8][kPle / 16][6];
  uint4 m[kCopies][kInner / 4];  // four BF16
};

struct Shared {
  alignas(1024) uint8_t ring[kSlots][kChunk];
  float attention[kWarps][kMaxDim];
  float rotation[2][kMaxDim];  // norm weights of q; cosines and sines
  float sums[kTileSlots][kWarps][16];
  __half x[2][kWarps][320];  // inputs by range; BF16 in x[0] for BF16 weights
  float reduce[4][kWarps];
  float2 softmax[kWarps];
  alignas(16) float scales[kScaleSlots][16];  // of the row tiles on their way
  uint64_t full[kSlots];
  uint64_t empty[kSlots];
  uint32_t tile_count[kTileSlots];
  uint32_t done;
};

// Loads that stay where they are written: the compiler would move plain ones behind the waits that they are
// meant to overlap.
__device__ __forceinline__ float load_early(const float* p) {
  float v;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}
__device__ __forceinline__ uint2 load_early8(const void* p) {
  uint2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
__device__ __forceinline__ float load_strong(const float* p) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ float4 load_strong4(const float* p) {
  const uint4 v = load_word(p);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float gelu(float x) {
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + __expf(-2.0f * u));  // 0.5 x (1 + tanh u)
}
__device__ __forceinline__ uint4 load_shared(uint32_t a) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(a));
  return v;
}
__device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                    uint2 b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, "
      "%1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}
__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                        uint2 b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
      "%1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}
// Four E4M3 values to F16 pairs (k0, k1) and (k2, k3).
__device__ __forceinline__ uint2 widen_pairs(uint32_t bytes) {
  uint2 out;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 "
      "%1, high;\n}"
      : "=r"(out.x), "=r"(out.y)
      : "r"(bytes));
  return out;
}

// One block's share of a stage: units of one row tile (or a part of its K) each, from `first`.
struct Share {
  int first, n;
};
__device__ __forceinline__ Share share_of(int units, int block, int blocks) {
  const int first = static_cast<int>(static_cast<int64_t>(units) * block / blocks);
  return {first, static_cast<int>(static_cast<int64_t>(units) * (block + 1) / blocks) - first};
}
// The same, with the blocks in the opposite order, so that those with more of one stage have less of another.
__device__ __forceinline__ Share mirrored_share(int units, int block, int blocks) {
  return share_of(units, blocks - 1 - block, blocks);
}

// ---- producer -------------------------------------------------------------------------------------------

struct Producer {
  Shared& s;
  uint64_t policy;
  int in_flight;
  int slot = 0, phase = 0;           // of the next chunk
  int behind = 0, behind_phase = 0;  // the chunk that must have landed
  int issued = 0;

  int tile = 0;  // row tiles so far, modulo kScaleSlots

  // `scale`: of the row tile that this chunk begins; null for the others.
  __device__ void issue(const uint8_t* from, int bytes, const float* scale) {
    if (issued >= in_flight) {
      barrier_wait(shared_address(&s.full[behind]), static_cast<uint32_t>(behind_phase));
      if (++behind == kSlots) behind = 0, behind_phase ^= 1;
    } else {
      ++issued;
    }
    barrier_wait(shared_address(&s.empty[slot]), static_cast<uint32_t>(phase ^ 1));
    const uint32_t bar = shared_address(&s.full[slot]);
    barrier_expect(bar, static_cast<uint32_t>(bytes) + (scale ? 64 : 0));
    bulk_load(shared_address(s.ring[slot]), from, static_cast<uint32_t>(bytes), bar, policy);
    if (scale) bulk_load(shared_address(s.scales[tile]), scale, 64, bar, policy);
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
  __device__ void next_tile() {
    if (++tile == kScaleSlots) tile = 0;
  }
  // Units of one row tile each, one behind the other.
  __device__ void stream(const uint8_t* tiles, const float* scale, Share share, int chunks, int chunk_bytes) {
    const uint8_t* from = tiles + static_cast<int64_t>(share.first) * chunks * chunk_bytes;
    for (int u = share.first; u < share.first + share.n; ++u) {
      for (int c = 0; c < chunks; ++c, from += chunk_bytes)
        issue(from, chunk_bytes, c == 0 && scale ? scale + 16 * u : nullptr);
      next_tile();
    }
  }
};

__device__ void produce(const PersistentStep& step, Shared& s, int block, int blocks) {
  Producer p{s, evict_first_policy(), step.in_flight};
  for (int l = 0; l < step.n_layers; ++l) {
    const PersistentLayer& w = step.layers[l];
    p.stream(w.qkv, w.qkv_scale, share_of(w.qkv_tiles, block, blocks), 4, kChunk);
    p.stream(w.o, w.o_scale, mirrored_share(kHidden / 16, block, blocks), w.head_dim / 64, 8192);
    p.stream(w.gate_up, w.gate_up_scale, share_of(kInner / 8, block, blocks), 4, kChunk);
    // Units of down: half of K, then row tile.
    const Share down = mirrored_share(2 * kHidden / 16, block, blocks);
    for (int u = down.first; u < down.first + down.n; ++u) {
      const int row_tile = u % (kHidden / 16);
      const uint8_t* from =
          w.down + static_cast<int64_t>(row_tile) * 16 * kInner + u / (kHidden / 16) * 16 * kDownHalf;
      for (int c = 0; c < 8; ++c)
        p.issue(from + c * kChunk, kChunk, c == 0 ? w.down_scale + 16 * row_tile : nullptr);
      p.next_tile();
    }
    p.stream(w.ple_gate, nullptr, share_of(kPle / 16 * 8, block, blocks), 1, kChunk);
    p.stream(w.ple_up, nullptr, share_of(kHidden / 16, block, blocks), 1, 16 * kPle * 2);
  }
  p.stream(step.head, step.head_scale, share_of(step.head_tiles, block, blocks), 4, kChunk);
}

// ---- consumers ------------------------------------------------------------------------------------------

struct Consumer {
  const PersistentStep& step;
  State& state;
  Shared& s;
  int block, blocks, warp, lane, g, t, quad, in_quad;
  uint32_t epoch;
  int chunk = 0;      // of the ring, at the start of the stage
  int tile = 0;       // row tiles so far, modulo kScaleSlots
  int reduction = 0;  // which of the four reduce buffers
  uint32_t tag = 0;   // of the words of this layer
  // The residual stream as words of three: lanes 3 i .. 3 i + 2 of a warp have row tile i of its ten, six
  // values each, but the last of three only four.
  float h[6];

  __device__ int column() const { return 16 * (lane / 3) + 6 * (lane % 3); }  // of the warp's 160
  __device__ int valid() const { return lane >= 30 ? 0 : lane % 3 == 2 ? 4 : 6; }

  // Measurement only: when warp 0 passed a point.
  __device__ void mark(int layer, int point) {
    if (step.trace && warp == 0 && lane == 0)
      step.trace[(block * step.n_layers + layer) * 16 + point] = clock64();
  }

  __device__ float block_sum(float v) {
    v = warp_sum(v);
    float* r = s.reduce[reduction++ & 3];
    if (lane == 0) r[warp] = v;
    named_barrier(1, kThreads);
    float sum = r[lane & 15];
#pragma unroll
    for (int o = 8; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    return sum;
  }

  // Attention's parts are published.
  __device__ void wait_for_attention(int layer) {
    if (warp == 0 && lane == 0 && step.skip != 1) {
      const uint32_t want = static_cast<uint32_t>(kHeads * kSplits) * (epoch + 1);
      uint32_t seen;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(seen)
                     : "l"(state.counters[layer])
                     : "memory");
      } while (step.skip != 2 && static_cast<int32_t>(seen - want) < 0);
    }
    named_barrier(1, kThreads);
  }
  __device__ void arrive_attention(int layer) {
    asm volatile("fence.acq_rel.gpu;\nred.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(state.counters[layer])
                 : "memory");
  }
  // Polls kN words of this lane; lanes without work say active = false.
  template <int kN, class Address>
  __device__ void poll(uint4 (&w)[kN], bool active, Address address) {
#pragma unroll
    for (int i = 0; i < kN; ++i) w[i] = make_uint4(0, 0, 0, 0);
    bool ready;
    do {
      ready = true;
      if (active) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
          if (w[i].w != tag) w[i] = load_word(address(i));
        }
#pragma unroll
        for (int i = 0; i < kN; ++i) ready &= w[i].w == tag;
      }
    } while (!__all_sync(~0u, ready || step.skip == 2));
  }
  // 16 row sums, in lanes 0..15 and again in 16..31, to six words in every copy, `stride` words apart.
  __device__ void publish(uint4* words, int64_t stride, float v) {
    const int word = lane % 6;
    const float a = __shfl_sync(~0u, v, 3 * word), b = __shfl_sync(~0u, v, 3 * word + 1),
                c = __shfl_sync(~0u, v, 3 * word + 2);
    if (lane < 6 * kCopies) {
      store_word(words + lane / 6 * stride + word,
                 make_uint4(__float_as_uint(a), __float_as_uint(b), __float_as_uint(c), tag));
    }
  }

  __device__ void wait_chunk(int c, int& slot) {
    const int n = chunk + c;
    slot = n % kSlots;
    barrier_wait(shared_address(&s.full[slot]), static_cast<uint32_t>(n / kSlots & 1));
  }
  __device__ void free_chunk(int slot) {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&s.empty[slot]));
  }

  // Stores an input of a product with E4M3 weights, rounded to BF16.
  __device__ void put(int i, float v) {
    v = __bfloat162float(__float2bfloat16(v));
    const bool large = fabsf(v) >= kLargeFrom;
    s.x[0][warp][i] = __float2half(large ? v * kLargeScale : 0.0f);
    s.x[1][warp][i] = __float2half(large ? 0.0f : v * kSmallScale);
  }
  __device__ __nv_bfloat16* bf16_inputs(int row) { return reinterpret_cast<__nv_bfloat16*>(s.x[0][row]); }

  // This warp's part of the input [16 * kSteps] as B operands: lanes g = 0 hold column 0, g = 1 column 1.
  template <int kSteps>
  __device__ void load_inputs(uint2 (&b)[kSteps]) {
    const __half* from = s.x[g == 1][warp] + 4 * t;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) b[i] = *reinterpret_cast<const uint2*>(from + 16 * i);
  }

  template <int kTiles>
  __device__ void add_f8(int slot, const uint2* b, float (&c)[4], float (&d)[4]) {
    const uint32_t from =
        shared_address(s.ring[slot]) + static_cast<uint32_t>((in_quad * kTiles * 32 + lane) * 16);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint4 v = load_shared(from + i * 512);
      const uint2 x = widen_pairs(v.x), y = widen_pairs(v.y), z = widen_pairs(v.z), w = widen_pairs(v.w);
      mma_f16(c, x.x, y.x, x.y, y.y, b[2 * i]);
      mma_f16(d, z.x, w.x, z.y, w.y, b[2 * i + 1]);
    }
  }
  template <int kTiles>
  __device__ void add_bf16(int slot, const uint2* b, float (&c)[4]) {
    const uint32_t from =
        shared_address(s.ring[slot]) + static_cast<uint32_t>((in_quad * kTiles * 32 + lane) * 16);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint4 v = load_shared(from + i * 512);
      const uint32_t a0 = __byte_perm(v.x, v.y, 0x5410), a2 = __byte_perm(v.x, v.y, 0x7632);
      const uint32_t a1 = __byte_perm(v.z, v.w, 0x5410), a3 = __byte_perm(v.z, v.w, 0x7632);
      mma(c, a0, a1, a2, a3, b[i]);
    }
  }

  // The warp's sums of a row tile go to shared memory; the last of `parts` warps gets true and calls
  // total() in lanes 0..15.
  __device__ bool hand_in(int slot, int parts, const float (&c)[4]) {
    const int part = parts == kWarps ? warp : in_quad;
    if (t == 0) s.sums[slot][part][g] = c[0], s.sums[slot][part][g + 8] = c[2];
    __syncwarp();
    uint32_t before = 0;
    if (lane == 0) {
      asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], 1;"
                   : "=r"(before)
                   : "r"(shared_address(&s.tile_count[slot]))
                   : "memory");
      if (before + 1 == static_cast<uint32_t>(parts)) s.tile_count[slot] = 0;
    }
    before = __shfl_sync(~0u, before, 0);
    return before + 1 == static_cast<uint32_t>(parts);
  }
  // Sum over the parts, row lane % 16, in all lanes.
  __device__ float total(int slot, int parts) {
    float sum = 0;
    const int half = parts / 2, from = lane / 16 * half;
    for (int i = 0; i < half; ++i) sum += s.sums[slot][from + i][lane & 15];
    const float other = __shfl_xor_sync(~0u, sum, 16);
    return lane < 16 ? sum + other : other + sum;
  }
  // A product whose row tiles are kRounds * 4 chunks of 4 * kTiles tiles; store(unit, row sum) in all lanes.
  template <int kTiles, int kRounds, class Store>
  __device__ void product(Share share, Store store) {
    uint2 b[2 * kTiles * kRounds];
    load_inputs(b);
    for (int u = 0; u < share.n; ++u) {
      float c[4] = {}, d[4] = {};
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        int slot;
        wait_chunk((u * kRounds + r) * 4 + quad, slot);
        add_f8<kTiles>(slot, b + 2 * kTiles * r, c, d);
        free_chunk(slot);
      }
      // Lanes t = 0 have both columns of their rows.
      c[0] = (c[0] + d[0]) * (1 / kLargeScale) + (c[1] + d[1]) * (1 / kSmallScale);
      c[2] = (c[2] + d[2]) * (1 / kLargeScale) + (c[3] + d[3]) * (1 / kSmallScale);
      const int at = (tile + u) % kTileSlots;
      if (hand_in(at, kWarps, c)) {
        store(share.first + u, total(at, kWarps) * s.scales[(tile + u) % kScaleSlots][lane & 15]);
      }
    }
    chunk += share.n * kRounds * 4;
    tile = (tile + share.n) % kScaleSlots;
  }

  // h = (h + RMS(y) post) scalar
  template <int kParts>
  __device__ void update(const uint4* words, const float (&post)[6], float scalar) {
    uint4 w[2 * kParts];
    const uint4* from = words + (10 * warp + lane / 3) * 6 + 2 * (lane % 3);
    poll(w, lane < 30, [&](int i) { return from + i / 2 * (kHidden / 16 * 6) + i % 2; });
    float v[6], squares = 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      v[3 * i] = __uint_as_float(w[i].x), v[3 * i + 1] = __uint_as_float(w[i].y),
            v[3 * i + 2] = __uint_as_float(w[i].z);
      if constexpr (kParts == 2) {
        v[3 * i] += __uint_as_float(w[2 + i].x), v[3 * i + 1] += __uint_as_float(w[2 + i].y),
            v[3 * i + 2] += __uint_as_float(w[2 + i].z);
      }
    }
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      if (j >= valid()) v[j] = 0;
      squares += v[j] * v[j];
    }
    const float r = rsqrtf(block_sum(squares) / kHidden + step.eps);
#pragma unroll
    for (int j = 0; j < 6; ++j) h[j] = (h[j] + v[j] * r * post[j]) * scalar;
  }
  // s.x[warp] = RMS(h) pre
  __device__ void normalize(const float (&pre)[6]) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < 6; ++j) squares += h[j] * h[j];
    const float r = rsqrtf(block_sum(squares) / kHidden + step.eps);
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      if (j < valid()) put(column() + j, h[j] * r * pre[j]);
    }
    __syncwarp();
  }
  __device__ void load_norm(const float* w, float (&out)[6]) {
#pragma unroll
    for (int j = 0; j < 6; ++j) out[j] = j < valid() ? load_early(w + 160 * warp + column() + j) : 0.0f;
  }

  template <int kDim>
  __device__ void attention(const PersistentLayer& w, int layer, int position);
  __device__ void run();
};

// Dot products of a lane's part of q with keys as stored.
template <int kN>
__device__ __forceinline__ void widen(const uint32_t (&bytes)[kN / 4], float (&out)[kN]) {
#pragma unroll
  for (int i = 0; i < kN / 4; ++i) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const __half2_raw r =
          __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bytes[i] >> 16 * p), __NV_E4M3);
      const float2 f = __half22float2(__half2(r));
      out[4 * i + 2 * p] = f.x, out[4 * i + 2 * p + 1] = f.y;
    }
  }
}
template <int kN>
__device__ __forceinline__ void load_bytes(const uint8_t* from, uint32_t (&out)[kN / 4]) {
  if constexpr (kN == 8) {
    const uint2 v = load_early8(from);
    out[0] = v.x, out[1] = v.y;
  } else {
    const uint4 v = load_word(from);
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  }
}

// A quarter of one head's keys: lane's part of the head is kN = kDim / 32 values from kN * lane.
template <int kDim>
__device__ void Consumer::attention(const PersistentLayer& w, int layer, int position) {
  constexpr int kN = kDim / 32, kBatch = kDim == 256 ? 8 : 4;
  const int head = block / kSplits, split = block % kSplits, kv_head = head / (kHeads / kKvHeads);
  const int first = w.window > 0 ? max(0, position - w.window + 1) : 0, n_keys = position + 1 - first;
  const int begin = first + n_keys * split / kSplits, end = first + n_keys * (split + 1) / kSplits;
  const uint8_t* base = w.kv + kv_head * 16 * kDim + kN * lane;
  const auto key_at = [&](int key) {
    return base + static_cast<int64_t>(__ldg(w.page_table + key / 16)) * (64 * kDim) + key % 16 * kDim;
  };
  uint32_t k_bytes[kBatch][kN / 4], v_bytes[kBatch][kN / 4];
  const auto fetch = [&](int from) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int key = from + kWarps * i + warp;
      if (key < end) {
        const uint8_t* at = key_at(key);
        load_bytes<kN>(at, k_bytes[i]);
        load_bytes<kN>(at + 32 * kDim, v_bytes[i]);
      }
    }
  };
  fetch(begin);
  const float* rope = kDim == 256 ? step.rope_sliding : step.rope_full;
  const int tid = 32 * warp + lane;
  if (tid < kDim) {
    s.rotation[0][tid] = __ldg(w.q_norm + tid);
    s.rotation[1][tid] = __ldg(rope + static_cast<int64_t>(position) * kDim + tid);
  }
  named_barrier(1, kThreads);

  // Each warp gathers its words of q; s.x is free between two products.
  float* const shared_q = reinterpret_cast<float*>(s.x);
  {
    uint4 word[1];
    const int at = warp * (kDim / 32) + lane;
    poll(word, lane < kDim / 32, [&](int) { return state.qkv + head * (kDim / 2) + at; });
    if (lane < kDim / 32)
      shared_q[2 * at] = __uint_as_float(word[0].x), shared_q[2 * at + 1] = __uint_as_float(word[0].y);
  }
  named_barrier(1, kThreads);
  const auto load_raw = [&](int from, float(&x)[kN]) {
    if (from < kHeads * kDim) {
#pragma unroll
      for (int i = 0; i < kN; ++i) x[i] = shared_q[kN * lane + i];
    } else {
      uint4 words[kN / 2];
      const uint4* at = state.qkv + (from + kN * lane) / 2;
      poll(words, true, [&](int i) { return at + i; });
#pragma unroll
      for (int i = 0; i < kN / 2; ++i)
        x[2 * i] = __uint_as_float(words[i].x), x[2 * i + 1] = __uint_as_float(words[i].y);
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += x[i] * x[i];
    return rsqrtf(warp_sum(squares) / kDim + step.eps);
  };
  const auto rotate = [&](float(&x)[kN]) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const float other = __shfl_xor_sync(~0u, x[i], 16);
      const int pair = kN * (lane % 16) + i;
      const float turned = other * s.rotation[1][kDim / 2 + pair];
      x[i] = x[i] * s.rotation[1][pair] + (lane < 16 ? -turned : turned);
    }
  };
  float q[kN];
  const float q_scale = load_raw(head * kDim, q);
#pragma unroll
  for (int i = 0; i < kN; ++i) q[i] *= q_scale * s.rotation[0][kN * lane + i];
  rotate(q);
#pragma unroll
  for (int i = 0; i < kN; ++i) q[i] *= w.k_scale;

  // The newest key and value: rounded as stored, kept for this step, and stored by one block of the group.
  const int newest = (position - begin) % kWarps;
  uint32_t new_k[kN / 4], new_v[kN / 4];
  const bool has_newest = w.owns_kv && split == kSplits - 1 && warp == newest;
  if (has_newest) {
    const auto round = [&](const float(&x)[kN], float scale, uint32_t(&out)[kN / 4]) {
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) {
        const uint32_t low =
            __nv_cvt_float2_to_fp8x2({x[4 * i] / scale, x[4 * i + 1] / scale}, __NV_SATFINITE, __NV_E4M3);
        const uint32_t high =
            __nv_cvt_float2_to_fp8x2({x[4 * i + 2] / scale, x[4 * i + 3] / scale}, __NV_SATFINITE, __NV_E4M3);
        out[i] = low | high << 16;
      }
    };
    float x[kN];
    float r = load_raw((kHeads + kv_head) * kDim, x);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] *= r * __ldg(w.k_norm + kN * lane + i);
    rotate(x);
    round(x, w.k_scale, new_k);
    r = load_raw((kHeads + kKvHeads + kv_head) * kDim, x);
#pragma unroll
    for (int i = 0; i < kN; ++i) x[i] *= r;
    round(x, w.v_scale, new_v);
    if (head % (kHeads / kKvHeads) == 0) {
      uint8_t* at = const_cast<uint8_t*>(key_at(position));
#pragma unroll
      for (int i = 0; i < kN / 4; ++i) {
        reinterpret_cast<uint32_t*>(at)[i] = new_k[i];
        reinterpret_cast<uint32_t*>(at + 32 * kDim)[i] = new_v[i];
      }
    }
  }

  float maximum = -INFINITY, sum = 0, out[kN] = {};
  for (int from = begin; from < end; from += kBatch * kWarps) {
    if (from != begin) fetch(from);
    float score[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int key = from + kWarps * i + warp;
      if (has_newest && key == position) {
#pragma unroll
        for (int j = 0; j < kN / 4; ++j) k_bytes[i][j] = new_k[j], v_bytes[i][j] = new_v[j];
      }
      score[i] = -INFINITY;
      if (key < end) {
        float k[kN];
        widen<kN>(k_bytes[i], k);
        float d = 0;
#pragma unroll
        for (int j = 0; j < kN; ++j) d += q[j] * k[j];
        score[i] = warp_sum(d);
      }
    }
    float m = maximum;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) m = fmaxf(m, score[i]);
    if (m == -INFINITY) continue;
    const float shrink = __expf(maximum - m);
    maximum = m, sum *= shrink;
#pragma unroll
    for (int j = 0; j < kN; ++j) out[j] *= shrink;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int key = from + kWarps * i + warp;
      if (key < end) {
        const float p = __expf(score[i] - m);
        sum += p;
        float v[kN];
        widen<kN>(v_bytes[i], v);
#pragma unroll
        for (int j = 0; j < kN; ++j) out[j] += p * v[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kN; ++j) s.attention[warp][kN * lane + j] = out[j];
  if (lane == 0) s.softmax[warp] = {maximum, sum};
  named_barrier(1, kThreads);
  const int d = warp * 32 + lane;
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) top = fmaxf(top, s.softmax[i].x);
  float value = 0, total_sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    const float2 part = s.softmax[i];
    const float f = __expf(part.x - top);
    total_sum += part.y * f;
    if (d < kDim) value += s.attention[i][d] * f;
  }
  value *= w.v_scale;
  for (int i = 0; i < kAttentionCopies; ++i) {
    if (d < kDim) state.attention[i][head][split][d] = value;
    if (d == 0) state.softmax[i][head][split] = {top, total_sum};
  }
  named_barrier(1, kThreads);
  if (d == 0) arrive_attention(layer);
}

// A function of its own, so that its registers are no burden to the products.
template <int kDim>
__device__ __noinline__ void attend(const PersistentStep& step, State& state, Shared& s,
                                    const PersistentLayer& w, int layer, int position, uint32_t epoch,
                                    uint32_t tag) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Consumer c{step,
             state,
             s,
             static_cast<int>(blockIdx.x),
             static_cast<int>(gridDim.x),
             warp,
             lane,
             lane / 4,
             lane % 4,
             warp / 4,
             warp % 4,
             epoch};
  c.tag = tag;
  c.attention<kDim>(w, layer, position);
}

__device__ void Consumer::run() {
  const int position = *step.position, copy = block % kCopies;
#pragma unroll
  for (int j = 0; j < 6; ++j) h[j] = j < valid() ? step.h[160 * warp + column() + j] : 0.0f;
  constexpr int64_t kVector = kHidden / 16 * 6;
  float a[6], b[6];
  for (int l = 0; l < step.n_layers; ++l) {
    const PersistentLayer& w = step.layers[l];
    const int dim = w.head_dim;
    mark(l, 0);

    // qkv, after the end of the last layer
    load_norm(w.input_norm, b);
    if (l > 0) {
      load_norm(step.layers[l - 1].post_ple_norm, a);
      update<1>(state.y_up[copy][0], a, step.layers[l - 1].layer_scalar);
    }
    mark(l, 1);
    tag = epoch * 64 + static_cast<uint32_t>(l) + 1;
    normalize(b);
    mark(l, 2);
    product<5, 1>(share_of(w.qkv_tiles, block, blocks), [&](int unit, float v) {
      const float first = __shfl_sync(~0u, v, 2 * (lane & 7)),
                  second = __shfl_sync(~0u, v, 2 * (lane & 7) + 1);
      if (lane < 8)
        store_word(state.qkv + unit * 8 + lane,
                   make_uint4(__float_as_uint(first), __float_as_uint(second), 0, tag));
    });

    mark(l, 3);
    if (block < kHeads * kSplits && step.skip != 1)
      dim == 256 ? attend<256>(step, state, s, w, l, position, epoch, tag)
                 : attend<512>(step, state, s, w, l, position, epoch, tag);

    mark(l, 4);
    load_norm(w.post_attention_norm, a);
    load_norm(w.pre_feedforward_norm, b);
    // o: this warp's 128 (or twice 128) inputs, merged from the parts of their head
    wait_for_attention(l);
    mark(l, 5);
    for (int r = 0; r < dim / 256; ++r) {
      const int k = (r * 4 + quad) * 512 + in_quad * 128 + lane * 4, head = k / dim;
      float2 part[kSplits];
      float4 v[kSplits];
#pragma unroll
      for (int i = 0; i < kSplits; ++i) {
        part[i] = {load_strong(&state.softmax[block % kAttentionCopies][head][i].x),
                   load_strong(&state.softmax[block % kAttentionCopies][head][i].y)};
        v[i] = load_strong4(&state.attention[block % kAttentionCopies][head][i][k % dim]);
      }
      float top = part[0].x, sum = 0;
#pragma unroll
      for (int i = 1; i < kSplits; ++i) top = fmaxf(top, part[i].x);
      float4 x = {};
#pragma unroll
      for (int i = 0; i < kSplits; ++i) {
        const float f = __expf(part[i].x - top);
        sum += f * part[i].y;
        x.x += f * v[i].x, x.y += f * v[i].y, x.z += f * v[i].z, x.w += f * v[i].w;
      }
      const float f = 1.0f / sum;
      const int at = r * 128 + lane * 4;
      put(at, x.x * f), put(at + 1, x.y * f), put(at + 2, x.z * f), put(at + 3, x.w * f);
    }
    __syncwarp();
    const auto store_o = [&](int unit, float v) { publish(state.y_o[0][unit], kVector, v); };
    const Share o_share = mirrored_share(kHidden / 16, block, blocks);
    if (dim == 256)
      product<4, 1>(o_share, store_o);
    else
      product<4, 2>(o_share, store_o);

    mark(l, 6);
    // gate and up
    update<1>(state.y_o[copy][0], a, 1.0f);
    normalize(b);
    mark(l, 7);
    product<5, 1>(share_of(kInner / 8, block, blocks), [&](int unit, float v) {
      const float up = __shfl_down_sync(~0u, v, 8), m = gelu(v) * up;
      const float next = __shfl_down_sync(~0u, m, 1);
      const __nv_bfloat162 pair = __floats2bfloat162_rn(m, next);  // lanes 0, 2, 4, 6
      const uint32_t bits = reinterpret_cast<const uint32_t&>(pair);
      const int word = lane & 1;
      const uint32_t low = __shfl_sync(~0u, bits, 4 * word), high = __shfl_sync(~0u, bits, 4 * word + 2);
      if (lane < 2 * kCopies) store_word(&state.m[lane / 2][unit * 2 + word], make_uint4(low, high, 0, tag));
    });

    mark(l, 8);
    // down, one half of K: this warp's two runs of 160 inputs, 40 words each
    const Share down = mirrored_share(2 * kHidden / 16, block, blocks);
    load_norm(w.post_feedforward_norm, a);
    {
      const int half = down.first / (kHidden / 16);
      const uint4* from = state.m[copy] + (half * kDownHalf + quad * 640 + in_quad * 160) / 4;
      uint4 words[3];
      // words 0..31 of the first run, of the second, then the eight that are left of each
      poll(words, true, [&](int i) {
        return from + (i == 0 ? lane : i == 1 ? 640 + lane : (lane / 8 % 2) * 640 + 32 + lane % 8);
      });
      const auto put_word = [&](int at, uint4 v) {
        put(at, __uint_as_float(v.x << 16)), put(at + 1, __uint_as_float(v.x & 0xffff0000u));
        put(at + 2, __uint_as_float(v.y << 16)), put(at + 3, __uint_as_float(v.y & 0xffff0000u));
      };
      put_word(lane * 4, words[0]);
      put_word(160 + lane * 4, words[1]);
      if (lane < 16) put_word(lane / 8 * 160 + (32 + lane % 8) * 4, words[2]);
    }
    __syncwarp();
    mark(l, 9);
    product<5, 2>(down, [&](int unit, float v) {
      publish(state.y_down[0][unit / (kHidden / 16)][unit % (kHidden / 16)], 2 * kVector, v);
    });

    mark(l, 10);
    // PLE gate: an eighth of K of one row tile. Its input is the residual itself.
    update<2>(state.y_down[copy][0][0], a, 1.0f);
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      if (j < valid()) bf16_inputs(warp)[column() + j] = __float2bfloat16(h[j]);
    }
    named_barrier(1, kThreads);
    mark(l, 11);
    const Share gate = share_of(kPle / 16 * 8, block, blocks);
    for (int u = 0; u < gate.n; ++u) {
      if (quad == 0) {
        const int eighth = (gate.first + u) % 8, row_tile = (gate.first + u) / 8;
        uint2 x[5];
#pragma unroll
        for (int i = 0; i < 5; ++i) {
          const int k = eighth * 320 + (in_quad * 5 + i) * 16 + 4 * t;
          const uint2 v = *reinterpret_cast<const uint2*>(bf16_inputs(k / 160) + k % 160);
          x[i] = {__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632)};
        }
        float c[4] = {};
        int slot;
        wait_chunk(u, slot);
        add_bf16<5>(slot, x, c);
        free_chunk(slot);
        const int at = (tile + u) % kTileSlots;
        if (hand_in(at, 4, c)) publish(state.ple_gate[0][eighth][row_tile], 8 * kPle / 16 * 6, total(at, 4));
      }
    }
    chunk += gate.n;
    tile = (tile + gate.n) % kScaleSlots;

    mark(l, 12);
    // PLE up: a row tile's 256 columns by one quad. Three warps gather the 256 inputs, three a lane.
    named_barrier(1, kThreads);
    if (warp < 3) {
      const int word = 32 * warp + lane, k = word / 6 * 16 + word % 6 * 3, n = word % 6 == 5 ? 1 : 3;
      float c[3], sum[3] = {};
      for (int i = 0; i < 3; ++i) c[i] = i < n ? load_early(step.per_layer + l * kPle + k + i) : 0.0f;
      uint4 part[8];
      poll(part, true, [&](int i) { return state.ple_gate[copy][i][0] + word; });
#pragma unroll
      for (int i = 0; i < 8; ++i)
        sum[0] += __uint_as_float(part[i].x), sum[1] += __uint_as_float(part[i].y),
            sum[2] += __uint_as_float(part[i].z);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (i < n) bf16_inputs((k + i) / 64)[(k + i) % 64] = __float2bfloat16(gelu(sum[i]) * c[i]);
      }
    }
    named_barrier(1, kThreads);
    mark(l, 13);
    const Share up = share_of(kHidden / 16, block, blocks);
    for (int u = quad; u < up.n; u += 4) {
      uint2 x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint2 v = *reinterpret_cast<const uint2*>(bf16_inputs(in_quad) + i * 16 + 4 * t);
        x[i] = {__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632)};
      }
      float c[4] = {};
      int slot;
      wait_chunk(u, slot);
      add_bf16<4>(slot, x, c);
      free_chunk(slot);
      const int at = (tile + u) % kTileSlots;
      if (hand_in(at, 4, c)) publish(state.y_up[0][up.first + u], kVector, total(at, 4));
    }
    chunk += up.n;
    tile = (tile + up.n) % kScaleSlots;
  }

  load_norm(step.layers[step.n_layers - 1].post_ple_norm, a);
  load_norm(step.final_norm, b);
  update<1>(state.y_up[copy][0], a, step.layers[step.n_layers - 1].layer_scalar);
  normalize(b);
  product<5, 1>(share_of(step.head_tiles, block, blocks), [&](int unit, float v) {
    if (lane < 16)
      step.logits[unit * 16 + lane] = step.softcap > 0 ? step.softcap * tanhf(v / step.softcap) : v;
  });
}

__global__ void __launch_bounds__(kThreads + 128, 1)
    persistent_step_kernel(const __grid_constant__ PersistentStep step) {
  extern __shared__ uint8_t raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw);
  State& state = *static_cast<State*>(step.state);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const uint32_t epoch = *reinterpret_cast<volatile uint32_t*>(state.epoch);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(shared_address(&s.full[i]), 1);
      barrier_init(shared_address(&s.empty[i]), 4);
    }
    for (int i = 0; i < kTileSlots; ++i) s.tile_count[i] = 0;
    s.done = 0;
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  // 20 warps start with 96 registers each; four that give up 64 let sixteen have 16 more, and a spilled
  // register costs a trip to L2: shared memory leaves L1 too small for the stacks.
  if (warp >= kWarps) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (warp == kWarps && lane == 0) produce(step, s, block, blocks);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
    Consumer c{step, state, s, block, blocks, warp, lane, lane / 4, lane % 4, warp / 4, warp % 4, epoch};
    c.run();
    // Every block read the epoch before it arrived at the first stage, and this one has seen the last.
    if (block == 0 && threadIdx.x == 0) *reinterpret_cast<volatile uint32_t*>(state.epoch) = epoch + 1;
  }
}

}  // namespace

size_t persistent_state_bytes() {
  return sizeof(State);
}

cudaError_t launch_persistent_step(const PersistentStep& step, cudaStream_t stream) {
  static int blocks = 0;
  if (blocks == 0) {
    int device = 0;
    if (const cudaError_t e = cudaGetDevice(&device); e != cudaSuccess) return e;
    if (const cudaError_t e = cudaFuncSetAttribute(
            persistent_step_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared));
        e != cudaSuccess)
      return e;
    if (const cudaError_t e = cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device);
        e != cudaSuccess)
      return e;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(blocks);
  config.blockDim = kThreads + 128;
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, persistent_step_kernel, step);
}

}  // namespace jewel::cuda

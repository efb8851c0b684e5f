// A block takes BM rows of one KV head: BM / group consecutive tokens of a chunk, each with the group's query
// heads, so that a tile of K and V serves them all. Tiles of BN keys at absolute multiples of BN; m16n8k16
// with float32 sums, running softmax. FP8 pages are copied to shared memory as they are (cp.async, one tile
// ahead) and widened there once for all warps, to FP16: exact, and P keeps 11 bits. BF16 pages stay BF16.
//
//   head_dim 256: a warp has 16 rows, all keys and all columns (128 registers of sums a thread)
//   head_dim 512: a pair of warps has 16 rows; each multiplies one half of the columns, the halves of the
//   scores
//                 meet in shared memory, both warps hold the same P and add their half of the columns
//
// What a row's bits depend on: its own q, and tiles in ascending order, of which those it does not see
// multiply by exactly 1 and add exactly 0.
#include <algorithm>

#include "backend/cuda/attention_device.h"
#include "backend/cuda/attention_prefill.h"
#include "backend/cuda/copy_async.h"
#include "backend/cuda/device_values.h"
#include "backend/cuda/prefill_mma.h"

namespace jewel::cuda {
namespace {

using namespace device;

template <int DIM, int BM, int BN, KvFormat F>
struct Plan {
  static constexpr bool kF8 = F == KvFormat::kF8E4M3;
  static constexpr int kHalves = DIM / 256;
  static constexpr int kWarps = BM / 16 * kHalves;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kTiles = BN / 8;  // of 8 keys
  static constexpr int kRow = DIM * 2;   // bytes of a widened row
  static constexpr int kQ = 0;
  static constexpr int kK = kQ + BM * kRow;
  static constexpr int kV = kK + BN * kRow;
  static constexpr int kRawK = kV + BN * kRow;
  static constexpr int kRawV = kRawK + (kF8 ? BN * DIM : 0);
  static constexpr int kScores = kRawV + (kF8 ? BN * DIM : 0);
  static constexpr int kBytes = kScores + (kHalves == 2 ? kWarps * 16 * BN * 4 : 0);
};

// Byte offset of 16-byte piece `piece` of row `row`: pieces of eight neighbouring rows lie in different
// banks.
template <int kRowBytes>
__device__ __forceinline__ uint32_t swizzled(int row, int piece) {
  return static_cast<uint32_t>(row * kRowBytes + ((piece ^ (row & 7)) << 4));
}

__device__ __forceinline__ uint4 load_matrices(uint32_t address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ uint4 load_matrices_transposed(uint32_t address) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// The block's tokens: rows [row, row + n) of the launch, consecutive positions from `position`.
struct Tokens {
  int row = 0, n = 0, position = 0;
};

// Block `index` of all chunks' blocks; the later tokens of a chunk first, since they see the most keys.
__device__ Tokens find_tokens(const PrefillAttention& p, int index, int per_block) {
  const int lane = threadIdx.x % 32;
  int before = 0;
  for (int c0 = 0; c0 < p.n_chunks; c0 += 32) {
    const int c = c0 + lane;
    const int begin = c < p.n_chunks ? p.chunk_rows[c] : 0, end = c < p.n_chunks ? p.chunk_rows[c + 1] : 0;
    const int blocks = (end - begin + per_block - 1) / per_block;
    int sum = blocks;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += other;
    }
    const unsigned found = __ballot_sync(kAllLanes, before + sum > index);
    if (found != 0) {
      const int from = __ffs(static_cast<int>(found)) - 1;
      const int first_block = __shfl_sync(kAllLanes, before + sum - blocks, from);
      const int n_blocks = __shfl_sync(kAllLanes, blocks, from);
      const int row0 = __shfl_sync(kAllLanes, begin, from), row1 = __shfl_sync(kAllLanes, end, from);
      const int block = n_blocks - 1 - (index - first_block);
      Tokens tokens;
      tokens.row = row0 + block * per_block;
      tokens.n = min(per_block, row1 - tokens.row);
      tokens.position = p.rows.positions[tokens.row];
      return tokens;
    }
    before += __shfl_sync(kAllLanes, sum, 31);
  }
  return {};
}

// Copies keys [key, key + BN) of K or V (`part` points into page 0) to shared memory; zeros behind `last` and
// where there is no page any more.
template <typename P, int DIM, int BN, bool kF8>
__device__ __forceinline__ void fetch(uint32_t to, const std::byte* part, size_t page_bytes,
                                      const int32_t* pages, int key, int last) {
  constexpr int kRowBytes = DIM * (kF8 ? 1 : 2), kPieces = kRowBytes / 16;
#pragma unroll
  for (int i = threadIdx.x; i < BN * kPieces; i += P::kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const int page = key + row <= last ? __ldg(pages + ((key + row) >> 4)) : -1;
    const std::byte* from =
        part + (page >= 0
                    ? page * page_bytes + static_cast<size_t>(((key + row) & 15) * kRowBytes + piece * 16)
                    : 0);
    copy_async_16(to + (kF8 ? static_cast<uint32_t>(i * 16) : swizzled<kRowBytes>(row, piece)), from,
                  page >= 0);
  }
}

template <typename P, int DIM, int BN>
__device__ __forceinline__ void widen(std::byte* to, const std::byte* raw) {
  constexpr int kPieces = DIM / 16;
#pragma unroll
  for (int i = threadIdx.x; i < BN * kPieces; i += P::kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const uint4 x = *reinterpret_cast<const uint4*>(raw + i * 16);
    uint4 out[2] = {f16_of_f8x8(x.x, x.y), f16_of_f8x8(x.z, x.w)};
    // Lanes four apart write even and odd pieces in opposite order: no two of a phase in one bank.
    const int flip = piece >> 2 & 1;
    *reinterpret_cast<uint4*>(to + swizzled<P::kRow>(row, 2 * piece + flip)) = flip == 0 ? out[0] : out[1];
    *reinterpret_cast<uint4*>(to + swizzled<P::kRow>(row, 2 * piece + 1 - flip)) =
        flip == 0 ? out[1] : out[0];
  }
}

template <int DIM, int BM, int BN, KvFormat F>
__global__ void __launch_bounds__(Plan<DIM, BM, BN, F>::kThreads, 1)
    prefill_attention_kernel(const __grid_constant__ PrefillAttention p) {
  using P = Plan<DIM, BM, BN, F>;
  extern __shared__ __align__(128) std::byte shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int row_group = warp / P::kHalves, half = warp % P::kHalves;
  const int group = p.shape.n_heads / p.shape.n_kv_heads, kv_head = blockIdx.y;
  const Tokens tokens = find_tokens(p, blockIdx.x, BM / group);
  if (tokens.n == 0) return;
  const int first = tokens.position, last = tokens.position + tokens.n - 1;

  const size_t head_bytes = size_t{16} * DIM * (P::kF8 ? 1 : 2);
  const size_t page_bytes = 2 * head_bytes * static_cast<size_t>(p.shape.n_kv_heads);
  const std::byte* k_part = p.kv.data + kv_head * head_bytes;
  const std::byte* v_part = k_part + page_bytes / 2;
  const int32_t* pages = p.kv.page_table + int64_t{p.rows.slots[tokens.row]} * p.kv.max_pages;
  const int begin = p.shape.window > 0 ? max(0, first - p.shape.window + 1) / BN * BN : 0;
  const uint32_t base = shared_address(shared);
  const auto fetch_k = [&](int key) {
    if (key <= last)
      fetch<P, DIM, BN, P::kF8>(base + (P::kF8 ? P::kRawK : P::kK), k_part, page_bytes, pages, key, last);
    commit_copies();
  };
  const auto fetch_v = [&](int key) {
    if (key <= last)
      fetch<P, DIM, BN, P::kF8>(base + (P::kF8 ? P::kRawV : P::kV), v_part, page_bytes, pages, key, last);
    commit_copies();
  };
  fetch_k(begin);
  if constexpr (P::kF8) fetch_v(begin);

  // Row r of the block: token r / group, query head r % group. Queries of tokens that are not there are zero.
  for (int i = threadIdx.x; i < BM * (DIM / 8); i += P::kThreads) {
    const int row = i / (DIM / 8), piece = i % (DIM / 8);
    const int token = row / group, head = kv_head * group + row % group;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (token < tokens.n) {
      const auto* q = static_cast<const __nv_bfloat16*>(p.q);
      x = *reinterpret_cast<const uint4*>(q + (int64_t{tokens.row + token} * p.shape.n_heads + head) * DIM +
                                          piece * 8);
    }
    if constexpr (P::kF8) {
      x = make_uint4(Number<F>::from_bf16(x.x), Number<F>::from_bf16(x.y), Number<F>::from_bf16(x.z),
                     Number<F>::from_bf16(x.w));
    }
    *reinterpret_cast<uint4*>(shared + P::kQ + swizzled<P::kRow>(row, piece)) = x;
  }

  float out[32][4];
#pragma unroll
  for (int j = 0; j < 32; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[j][i] = 0;
  }
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // rows g and g + 8 of the 16
  const int positions[2] = {first + (row_group * 16 + g) / group, first + (row_group * 16 + g + 8) / group};
  const float to_log2 = p.kv.k_scale * kLog2E / Number<F>::kQueryScale;
  const uint32_t q_row = static_cast<uint32_t>(row_group * 16 + (lane & 15));
  const int q_piece = half * 32 + (lane >> 4);
  const int k_row = (lane & 7) + (lane >> 4) * 8, k_piece = half * 32 + (lane >> 3 & 1);
  const int v_row = lane & 15, v_piece = half * 32 + (lane >> 4);

  for (int key = begin; key <= last; key += BN) {
    wait_for_copies<P::kF8 ? 1 : 0>();
    if constexpr (P::kF8) {
      __syncthreads();  // all of the raw tile is here
      widen<P, DIM, BN>(shared + P::kK, shared + P::kRawK);
    }
    __syncthreads();
    if constexpr (P::kF8) {
      fetch_k(key + BN);
    } else {
      fetch_v(key);
    }

    float s[P::kTiles][4];
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = 0;
    }
#pragma unroll 4
    for (int step = 0; step < 16; ++step) {
      const uint4 a =
          load_matrices(base + P::kQ + swizzled<P::kRow>(static_cast<int>(q_row), q_piece + 2 * step));
#pragma unroll
      for (int n = 0; n < P::kTiles; n += 2) {
        const uint4 b = load_matrices(base + P::kK + swizzled<P::kRow>(8 * n + k_row, k_piece + 2 * step));
        Number<F>::mma(s[n], a, b.x, b.y);
        Number<F>::mma(s[n + 1], a, b.z, b.w);
      }
    }
    if constexpr (P::kHalves == 2) {
      // Both warps of the pair add first half + second half.
      auto* scores = reinterpret_cast<float4*>(shared + P::kScores);
      const auto place = [&](int w, int n) { return (w * P::kTiles + n) * 32 + lane; };
#pragma unroll
      for (int n = 0; n < P::kTiles; ++n)
        scores[place(warp, n)] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
      asm volatile("bar.sync %0, 64;" ::"r"(1 + row_group) : "memory");
#pragma unroll
      for (int n = 0; n < P::kTiles; ++n) {
        const float4 other = scores[place(warp ^ 1, n)];
        s[n][0] += other.x, s[n][1] += other.y, s[n][2] += other.z, s[n][3] += other.w;
      }
    }

    const bool all_seen = key + BN - 1 <= first && (p.shape.window == 0 || key > last - p.shape.window);
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] *= to_log2;
        const int k = key + 8 * n + 2 * t + i % 2, position = positions[i / 2];
        const bool seen =
            all_seen || (k <= position && (p.shape.window == 0 || k > position - p.shape.window));
        if (!seen) s[n][i] = -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[n][i]);
      }
    }
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(kAllLanes, top[r], 2));
      top[r] = fmaxf(top[r], max[r]);
      const float base_max = top[r] == -INFINITY ? 0 : top[r];  // a row that has seen no key yet
      shrink[r] = exp2_fast(max[r] - base_max);
      max[r] = top[r];
      top[r] = base_max - Number<F>::kHeadroom;
      sum[r] *= shrink[r];
    }
#pragma unroll
    for (int n = 0; n < P::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = exp2_fast(s[n][i] - top[i / 2]);
        sum[i / 2] += s[n][i];
      }
    }
    if (__any_sync(kAllLanes, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        out[j][0] *= shrink[0], out[j][1] *= shrink[0], out[j][2] *= shrink[1], out[j][3] *= shrink[1];
      }
    }

    wait_for_copies<P::kF8 ? 1 : 0>();
    if constexpr (P::kF8) {
      __syncthreads();
      widen<P, DIM, BN>(shared + P::kV, shared + P::kRawV);
    }
    __syncthreads();
    if constexpr (P::kF8) {
      fetch_v(key + BN);
    } else {
      fetch_k(key + BN);
    }
#pragma unroll
    for (int step = 0; step < BN / 16; ++step) {
      const float(&x)[4] = s[2 * step], (&y)[4] = s[2 * step + 1];
      const uint4 a = make_uint4(Number<F>::pack(x[0], x[1]), Number<F>::pack(x[2], x[3]),
                                 Number<F>::pack(y[0], y[1]), Number<F>::pack(y[2], y[3]));
#pragma unroll
      for (int j = 0; j < 32; j += 2) {
        const uint4 b =
            load_matrices_transposed(base + P::kV + swizzled<P::kRow>(16 * step + v_row, v_piece + j));
        Number<F>::mma(out[j], a, b.x, b.y);
        Number<F>::mma(out[j + 1], a, b.z, b.w);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 1);
    sum[r] += __shfl_xor_sync(kAllLanes, sum[r], 2);
    const int row = row_group * 16 + g + 8 * r, token = row / group, head = kv_head * group + row % group;
    if (token >= tokens.n) continue;
    const float scale = p.kv.v_scale / sum[r];
    auto* o = static_cast<__nv_bfloat16*>(p.out) +
              (int64_t{tokens.row + token} * p.shape.n_heads + head) * DIM + half * 256 + 2 * t;
#pragma unroll
    for (int j = 0; j < 32; ++j) {
      *reinterpret_cast<uint32_t*>(o + 8 * j) = pack_bf16(out[j][2 * r] * scale, out[j][2 * r + 1] * scale);
    }
  }
}

template <int DIM, int BM, int BN, KvFormat F>
cudaError_t launch(const PrefillAttention& p, cudaStream_t stream) {
  using P = Plan<DIM, BM, BN, F>;
  auto* kernel = prefill_attention_kernel<DIM, BM, BN, F>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, P::kBytes);
  if (error != cudaSuccess) return error;
  // Every chunk ends in at most one block that is not full.
  const int tokens = BM / (p.shape.n_heads / p.shape.n_kv_heads);
  const dim3 grid(static_cast<unsigned>(p.rows.n / tokens + p.n_chunks),
                  static_cast<unsigned>(p.shape.n_kv_heads));
  kernel<<<grid, P::kThreads, P::kBytes, stream>>>(p);
  return cudaGetLastError();
}

// Large tiles where a block may have 176 KB of shared memory, small ones where it has 99. The device decides,
// so one machine has one order of addition.
template <KvFormat F>
cudaError_t launch(const PrefillAttention& p, bool large, cudaStream_t stream) {
  if (p.shape.head_dim == 256)
    return large ? launch<256, 128, 64, F>(p, stream) : launch<256, 64, 32, F>(p, stream);
  return large ? launch<512, 64, 32, F>(p, stream) : launch<512, 32, 16, F>(p, stream);
}

}  // namespace

cudaError_t launch_prefill_attention(const PrefillAttention& attention, AttentionDesign design,
                                     cudaStream_t stream) {
  const AttentionShape& shape = attention.shape;
  const int group = shape.n_kv_heads > 0 ? shape.n_heads / shape.n_kv_heads : 0;
  const bool known = (shape.head_dim == 256 || shape.head_dim == 512) &&
                     group * shape.n_kv_heads == shape.n_heads &&
                     (group == 1 || group == 2 || group == 4 || group == 8);
  if (!known) return cudaErrorInvalidValue;
  if (attention.n_chunks == 0 || attention.rows.n == 0) return cudaSuccess;
  const bool large = design == AttentionDesign::kSm90;
  return attention.kv.format == KvFormat::kF8E4M3 ? launch<KvFormat::kF8E4M3>(attention, large, stream)
                                                  : launch<KvFormat::kBF16>(attention, large, stream);
}

}  // namespace jewel::cuda

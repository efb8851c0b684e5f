// The large product on sm_90a: one kernel template, instantiated in prefill_product_{w8a16,w16a16,w8a8}.cu.
//
//   out[token, o] = W x: wgmma with the operands swapped. A = 64 rows of weights in registers, B = tokens in
//   shared memory, D = 64 outputs x kTokens, FP32 in registers.
//
//   block     two consumer warpgroups (64 outputs each) and one thread that fills stages; 128 outputs x
//             kTokens tokens a tile
//   cluster   two blocks with neighbouring outputs and the same tokens: each loads half of the tokens' box
//   for
//             both
//   stage     128 bytes of each token's row (64 BF16 or 128 E4M3 columns) by TMA with 128-byte swizzle, and
//   the
//             same columns of 8 fragment tiles of weights (1 or 2 KB each) by a second copy
//   weights   a lane's fragment is one 16-byte load from shared memory for 32 columns of E4M3. A stage's four
//             steps go to the tensor cores as one batch; the next stage's fragments are loaded, and widened
//             to BF16, while it runs
//   epilogue  through 16 KB of shared memory of each warpgroup, 32 tokens at a time
//   order     tiles of all outputs for about 2,048 tokens, then the next 2,048: a wave of 66 clusters reads
//   each
//             weight and each token's columns from memory once
//
// A sum is a chain of wgmma steps over K in order; kTokens does not enter it (tested), so the host may choose
// kTokens by the number of tokens. With kPromote (FP8 x FP8) the tensor cores' partial sums, which keep about
// 14 bits, are added to FP32 registers every 128 columns. Measured on Gaussian data at K = 10,240:
// error 1.9e-3 in the norm without, 1.4e-4 with, against 3.7e-2 from quantizing both operands, at 10 to 25 %
// of the speed: the backend runs without.
#pragma once

#include <cuda_bf16.h>

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/prefill_product_task.h"
#include "backend/cuda/prefill_ptx.h"
#include "backend/cuda/prefill_values.h"

namespace jewel::cuda {

template <ProductKind kKind, int kTokens_, bool kPromote_>
struct ProductTile {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kPromote = kPromote_;
  static constexpr bool kFp8 = kKind == ProductKind::kW8A8;
  static constexpr int kStageColumns = kFp8 ? 128 : 64;
  static constexpr int kRowTileBytes = kStageColumns * (kKind == ProductKind::kW16A16 ? 32 : 16);
  static constexpr int kWeightBytes = 8 * kRowTileBytes;
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kStageBytes = kTokenBytes + kWeightBytes;
  static constexpr int kStagingBytes = 16384;                     // of each warpgroup, two halves
  static constexpr int kScaleBytes = kFp8 ? 2 * kTokens * 4 : 0;  // the tokens' scales, for each warpgroup
  static constexpr int kFit = (232448 - kScaleBytes - 512 - 2 * kStagingBytes) / kStageBytes;
  static constexpr int kStages = kFit > 10 ? 10 : kFit;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kStagingBytes + kScaleBytes + 512;
};

inline constexpr int kProductThreads = 384;

// Where a tile lies: pair of row blocks, token tile.
__device__ __forceinline__ void locate_tile(const ProductTask& task, int tile, int& pair, int& token_tile) {
  const int per_group = task.group * task.out_pairs;
  const int group = tile / per_group, rest = tile % per_group;
  const int width = min(task.group, task.token_tiles - group * task.group);
  pair = rest / width;
  token_tile = group * task.group + rest % width;
}

// One thread keeps the stages filled: one copy of weights and one of tokens a stage. (Eight bulk copies of a
// row tile each, issued by eight lanes, cost 1,300 cycles a stage: the instruction takes uniform registers,
// so lanes go one by one.)
template <class Tile>
__device__ __forceinline__ void produce(const CUtensorMap& token_map, const CUtensorMap& weight_map,
                                        const ProductTask& task, uint32_t stages, uint32_t full,
                                        uint32_t empty) {
  const int rank = static_cast<int>(cluster_rank());
  const int n_stages = (task.in + Tile::kStageColumns - 1) / Tile::kStageColumns;
  const int tiles = task.out_pairs * task.token_tiles;
  uint32_t stage = 0, parity = 1;
  for (int tile = static_cast<int>(blockIdx.x / 2); tile < tiles; tile += static_cast<int>(gridDim.x / 2)) {
    int pair, token_tile;
    locate_tile(task, tile, pair, token_tile);
    const int row_tile = pair * 16 + rank * 8;
    const int first_token = token_tile * Tile::kTokens + rank * (Tile::kTokens / 2);
    for (int k = 0; k < n_stages; ++k) {
      const uint32_t at = stages + stage * Tile::kStageBytes;
      barrier_wait(empty + 8 * stage, parity);
      barrier_expect_bytes(full + 8 * stage, Tile::kStageBytes);
      copy_box_here(at + Tile::kTokenBytes, &weight_map, k * 256, row_tile, full + 8 * stage);
      copy_box(at + rank * (Tile::kTokenBytes / 2), &token_map, k * Tile::kStageColumns, first_token,
               full + 8 * stage, 3);
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
  }
}

// The fragments of a stage's four steps, of one row tile, by lane.
template <ProductKind kKind>
__device__ __forceinline__ void load_fragments(uint32_t address, uint32_t (&a)[4][4]) {
  if constexpr (kKind == ProductKind::kW8A16) {
#pragma unroll
    for (int s = 0; s < 4; s += 2) {
      const uint4 w = load_shared(address + s * 256);  // rows g and g + 8, 16 columns each of two steps
      widen_e4m3x4(w.x, a[s][0], a[s][2]);
      widen_e4m3x4(w.y, a[s][1], a[s][3]);
      widen_e4m3x4(w.z, a[s + 1][0], a[s + 1][2]);
      widen_e4m3x4(w.w, a[s + 1][1], a[s + 1][3]);
    }
  } else {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const uint4 w = load_shared(address + s * 512);
      a[s][0] = w.x, a[s][3] = w.w;
      a[s][1] = kKind == ProductKind::kW16A16 ? w.z : w.y;
      a[s][2] = kKind == ProductKind::kW16A16 ? w.y : w.z;
    }
  }
}

// The sums of one tile, 64 outputs of this warpgroup, in d. Where K ends inside a stage, the copies have
// written zeros.
template <class Tile, ProductKind kKind>
__device__ __forceinline__ void multiply(const ProductTask& task, uint32_t stages, uint32_t full,
                                         uint32_t empty, uint32_t& stage, uint32_t& parity,
                                         float (&d)[Tile::kTokens / 2]) {
  using Step = Wgmma<Tile::kTokens, Tile::kFp8 ? WgmmaType::kE4M3 : WgmmaType::kBF16>;
  const uint32_t lane = threadIdx.x % 32, row_tile = threadIdx.x / 32;
  const int n_stages = (task.in + Tile::kStageColumns - 1) / Tile::kStageColumns;
  const uint32_t fragment = Tile::kTokenBytes + row_tile * Tile::kRowTileBytes + lane * 16;
  // Lanes 0 and 1 of each warp give a stage back to the two blocks of the cluster. The warp's loads from it
  // are done: their values went into wgmmas that have been waited for.
  const auto release = [&](uint32_t which, bool really) {
    barrier_arrive_if(empty + 8 * which, lane, lane < 2 && really);
  };

  if constexpr (Tile::kPromote) {
    float partial[Tile::kTokens / 2];
#pragma unroll
    for (float& value : d) value = 0;
    for (int k = 0; k < n_stages; ++k) {
      const uint32_t at = stages + stage * Tile::kStageBytes;
      barrier_wait(full + 8 * stage, parity);
      uint32_t a[4][4];
      load_fragments<kKind>(at + fragment, a);
      for (auto& fragment_of_step : a) hold(fragment_of_step);
      const uint64_t b = wgmma_descriptor(at);
      wgmma_fence();
      Step::run(partial, a[0], b, 0);
      Step::run(partial, a[1], b + 2, 1);
      Step::run(partial, a[2], b + 4, 1);
      Step::run(partial, a[3], b + 6, 1);
      wgmma_commit();
      wgmma_wait<0>();
      release(stage, true);
#pragma unroll
      for (int i = 0; i < Tile::kTokens / 2; ++i) d[i] += partial[i];
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
    return;
  }

  // A stage's four steps are one batch: their fragments are made while the batch before runs, in the other
  // half of `a`.
  uint32_t a[2][4][4];
  uint32_t previous = 0;
  const auto run_stage = [&](uint32_t(&fragments)[4][4], int k) {
    const uint32_t at = stages + stage * Tile::kStageBytes;
    barrier_wait(full + 8 * stage, parity);
    load_fragments<kKind>(at + fragment, fragments);
    for (auto& of_step : fragments) hold(of_step);
    const uint64_t b = wgmma_descriptor(at);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) Step::run(d, fragments[s], b + 2 * s, k > 0 || s > 0);
    wgmma_commit();
    wgmma_wait<1>();
    release(previous, k > 0);  // the batch before is done
    previous = stage;
    if (++stage == Tile::kStages) stage = 0, parity ^= 1;
  };
  for (int k = 0; k < n_stages; k += 2) {
    run_stage(a[0], k);
    if (k + 1 == n_stages) break;
    run_stage(a[1], k + 1);
  }
  wgmma_wait<0>();
  release(previous, true);
}

// Scales the sums and stores them. Lane 4g + t of warp w holds values 4j .. 4j + 3: output 16w + g of tokens
// 8j + 2t and 8j + 2t + 1, then output 16w + g + 8 of both.
template <class Tile>
__device__ __forceinline__ void store_tile(const ProductTask& task, uint32_t staging, uint32_t token_scales,
                                           int first_row, int first_token,
                                           const float (&d)[Tile::kTokens / 2]) {
  const int thread = static_cast<int>(threadIdx.x % 128), warp = thread / 32, lane = thread % 32,
            g = lane / 4, t = lane % 4, warpgroup = static_cast<int>(threadIdx.x / 128);
  const int row = first_row + warp * 16 + g;
  const bool in_range = row + 8 < task.out;
  float scale[2] = {1, 1};
  float2 bounds[2] = {};
  if (in_range && task.row_scale != nullptr)
    scale[0] = task.row_scale[row], scale[1] = task.row_scale[row + 8];
  if (in_range && task.row_clamp != nullptr)
    bounds[0] = task.row_clamp[row], bounds[1] = task.row_clamp[row + 8];
  const bool gate_up = task.form == ProductOut::kGateUp;
  if constexpr (Tile::kFp8) {
    for (int i = thread; i < Tile::kTokens; i += 128) {
      store_shared(token_scales + 4 * i, first_token + i < task.rows ? task.x_scale[first_token + i] : 0);
    }
    named_barrier(1 + warpgroup, 128);
  }

#pragma unroll
  for (int chunk = 0; chunk < Tile::kTokens / 32; ++chunk) {
    const int token0 = first_token + chunk * 32;
    if (token0 >= task.rows) break;
    const uint32_t half = staging + (chunk & 1) * (Tile::kStagingBytes / 2);
    float v[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = d[16 * chunk + 4 * j + i] * scale[i / 2];
      if constexpr (Tile::kFp8) {
        const float2 token_scale = load_shared_pair(token_scales + 4 * (chunk * 32 + 8 * j + 2 * t));
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] *= i % 2 == 0 ? token_scale.x : token_scale.y;
      }
    }
    if (task.row_clamp != nullptr) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[j][i] = fminf(fmaxf(v[j][i], bounds[i / 2].x), bounds[i / 2].y);
      }
    }

    if (task.form == ProductOut::kF32) {
      // [32 tokens][64 outputs]; blocks of 8 outputs exchanged by the token, so that lanes differ in banks.
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = 8 * j + 2 * t + i % 2, output = warp * 16 + g + (i / 2) * 8;
          store_shared(half + (token * 64 + (output ^ (t * 8))) * 4, v[j][i]);
        }
      }
      named_barrier(1 + warpgroup, 128);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = i * 8 + thread / 16, output = thread % 16 * 4;
        const uint4 values = load_shared(half + (token * 64 + (output ^ (token / 2 % 4 * 8))) * 4);
        if (token0 + token < task.rows && first_row + output < task.out) {
          float* to =
              static_cast<float*>(task.result) + (token0 + token) * task.result_stride + first_row + output;
          *reinterpret_cast<uint4*>(to) = values;
        }
      }
      continue;
    }

    // BF16: [32 tokens][64 or 32 columns], 16-byte pieces exchanged by the token.
    if (gate_up) {
      uint32_t pairs[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float low = gelu_tanh(v[j][0]) * v[j][2], high = gelu_tanh(v[j][1]) * v[j][3];
        pairs[j] = pack_bf16(fminf(fmaxf(low, task.out_min), task.out_max),
                             fminf(fmaxf(high, task.out_min), task.out_max));
      }
      store_matrices_transposed(half + lane * 64 + (warp ^ (lane / 2 % 4)) * 16, pairs[0], pairs[1], pairs[2],
                                pairs[3]);
    } else {
      if (task.form == ProductOut::kGeluTimes) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int token = token0 + 8 * j + 2 * t + i % 2;
            const bool valid = token < task.rows && in_range;
            const float factor = valid ? task.factor[token * task.factor_stride + row + (i / 2) * 8] : 0;
            v[j][i] = gelu_tanh(v[j][i]) * factor;
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        const int token = 8 * j + lane / 16 * 8 + lane % 8, piece = 2 * warp + lane / 8 % 2;
        store_matrices_transposed(half + token * 128 + (piece ^ (token % 8)) * 16,
                                  pack_bf16(v[j][0], v[j][1]), pack_bf16(v[j][2], v[j][3]),
                                  pack_bf16(v[j + 1][0], v[j + 1][1]), pack_bf16(v[j + 1][2], v[j + 1][3]));
      }
    }
    named_barrier(1 + warpgroup, 128);
    const int pieces = gate_up ? 4 : 8;  // of 16 bytes, a token
    for (int i = thread; i < 32 * pieces; i += 128) {
      const int token = i / pieces, piece = i % pieces, unit = piece / 2 * 2;
      const int exchange = gate_up ? token / 2 % 4 : token % 8;
      const uint32_t at = half + token * pieces * 16;
      const uint4 low = load_shared(at + (unit ^ exchange) * 16),
                  high = load_shared(at + ((unit + 1) ^ exchange) * 16);
      uint4 values = piece % 2 == 0 ? low : high;
      if (task.form != ProductOut::kBF16) {
        values = piece % 2 == 0 ? make_uint4(low.x, low.z, high.x, high.z)
                                : make_uint4(low.y, low.w, high.y, high.w);
      }
      const int column = (gate_up ? first_row / 2 : first_row) + piece * 8;
      if (token0 + token < task.rows && column < (gate_up ? task.out / 2 : task.out)) {
        auto* to = static_cast<__nv_bfloat16*>(task.result) + (token0 + token) * task.result_stride + column;
        *reinterpret_cast<uint4*>(to) = values;
      }
    }
  }
  named_barrier(1 + warpgroup, 128);  // the staging memory may be written again
}

// The attribute is an error for older architectures, where the kernel is empty and never launched.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define JEWEL_CLUSTER_OF_TWO
#else
#define JEWEL_CLUSTER_OF_TWO __cluster_dims__(2, 1, 1)
#endif

template <ProductKind kKind, int kTokens, bool kPromote>
__global__ void JEWEL_CLUSTER_OF_TWO __launch_bounds__(kProductThreads, 1)
    prefill_product_kernel(const __grid_constant__ CUtensorMap token_map,
                           const __grid_constant__ CUtensorMap weight_map,
                           const __grid_constant__ ProductTask task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tile = ProductTile<kKind, kTokens, kPromote>;
  extern __shared__ __align__(1024) std::byte shared[];
  const uint32_t stages = shared_address(shared);
  if (stages % 1024 != 0) __trap();  // the swizzle goes by address
  const uint32_t staging = stages + Tile::kStages * Tile::kStageBytes;
  const uint32_t scales = staging + 2 * Tile::kStagingBytes;
  const uint32_t full = scales + Tile::kScaleBytes, empty = full + 8 * Tile::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, 16);  // the consumer warps of both blocks
    }
    barrier_init_fence();
  }
  cluster_sync();
  wait_for_previous();

  if (threadIdx.x >= 256) {
    give_registers<40>();
    if (threadIdx.x == 256) produce<Tile>(token_map, weight_map, task, stages, full, empty);
  } else {
    take_registers<232>();
    const int warpgroup = static_cast<int>(threadIdx.x / 128);
    const int tiles = task.out_pairs * task.token_tiles;
    uint32_t stage = 0, parity = 0;
    for (int tile = static_cast<int>(blockIdx.x / 2); tile < tiles; tile += static_cast<int>(gridDim.x / 2)) {
      int pair, token_tile;
      locate_tile(task, tile, pair, token_tile);
      float d[kTokens / 2];
      multiply<Tile, kKind>(task, stages, full, empty, stage, parity, d);
      const int first_row = pair * kProductOutputs + static_cast<int>(cluster_rank()) * 128 + warpgroup * 64;
      store_tile<Tile>(task, staging + warpgroup * Tile::kStagingBytes,
                       scales + warpgroup * Tile::kTokens * 4, first_row, token_tile * kTokens, d);
    }
  }
  cluster_sync();  // the other block may still write to this one's memory
#endif
}

template <ProductKind kKind, int kTokens, bool kPromote = false>
cudaError_t launch_sm90(const PrefillProduct& product, cudaStream_t stream) {
  using Tile = ProductTile<kKind, kTokens, kPromote>;
  const auto kernel = prefill_product_kernel<kKind, kTokens, kPromote>;
  const cudaError_t ready =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (ready != cudaSuccess) return ready;
  CUtensorMap token_map, weight_map;
  for (const cudaError_t error : {make_token_map(product, kTokens / 2, &token_map),
                                  make_weight_map(product, Tile::kRowTileBytes, &weight_map)}) {
    if (error != cudaSuccess) return error;
  }
  const ProductTask task = make_task(product, kTokens);
  const int clusters = std::min(multiprocessors() / 2, task.out_pairs * task.token_tiles);
  return launch_dependent(kernel, dim3(static_cast<unsigned>(clusters * 2)), kProductThreads,
                          Tile::kSharedBytes, stream, token_map, weight_map, task);
}

}  // namespace jewel::cuda

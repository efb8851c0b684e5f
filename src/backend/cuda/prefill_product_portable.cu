// The large products by mma.sync, for GPUs without wgmma; the same layouts and meaning as
// prefill_product_kernel.h.
//
//   block   8 warps, 128 outputs x 128 tokens; a warp takes 32 outputs x 64 tokens
//   stage   128 bytes of each token's row and the same columns of 8 fragment tiles, by cp.async, three stages
//   result  through shared memory as FP32 [128 tokens][128 outputs], finished 8 columns at a time
//
// 72 or 96 KB of shared memory: one block on an L4's multiprocessor, two on an A100's.
#include <algorithm>

#include "backend/cuda/copy_async.h"
#include "backend/cuda/prefill_mma.h"
#include "backend/cuda/prefill_product_task.h"
#include "backend/cuda/prefill_values.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOutputs = 128;
constexpr int kTokens = 128;
constexpr int kStages = 3;
constexpr int kSumStride = kOutputs + 4;  // floats; four more, so that tokens differ in banks

template <ProductKind kKind>
struct PortableTile {
  static constexpr bool kFp8 = kKind == ProductKind::kW8A8;
  static constexpr int kStageColumns = kFp8 ? 128 : 64;
  static constexpr int kRowTileBytes = kStageColumns * (kKind == ProductKind::kW16A16 ? 32 : 16);
  static constexpr int kTokenBytes = kTokens * 128;
  static constexpr int kStageBytes = kTokenBytes + 8 * kRowTileBytes;
  static constexpr int kSharedBytes = std::max(kStages * kStageBytes, kTokens* kSumStride * 4);
};

struct PortableInput {
  const std::byte* x;
  int64_t row_bytes;
};

template <class Tile>
__device__ __forceinline__ void load_stage(const ProductTask& task, const PortableInput& input,
                                           uint32_t stage, int k, int first_row_tile, int first_token) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t columns_bytes = static_cast<int64_t>(task.in) * (Tile::kFp8 ? 1 : 2);
#pragma unroll
  for (int i = 0; i < kTokens * 8 / kThreads; ++i) {
    const int at = thread + i * kThreads, row = at / 8, piece = at % 8;
    const int64_t offset = static_cast<int64_t>(k) * 128 + piece * 16;
    const bool valid = first_token + row < task.rows && offset < columns_bytes;
    copy_async_16(piece_at(stage, row, piece),
                  input.x + (valid ? (first_token + row) * input.row_bytes + offset : 0), valid);
  }
  const int64_t row_tile_bytes = static_cast<int64_t>(task.in) * (Tile::kRowTileBytes / Tile::kStageColumns);
  constexpr int kPieces = Tile::kRowTileBytes / 16;
#pragma unroll
  for (int i = 0; i < 8 * kPieces / kThreads; ++i) {
    const int at = thread + i * kThreads, row_tile = at / kPieces;
    const int64_t offset = static_cast<int64_t>(k) * Tile::kRowTileBytes + at % kPieces * 16;
    const bool valid = first_row_tile + row_tile < task.out / 16 && offset < row_tile_bytes;
    copy_async_16(stage + Tile::kTokenBytes + at * 16,
                  task.tiles + (valid ? (first_row_tile + row_tile) * row_tile_bytes + offset : 0), valid);
  }
}

// The fragment of k step s of a stage.
template <ProductKind kKind>
__device__ __forceinline__ void load_fragment(uint32_t row_tile, int s, uint32_t (&a)[4]) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (kKind == ProductKind::kW8A16) {
    uint32_t low, high;  // rows g and g + 8, columns 16s + 4t .. + 3
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(low), "=r"(high)
                 : "r"(row_tile + s / 2 * 512 + lane * 16 + s % 2 * 8)
                 : "memory");
    widen_e4m3x4(low, a[0], a[2]);
    widen_e4m3x4(high, a[1], a[3]);
  } else {
    const uint4 w = load_shared(row_tile + s * 512 + lane * 16);
    a[0] = w.x, a[3] = w.w;
    a[1] = kKind == ProductKind::kW16A16 ? w.z : w.y;
    a[2] = kKind == ProductKind::kW16A16 ? w.y : w.z;
  }
}

// Output o (of the tile, in the order of the weights' rows) of a token: the sum, scaled and clamped.
__device__ __forceinline__ float finished(const ProductTask& task, const float* sums, int first_row, int o,
                                          float token_scale) {
  float value = sums[o];
  if (task.row_scale != nullptr) value *= task.row_scale[first_row + o];
  value *= token_scale;
  if (task.row_clamp != nullptr) {
    const float2 bounds = task.row_clamp[first_row + o];
    value = fminf(fmaxf(value, bounds.x), bounds.y);
  }
  return value;
}

__device__ void store_portable(const ProductTask& task, const float* sums, int first_row, int first_token) {
  const bool gate_up = task.form == ProductOut::kGateUp;
  const int columns = gate_up ? kOutputs / 2 : kOutputs, all_columns = gate_up ? task.out / 2 : task.out;
  const int first_column = gate_up ? first_row / 2 : first_row;
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * columns / 8; i += kThreads) {
    const int token = first_token + i / (columns / 8), column = i % (columns / 8) * 8;
    if (token >= task.rows || first_column + column >= all_columns) continue;
    const float* row = sums + i / (columns / 8) * kSumStride;
    const float token_scale = task.x_scale != nullptr ? task.x_scale[token] : 1;
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // Slot (column + j) of its group of 16 in product order.
      const int half = column % 16 / 8, ordered = column / 16 * 16 + j / 2 * 4 + half * 2 + j % 2;
      if (gate_up) {
        const int gate = ordered / 8 * 16 + ordered % 8;
        const float product = gelu_tanh(finished(task, row, first_row, gate, token_scale)) *
                              finished(task, row, first_row, gate + 8, token_scale);
        v[j] = fminf(fmaxf(product, task.out_min), task.out_max);
      } else if (task.form == ProductOut::kF32 || task.form == ProductOut::kBF16) {
        v[j] = finished(task, row, first_row, column + j, token_scale);
      } else {
        v[j] = finished(task, row, first_row, ordered, token_scale);
        if (task.form == ProductOut::kGeluTimes) {
          v[j] = gelu_tanh(v[j]) * task.factor[token * task.factor_stride + first_row + ordered];
        }
      }
    }
    if (task.form == ProductOut::kF32) {
      auto* to = reinterpret_cast<float4*>(static_cast<float*>(task.result) + token * task.result_stride +
                                           first_column + column);
      to[0] = {v[0], v[1], v[2], v[3]};
      to[1] = {v[4], v[5], v[6], v[7]};
    } else {
      auto* to =
          static_cast<__nv_bfloat16*>(task.result) + token * task.result_stride + first_column + column;
      *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                                 pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
    }
  }
}

template <ProductKind kKind>
__global__ void __launch_bounds__(kThreads, 2)
    portable_product_kernel(const ProductTask task, const PortableInput input) {
  using Tile = PortableTile<kKind>;
  extern __shared__ __align__(1024) std::byte shared[];
  const uint32_t stages = shared_address(shared);
  const int first_token = static_cast<int>(blockIdx.x) * kTokens,
            first_row = static_cast<int>(blockIdx.y) * kOutputs;
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int outputs_at = warp % 4 * 32, tokens_at = warp / 4 * 64;
  const int n_stages = (task.in + Tile::kStageColumns - 1) / Tile::kStageColumns;

  float d[2][8][4] = {};
  for (int k = 0; k < kStages - 1; ++k) {
    if (k < n_stages) {
      load_stage<Tile>(task, input, stages + k * Tile::kStageBytes, k, first_row / 16, first_token);
    }
    commit_copies();
  }
  for (int k = 0; k < n_stages; ++k) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (k + kStages - 1 < n_stages) {
      load_stage<Tile>(task, input, stages + (k + kStages - 1) % kStages * Tile::kStageBytes, k + kStages - 1,
                       first_row / 16, first_token);
    }
    commit_copies();
    const uint32_t stage = stages + k % kStages * Tile::kStageBytes;
    const uint32_t weights = stage + Tile::kTokenBytes + outputs_at / 16 * Tile::kRowTileBytes;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // two steps of 32 bytes of the tokens' rows
      if (Tile::kFp8 && task.in - k * Tile::kStageColumns < pair * 64 + 64) break;
      uint32_t a[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int s = 0; s < 2; ++s)
          load_fragment<kKind>(weights + m * Tile::kRowTileBytes, pair * 2 + s, a[m][s]);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        uint32_t b[4];
        load_matrices<false>(piece_at(stage, tokens_at + j * 8 + lane % 8, pair * 4 + lane / 8), b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            if constexpr (Tile::kFp8) {
              mma_e4m3(d[m][j], a[m][s], b[2 * s], b[2 * s + 1]);
            } else {
              mma_bf16(d[m][j], a[m][s], b[2 * s], b[2 * s + 1]);
            }
          }
        }
      }
    }
  }

  wait_for_copies<0>();
  __syncthreads();
  auto* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = tokens_at + j * 8 + lane % 4 * 2 + i % 2,
                  output = outputs_at + m * 16 + lane / 4 + i / 2 * 8;
        sums[token * kSumStride + output] = d[m][j][i];
      }
    }
  }
  __syncthreads();
  store_portable(task, sums, first_row, first_token);
}

template <ProductKind kKind>
cudaError_t launch(const PrefillProduct& product, cudaStream_t stream) {
  using Tile = PortableTile<kKind>;
  const cudaError_t ready = cudaFuncSetAttribute(
      portable_product_kernel<kKind>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (ready != cudaSuccess) return ready;
  const ProductTask task = make_task(product, kTokens);
  const PortableInput input{static_cast<const std::byte*>(product.x),
                            product.x_stride * (Tile::kFp8 ? 1 : 2)};
  const dim3 grid(static_cast<unsigned>(task.token_tiles),
                  static_cast<unsigned>((product.weight.out + kOutputs - 1) / kOutputs));
  portable_product_kernel<kKind><<<grid, kThreads, Tile::kSharedBytes, stream>>>(task, input);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_portable_product(const PrefillProduct& product, cudaStream_t stream) {
  if (product.x_scale != nullptr) return launch<ProductKind::kW8A8>(product, stream);
  return product.weight.format == WeightFormat::kF8E4M3 ? launch<ProductKind::kW8A16>(product, stream)
                                                        : launch<ProductKind::kW16A16>(product, stream);
}

}  // namespace jewel::cuda

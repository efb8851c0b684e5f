// What the product kernels share: their arguments and what happens to a finished sum. Included by .cu files
// alone.
#pragma once

#include <algorithm>

#include "backend/cuda/decode_device.h"
#include "backend/cuda/decode_tiles.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "backend/cuda/prefill_ptx.h"
#endif

namespace jewel::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <TileFormat kFormat>
constexpr WgmmaType kWgmmaType = kFormat == TileFormat::kF8E4M3F16 ? WgmmaType::kF16 : WgmmaType::kBF16;
#endif

// Kernels take the kind of their output as a template's argument where what they run is run once: then its
// instructions have to come to the multiprocessor first, and each kind's are few (docs/cuda-decode.md, 30).
// Elsewhere the kind is out_kind.
struct ProductArgs {
  const uint8_t* tiles;
  const float* row_scale;
  int row_tiles;   // n / 16
  int k32;         // k / 32
  int splits;      // parts of K, each by blocks of its own
  int block_rows;  // blocks per part: the stride of a block's row groups
  int rows;
  int n;
  const uint8_t* x;
  XOrder x_order;  // without the type, which the kernels know by their format
  DecodeOut out_kind;
  void* out;
  XOrder out_order;
  float out_scale;
  float x_scale;
  const float* ple;
  int64_t ple_stride;
  float cap;
  float* tile_max;
  bool bulk_x = false;        // x may come by bulk copies: sm_90, in slot order
  bool late_release = false;  // see DecodeProduct
  const uint8_t* ahead = nullptr;
  int64_t ahead_stride = 0;
  int ahead_lines = 0;  // of 128 bytes, at each of ahead_count places
  int ahead_count = 0;
  KeysAhead keys;
};

// Thread `thread` of the block's `threads` asks for its share of what is to be brought into L2.
__device__ __forceinline__ void bring_ahead(const ProductArgs& a, int thread, int threads) {
#pragma unroll 1
  for (int i = static_cast<int>(blockIdx.x) * threads + thread; i < a.ahead_lines * a.ahead_count;
       i += static_cast<int>(gridDim.x) * threads) {
    const uint8_t* line = a.ahead + i / a.ahead_lines * a.ahead_stride + i % a.ahead_lines * 128;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
  }
}

// The same for pages of K and V, one a thread.
__device__ __forceinline__ void bring_keys([[maybe_unused]] const ProductArgs& a, [[maybe_unused]] int thread,
                                           [[maybe_unused]] int threads) {
#if __CUDA_ARCH__ >= 900
  const KeysAhead& k = a.keys;
#pragma unroll 1
  for (int i = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * thread; i < k.pages * a.rows;
       i += static_cast<int>(gridDim.x) * threads) {
    const int row = i / k.pages, position = k.positions[row], slot = k.slots[row];
    const int first = k.window > 0 ? max(0, position - k.window + 1) : 0;
    const int page = (first >> 4) + i % k.pages;
    if (position < 0 || page > position >> 4) continue;
    const int at = k.page_table[int64_t{slot} * k.max_pages + page];
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(k.data + int64_t{at} * k.page_bytes),
                 "r"(k.page_bytes));
  }
#endif
}

constexpr int kRedPitch = 20;  // floats from one activation row to the next: stores without bank conflicts

// Of a finished sum of W's row `row`. A power of two more changes no bit but the exponent's.
__device__ __forceinline__ float row_scale_of(const ProductArgs& a, int row) {
  return a.row_scale == nullptr ? a.x_scale : __fmul_rn(__ldg(a.row_scale + row), a.x_scale);
}

// Scales of the two rows of a tile that a lane of wgmma's sums has.
__device__ __forceinline__ float2 lane_scales(const ProductArgs& a, int row_tile, int lane) {
  const int row = min(row_tile, a.row_tiles - 1) * 16 + lane / 4;
  return {row_scale_of(a, row), row_scale_of(a, row + 8)};
}

// Scales of the one or two rows of a tile that thread `tid` finishes.
__device__ __forceinline__ float2 tile_scales(const ProductArgs& a, DecodeOut kind, int row_tile, int tid) {
  const auto scale_of = [&](int row) { return row_scale_of(a, row); };
  const int row = min(row_tile, a.row_tiles - 1) * 16;
  if (kind == DecodeOut::kGatedUp) return {scale_of(row + tid % 8), scale_of(row + 8 + tid % 8)};
  return {scale_of(row + tid % 16), 0};
}

// The largest of the 16 logits that lanes 16 i .. 16 i + 15 hold, of the step's row `row` and tile row_tile.
// `lanes`: of the warp, that call.
__device__ __forceinline__ void store_largest(const ProductArgs& a, int row, int row_tile, float logit,
                                              unsigned lanes) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) logit = fmaxf(logit, __shfl_xor_sync(lanes, logit, step));
  if (threadIdx.x % 16 == 0) a.tile_max[int64_t{row} * logit_tile_stride(a.n) + row_tile] = logit;
}
// The same of the 8 that lanes of equal t hold, g = 0 .. 7, for kValues values (1, 4 or 8): lane g gets that
// of value g % kValues.
template <int kValues>
__device__ __forceinline__ float largest_of_g(float (&x)[kValues], int g) {
#pragma unroll
  for (int step = 1; step < 8; step *= 2) {
    if (step >= kValues) {
      x[0] = fmaxf(x[0], __shfl_xor_sync(~0u, x[0], 4 * step));
      continue;
    }
    const bool odd = (g & step) != 0;
#pragma unroll
    for (int i = 0; i < kValues; i += 2 * step) {
      const float mine = odd ? x[i + step] : x[i], theirs = odd ? x[i] : x[i + step];
      x[i] = fmaxf(mine, __shfl_xor_sync(~0u, theirs, 4 * step));
    }
  }
  return x[0];
}

__device__ __forceinline__ float capped(float value, float cap) {
  return cap == 0 ? value : __fmul_rn(cap, tanhf(__fdiv_rn(value, cap)));
}
__device__ __forceinline__ float gated(float gate, float up) {
  return __fmul_rn(gelu_tanh(gate), up);
}

// Stores the finished value of `row` and W's row `column` (every kind but kGatedUp).
__device__ __forceinline__ void store_value(const ProductArgs& a, DecodeOut kind, int split, int row,
                                            int column, float value) {
  if (kind == DecodeOut::kF32) {
    static_cast<float*>(a.out)[(static_cast<int64_t>(split) * a.rows + row) * a.n + column] = value;
  } else if (kind == DecodeOut::kGatedPle) {
    static_cast<__nv_bfloat16*>(a.out)[slot_order(row, column, a.rows)] =
        __float2bfloat16_rn(gated(value, __ldcg(a.ple + row * a.ple_stride + column)));
  } else {
    static_cast<float*>(a.out)[static_cast<int64_t>(row) * a.n + column] = capped(value, a.cap);
  }
}
// What kGatedUp stores, in the type of out_order.
__device__ __forceinline__ uint16_t gated_bits(const ProductArgs& a, float gate, float up) {
  const float value = gated(gate, up);
  return is_f16(a.out_order) ? __half_as_ushort(__float2half_rn(__fmul_rn(value, a.out_scale)))
                             : __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void store_gated(const ProductArgs& a, int row, int feature, float gate,
                                            float up) {
  static_cast<uint16_t*>(a.out)[x_index(a.out_order, row, feature, a.rows, a.n / 2)] =
      gated_bits(a, gate, up);
}

// One warp's sums of a row tile, to shared memory [rows][kRedPitch].
template <int kColumnTiles>
__device__ __forceinline__ void stash_sums(float* mine, const float (&acc)[kColumnTiles][4], int rows,
                                           int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const int row = 8 * j + 2 * t;
    if (row >= rows) continue;
    mine[row * kRedPitch + g] = acc[j][0];
    mine[(row + 1) * kRedPitch + g] = acc[j][1];
    mine[row * kRedPitch + g + 8] = acc[j][2];
    mine[(row + 1) * kRedPitch + g + 8] = acc[j][3];
  }
}

// Of the eight warps' sums of a row tile, [warp][warp_rows][kRedPitch], those of (row, column of the tile),
// added in the order of K.
__device__ __forceinline__ float sum_of_runs(const float* sums, int warp_rows, int row, int column) {
  float sum = sums[row * kRedPitch + column];
#pragma unroll
  for (int w = 1; w < kProductWarps; ++w) sum += sums[(w * warp_rows + row) * kRedPitch + column];
  return sum;
}

// The sums of a row tile's runs, then the epilogue; by the kProductThreads threads of a team. The tile's
// activation row 0 is row first_row of the step.
__device__ __forceinline__ void finish_tile(const ProductArgs& a, DecodeOut kind, const float* sums,
                                            int warp_rows, int split, int row_tile, float2 scale, int tid,
                                            int first_row, int rows) {
  const auto sum_at = [&](int row, int i) { return sum_of_runs(sums, warp_rows, row, i); };
  if (kind == DecodeOut::kGatedUp) {
#pragma unroll 1
    for (int i = tid; i < 8 * rows; i += kProductThreads) {
      const int row = i / 8, f = i % 8;
      store_gated(a, first_row + row, row_tile * 8 + f, __fmul_rn(sum_at(row, f), scale.x),
                  __fmul_rn(sum_at(row, f + 8), scale.y));
    }
  } else if (kind == DecodeOut::kLogits) {
#pragma unroll 1
    for (int i = tid; i < 16 * rows; i += kProductThreads) {
      const int row = first_row + i / 16;
      const float logit = capped(__fmul_rn(sum_at(i / 16, i % 16), scale.x), a.cap);
      static_cast<float*>(a.out)[static_cast<int64_t>(row) * a.n + row_tile * 16 + i % 16] = logit;
      const unsigned lanes = 16 * rows - i / 32 * 32 >= 32 ? ~0u : 0xffffu;
      if (a.tile_max != nullptr) store_largest(a, row, row_tile, logit, lanes);
    }
  } else {
#pragma unroll 1
    for (int i = tid; i < 16 * rows; i += kProductThreads) {
      store_value(a, kind, split, first_row + i / 16, row_tile * 16 + i % 16,
                  __fmul_rn(sum_at(i / 16, i % 16), scale.x));
    }
  }
}

// For up to this many rows norms rehearse: there they start well before their input is there.
constexpr int kRehearsedRows = 4;

struct LaunchShape {
  dim3 grid;
  int threads = kProductThreads;
  size_t shared = 0;
  bool overlap = false;
  unsigned cluster = 1;  // blocks
};

template <class... Params>
cudaError_t launch_kernel(void (*kernel)(Params...), const LaunchShape& shape, cudaStream_t stream,
                          Params... params) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed =
      shape.overlap && product_device().dependent_launch ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, params...);
}

// Blocks per split so that `row_groups` are spread evenly over about blocks_per_sm blocks an SM.
inline int blocks_per_split(int row_groups, int splits, int blocks_per_sm) {
  const int resident =
      product_device().sms * blocks_per_sm / splits > 0 ? product_device().sms * blocks_per_sm / splits : 1;
  const int per_block = (row_groups + resident - 1) / resident;
  return (row_groups + per_block - 1) / per_block;
}

// What act.operator()<format>() returns.
template <class Do>
auto with_format(TileFormat format, const Do& act) {
  return format == TileFormat::kF8E4M3      ? act.template operator()<TileFormat::kF8E4M3>()
         : format == TileFormat::kF8E4M3F16 ? act.template operator()<TileFormat::kF8E4M3F16>()
                                            : act.template operator()<TileFormat::kBF16>();
}

// What act.operator()<kind>() returns, for the kinds that products of more than 8 rows have on sm_90.
template <class Do>
auto with_wide_out(DecodeOut kind, const Do& act) {
  return kind == DecodeOut::kGatedUp  ? act.template operator()<DecodeOut::kGatedUp>()
         : kind == DecodeOut::kLogits ? act.template operator()<DecodeOut::kLogits>()
                                      : act.template operator()<DecodeOut::kF32>();
}
// The same for all kinds.
template <class Do>
auto with_out(DecodeOut kind, const Do& act) {
  return kind == DecodeOut::kGatedPle ? act.template operator()<DecodeOut::kGatedPle>()
                                      : with_wide_out(kind, act);
}

// What act.operator()<columns>() returns, for the least columns that wide and spread have for so many rows.
template <class Do>
auto with_columns(int rows, const Do& act) {
  return rows <= 16    ? act.template operator()<16>()
         : rows <= 32  ? act.template operator()<32>()
         : rows <= 64  ? act.template operator()<64>()
         : rows <= 104 ? act.template operator()<104>()
                       : act.template operator()<128>();
}

// A launcher of bool takes the product or returns false where its shape or the device's shared memory is not
// for it.

// decode_product_few.cu: up to 8 rows, K in eight equal runs of 6, 8, 10, 12 or 16 pieces.
bool launch_few_rows(ProductArgs& args, TileFormat format, bool overlap, cudaStream_t stream,
                     cudaError_t& error);

// decode_product_several.cu: more than 8 rows, any shape; each warp a run of K.
cudaError_t launch_several_rows(ProductArgs& args, TileFormat format, bool overlap, cudaStream_t stream);

// decode_product_wide.cu: more than 8 rows on sm_90, x in wide order; only where takes_wide_rows().
bool takes_wide_rows(const TiledWeight& w, int rows);
cudaError_t launch_wide_rows(ProductArgs& args, TileFormat format, bool overlap, cudaStream_t stream);

// decode_product_spread.cu: more than 8 rows on sm_90, x in wide order; only where takes_spread_rows().
bool takes_spread_rows(const TiledWeight& w, int rows);
cudaError_t launch_spread_rows(ProductArgs& args, TileFormat format, bool overlap, cudaStream_t stream);

// decode_product_many.cu: more than 8 rows, K in such runs.
bool launch_many_rows(ProductArgs& args, TileFormat format, bool overlap, cudaStream_t stream,
                      cudaError_t& error);

}  // namespace jewel::cuda

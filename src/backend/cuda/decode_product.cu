// Products of decode rows: which kernel takes which shape, the norm kernel, and the product kernel of up to
// eight rows for shapes that decode_product_few.cu does not take (K not in eight equal runs: small models,
// PLE up).
#include <algorithm>

#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

constexpr int kDepth = 8;  // pieces of 16 x 32 in flight per warp

template <TileFormat kFormat>
size_t any_shape_shared_bytes(const ProductArgs& a) {
  const int k32_of_split = (a.k32 + a.splits - 1) / a.splits;
  return kProductWarps * kDepth * RawPiece<kFormat>::kBytes + size_t{64} * k32_of_split * a.rows +
         2 * kProductWarps * 8 * kRedPitch * sizeof(float);
}

template <TileFormat kFormat>
__global__ __launch_bounds__(kProductThreads) void any_shape_kernel(const __grid_constant__ ProductArgs a) {
  constexpr int kPiece = RawPiece<kFormat>::kBytes;
  constexpr int kRedFloats = kProductWarps * 8 * kRedPitch;
  extern __shared__ __align__(128) uint8_t shared[];
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  release_next_kernel();
  float* red = reinterpret_cast<float*>(shared + kProductWarps * kDepth * kPiece);
  uint8_t* x_shared = reinterpret_cast<uint8_t*>(red + 2 * kRedFloats);

  // This warp's pieces: [k_begin, k_begin + steps) of K, the same in every row tile.
  const int split = static_cast<int>(blockIdx.x) % a.splits,
            first_tile = static_cast<int>(blockIdx.x) / a.splits;
  const int split_begin = split * a.k32 / a.splits, length = (split + 1) * a.k32 / a.splits - split_begin;
  const int run_begin = warp * length / kProductWarps;
  const int steps = (warp + 1) * length / kProductWarps - run_begin;
  const int k_begin = split_begin + run_begin;

  uint8_t* ring = shared + warp * kDepth * kPiece + lane * 16;
  int copy_tile = first_tile, copy_step = 0;
  const auto copy_next = [&](int slot) {
    if (copy_tile < a.row_tiles && steps > 0) {
      const uint8_t* from =
          a.tiles + (static_cast<int64_t>(copy_tile) * a.k32 + k_begin + copy_step) * kPiece + lane * 16;
#pragma unroll
      for (int i = 0; i < kPiece; i += 512) copy_async_16(shared_address(ring) + slot * kPiece + i, from + i);
      if (++copy_step == steps) copy_step = 0, copy_tile += a.block_rows;
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kDepth; ++i) copy_next(i);
  float2 scale = tile_scales(a, a.out_kind, first_tile, tid);

  wait_for_last_kernel();
  const int count = steps * a.rows * 4;  // of 16 bytes: a warp copies what it will read
  uint4* to = reinterpret_cast<uint4*>(x_shared) + static_cast<int64_t>(run_begin) * a.rows * 4;
  const uint4* from = reinterpret_cast<const uint4*>(a.x) + static_cast<int64_t>(k_begin) * a.rows * 4;
  for (int i = lane; i < count; i += 32) {
    if (a.x_order == XOrder::kSlots) {
      to[i] = __ldcg(from + i);
    } else {
      const int part = i % 4, row = i / 4 % a.rows, step = i / 4 / a.rows;
      const uint2* natural = reinterpret_cast<const uint2*>(
          a.x + (static_cast<int64_t>(row) * a.k32 + k_begin + step) * 64 + part * 8);
      to[i] = slots_from_natural(__ldcg(natural), __ldcg(natural + 4));
    }
  }
  __syncwarp();
  const uint8_t* x_lane = x_shared + run_begin * a.rows * 64 + min(g, a.rows - 1) * 64 + t * 16;

  int slot = 0, buffer = 0;
  for (int row_tile = first_tile; row_tile < a.row_tiles; row_tile += a.block_rows) {
    float acc[1][4] = {};
    for (int step = 0; step < steps; ++step) {
      wait_for_copies<kDepth - 1>();
      const uint4 b = *reinterpret_cast<const uint4*>(x_lane + step * a.rows * 64);
      const TileA tile = read_piece<kFormat>(ring + slot * kPiece);
      multiply_piece<kFormat>(acc[0], tile, b);
      copy_next(slot);
      slot = slot + 1 == kDepth ? 0 : slot + 1;
    }
    float* sums = red + buffer * kRedFloats;
    stash_sums<1>(sums + warp * 8 * kRedPitch, acc, a.rows, lane);
    __syncthreads();
    finish_tile(a, a.out_kind, sums, 8, split, row_tile, scale, tid, 0, a.rows);
    scale = tile_scales(a, a.out_kind, row_tile + a.block_rows, tid);
    buffer ^= 1;  // the next barrier is also the one that frees this buffer
  }
}

constexpr size_t kNormStatic = sizeof(float) * (kNormScratch + 2 * kMaxHidden);

__global__ __launch_bounds__(kProductThreads) void residual_norm_kernel(
    const __grid_constant__ DecodeNorm norm, int rows, int hidden, uint8_t* x, XOrder x_order,
    bool rehearse) {
  __shared__ __align__(16) float scratch[kNormScratch];
  __shared__ __align__(16) float weights[2 * kMaxHidden];
  static_assert(sizeof scratch + sizeof weights == kNormStatic);
  const int row = static_cast<int>(blockIdx.x);
  if (!rehearse) release_next_kernel();
  fetch_norm_weights(norm, hidden, weights);
  commit_copies();
  if (norm.y == nullptr) wait_for_copies<0>();
  // The weights are waited for when all rows are asked for: a block that starts late has to wait for both.
  const auto load_y = [&](int part, float4(&y)[kNormVectors]) {
    load_row(norm.y, part * rows + row, hidden, y);
    if (part + 1 == norm.y_parts) wait_for_copies<0>();
  };
  const auto store = [&](int column, const float4& values) {
    if (x != nullptr) store_four(x, x_order, row, column, rows, values);
  };
  // What a rehearsal computes from inputs that are not there yet is dropped. It brings the code to the
  // multiprocessor, which few kernels but this one's have run on, while there is nothing to do but wait.
#pragma unroll 1
  for (bool real = !rehearse;; real = true) {
    if (real) {
      if (rehearse) release_next_kernel();  // whose weights would stand in the rehearsal's way
      wait_for_last_kernel();
    }
    float4 h[kNormVectors];
    load_row(norm.h, row, hidden, h);
    residual_norm_row(norm, weights, h, row, hidden, scratch, real, load_y, store);
    if (real) break;
    __syncthreads();
  }
}

template <TileFormat kFormat>
bool launch_any_shape(ProductArgs& a, bool overlap, cudaStream_t stream, cudaError_t& error) {
  const size_t bytes = any_shape_shared_bytes<kFormat>(a);
  if (a.rows > 8 || bytes > static_cast<size_t>(product_device().shared_per_block)) return false;
  const auto kernel = any_shape_kernel<kFormat>;
  const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   product_device().shared_per_block);
  a.block_rows = blocks_per_split(a.row_tiles, a.splits, 3);
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(a.block_rows * a.splits)), .shared = bytes, .overlap = overlap};
  error = allowed != cudaSuccess ? allowed : launch_kernel<ProductArgs>(kernel, shape, stream, a);
  return true;
}

// Matrices of few rows are better off with one block a row tile (decode_product_several.cu).
bool many_for(const ProductArgs& a) {
  return a.row_tiles * a.splits >= 100;
}

cudaError_t dispatch(ProductArgs& a, TileFormat format, bool overlap, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (launch_few_rows(a, format, overlap, stream, error)) return error;
  if (with_format(format, [&]<TileFormat kFormat>() {
        return launch_any_shape<kFormat>(a, overlap, stream, error);
      })) {
    return error;
  }
  if (a.rows > 8 && many_for(a) && launch_many_rows(a, format, overlap, stream, error)) return error;
  return launch_several_rows(a, format, overlap, stream);
}

}  // namespace

const Device& product_device() {
  static const Device d = [] {
    Device found;
    int id = 0, major = 0;
    cudaGetDevice(&id);
    cudaDeviceGetAttribute(&found.sms, cudaDevAttrMultiProcessorCount, id);
    cudaDeviceGetAttribute(&found.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    found.dependent_launch = major >= 9;
    found.wgmma = major == 9;
    return found;
  }();
  return d;
}

XOrder x_order_of(const TiledWeight& w, int rows, bool portable) {
  const bool wide = !portable && (takes_wide_rows(w, rows) || takes_spread_rows(w, rows));
  if (w.format == TileFormat::kF8E4M3F16) return wide ? XOrder::kWideF16 : XOrder::kSlotsF16;
  return wide ? XOrder::kWide : XOrder::kSlots;
}

cudaError_t launch_decode_norm(const DecodeNorm& norm, int rows, int hidden, void* x, XOrder x_order,
                               bool overlap, cudaStream_t stream) {
  if (hidden > kMaxHidden || hidden % 4 != 0 || rows < 1) return cudaErrorInvalidValue;
  LaunchShape shape{.grid = dim3(static_cast<unsigned>(rows)), .overlap = overlap};
  // With fewer rows the blocks would wait too long for so much room.
  const bool update = norm.pre_norm == nullptr;
  if (overlap && product_device().wgmma && rows > (update ? 32 : 8)) {
    shape.shared = (update ? kUpdateShared : kNormShared) - kNormStatic;
    const cudaError_t allowed = cudaFuncSetAttribute(
        residual_norm_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared));
    if (allowed != cudaSuccess) return allowed;
  }
  return launch_kernel<DecodeNorm, int, int, uint8_t*, XOrder, bool>(
      residual_norm_kernel, shape, stream, norm, rows, hidden, static_cast<uint8_t*>(x), x_order,
      overlap && !update && rows <= kRehearsedRows);
}

cudaError_t launch_decode_product(const DecodeProduct& p, cudaStream_t stream) {
  if (p.rows < 1 || p.rows > kMaxDecodeRows || p.w.n % 16 != 0 || p.w.k % 64 != 0)
    return cudaErrorInvalidValue;
  if (p.tile_max != nullptr && p.rows > kTileMaxRows) return cudaErrorInvalidValue;
  const bool overlap = p.overlap && !p.portable;
  ProductArgs args{.tiles = static_cast<const uint8_t*>(p.w.tiles),
                   .row_scale = p.w.row_scale,
                   .row_tiles = p.w.n / 16,
                   .k32 = p.w.k / 32,
                   .splits = product_splits(p.w.k),
                   .block_rows = 0,
                   .rows = p.rows,
                   .n = p.w.n,
                   .x = static_cast<const uint8_t*>(p.x),
                   .x_order = p.x_order,
                   .out_kind = p.out_kind,
                   .out = p.out,
                   .out_order = p.out_order,
                   .out_scale = p.out_scale,
                   .x_scale = p.w.x_scale,
                   .ple = p.ple,
                   .ple_stride = p.ple_stride,
                   .cap = p.cap,
                   .tile_max = p.tile_max,
                   .late_release = p.late_release,
                   .ahead = static_cast<const uint8_t*>(p.ahead.from),
                   .ahead_stride = p.ahead.stride,
                   .ahead_lines = p.ahead.bytes / 128,
                   .ahead_count = p.ahead.count,
                   .keys = p.keys};
  if (p.x == nullptr) {
    args.x_order = x_order_of(p.w, p.rows, p.portable);
    const cudaError_t error =
        launch_decode_norm(p.norm, p.rows, p.w.k, p.x_scratch, args.x_order, overlap, stream);
    if (error != cudaSuccess) return error;
    args.x = static_cast<const uint8_t*>(p.x_scratch);
  }
  if (is_f16(args.x_order) != (p.w.format == TileFormat::kF8E4M3F16)) return cudaErrorInvalidValue;
  if (is_f16(args.x_order)) args.x_order = is_wide(args.x_order) ? XOrder::kWide : XOrder::kSlots;
  args.bulk_x = args.x_order == XOrder::kSlots && !p.portable && product_device().dependent_launch;
  if (args.x_order == XOrder::kWide) {
    return takes_wide_rows(p.w, p.rows)     ? launch_wide_rows(args, p.w.format, overlap, stream)
           : takes_spread_rows(p.w, p.rows) ? launch_spread_rows(args, p.w.format, overlap, stream)
                                            : cudaErrorInvalidValue;
  }
  return dispatch(args, p.w.format, overlap, stream);
}

}  // namespace jewel::cuda

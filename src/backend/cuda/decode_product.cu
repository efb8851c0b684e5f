// The product kernel of decode rows. A block owns row groups (kRowTiles tiles of 16 rows of W), one after
// another; its eight warps share K, each streaming its run of 16 x 32 pieces through a private ring in shared
// memory (a lane reads only what it copied itself, so the ring needs no barrier), eight rows of activations
// per tensor-core column group. Bytes: W once; the ring is filled before the wait for the kernel ahead, so
// that a dependency costs no memory time up to the ring's size (80 KB a block at one row).
#include <algorithm>

#include "backend/cuda/decode_tiles.h"

namespace jewel::cuda {
namespace {

constexpr int kRedPitch = 20;  // floats from one activation row to the next: stores without bank conflicts
constexpr int kRings = 10;     // copy groups in flight per warp

struct Args {
  const uint8_t* tiles;
  const float* row_scale;
  int row_tiles;   // n / 16
  int k32;         // k / 32
  int splits;      // parts of K
  int block_rows;  // row groups stride: blocks per split
  int rows;
  int n;
  const uint8_t* x;
  XOrder x_order;
  ResidualNorm norm;
  ProductOut out_kind;
  void* out;
  const float* ple;
  int64_t ple_stride;
  float cap;
};

template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kNormRows, bool kGlobalX>
struct Kernel {
  static constexpr int kPieceBytes = kFormat == TileFormat::kF8E4M3 ? 512 : 1024;  // a 16 x 32 piece of W
  static constexpr int kSteps = kRowTiles == 1 && kFormat == TileFormat::kF8E4M3 ? 2 : 1;  // of k32 per group
  static constexpr int kGroupBytes = kSteps * kRowTiles * kPieceBytes;
  static constexpr int kDepth = kRowTiles == 4 ? (kFormat == TileFormat::kF8E4M3 ? 5 : 3) : kRings;
  static constexpr int kRingBytes = kDepth * kGroupBytes;  // per warp
  static constexpr int kRedBuffers = kColumnTiles <= 2 ? 2 : 1;
  static constexpr int kRedFloats = kProductWarps * 8 * kColumnTiles * kRedPitch;

  static size_t shared_bytes(int k32_of_split, int rows) {
    return kProductWarps * kRingBytes + kRedBuffers * kRedFloats * sizeof(float) +
           (kGlobalX ? 0 : size_t{64} * k32_of_split * rows) + 2 * kProductWarps * (kNormRows + 1) * sizeof(float);
  }
};

template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kNormRows, bool kGlobalX>
__global__ __launch_bounds__(kProductThreads) void product_kernel(const __grid_constant__ Args a) {
  using K = Kernel<kFormat, kColumnTiles, kRowTiles, kNormRows, kGlobalX>;
  extern __shared__ __align__(128) uint8_t shared[];
  release_next_kernel();
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
  float* red = reinterpret_cast<float*>(shared + kProductWarps * K::kRingBytes);
  float* scratch = red + K::kRedBuffers * K::kRedFloats;
  uint8_t* x_shared = reinterpret_cast<uint8_t*>(scratch + 2 * kProductWarps * (kNormRows + 1));

  // This warp's pieces: [k_begin, k_begin + steps) of K, the same in every row group.
  const int split = static_cast<int>(blockIdx.x) % a.splits, first_group = static_cast<int>(blockIdx.x) / a.splits;
  const int split_begin = split * a.k32 / a.splits, split_end = (split + 1) * a.k32 / a.splits;
  const int length = split_end - split_begin;
  const int run_begin = warp * length / kProductWarps;
  const int steps = (warp + 1) * length / kProductWarps - run_begin;
  const int k_begin = split_begin + run_begin;
  const int row_groups = (a.row_tiles + kRowTiles - 1) / kRowTiles;

  // The copying side of the ring.
  const uint32_t ring = shared_address(shared) + static_cast<uint32_t>(warp * K::kRingBytes + lane * 16);
  int copy_group = first_group, copy_step = 0;
  uint32_t copy_slot = 0;
  const auto copy_next = [&] {
    if (copy_group < row_groups && steps > 0) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int row_tile = min(copy_group * kRowTiles + r, a.row_tiles - 1);
        const uint8_t* from = a.tiles +
                              (static_cast<int64_t>(row_tile) * a.k32 + k_begin + copy_step) * K::kPieceBytes +
                              lane * 16;
#pragma unroll
        for (int u = 0; u < K::kSteps; ++u) {
          if (copy_step + u >= steps) continue;
          const uint32_t to = ring + copy_slot + static_cast<uint32_t>((u * kRowTiles + r) * K::kPieceBytes);
          copy_async_16(to, from + u * K::kPieceBytes);
          if constexpr (kFormat == TileFormat::kBF16) copy_async_16(to + 512, from + u * K::kPieceBytes + 512);
        }
      }
      copy_step += K::kSteps;
      if (copy_step >= steps) {
        copy_step = 0;
        copy_group += a.block_rows;
      }
      copy_slot = copy_slot + K::kGroupBytes == K::kRingBytes ? 0 : copy_slot + K::kGroupBytes;
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < K::kDepth; ++i) copy_next();

  // Scales of the rows that this thread will finish.
  const auto scale_of = [&](int row) { return a.row_scale == nullptr ? 1.0f : __ldg(a.row_scale + row); };
  float scale[kRowTiles][2];
  const auto fetch_scales = [&](int group) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int row = min(group * kRowTiles + r, a.row_tiles - 1) * 16;
      scale[r][0] = scale_of(row + (a.out_kind == ProductOut::kGatedUp ? tid % 8 : tid % 16));
      if (a.out_kind == ProductOut::kGatedUp) scale[r][1] = scale_of(row + 8 + tid % 8);
    }
  };
  fetch_scales(first_group);

  // The input.
  if constexpr (kNormRows > 0) {
    NormWeights w;
    fetch_norm_weights(a.norm, a.k32 * 32, w);
    wait_for_last_kernel();
    residual_norm_rows<kNormRows>(a.norm, w, 0, a.rows, a.rows, a.k32 * 32, blockIdx.x == 0, scratch,
                                  [&](int row, int column, uint2 values) {
                                    *reinterpret_cast<uint2*>(x_shared + slot_bytes(row, column, a.rows)) = values;
                                  });
    __syncthreads();
  } else {
    wait_for_last_kernel();
    if constexpr (!kGlobalX) {
      // 16 bytes of slot order at a time; a warp copies what it will read.
      const int count = steps * a.rows * 4;
      uint4* to = reinterpret_cast<uint4*>(x_shared) + static_cast<int64_t>(run_begin) * a.rows * 4;
      if (a.x_order == XOrder::kSlots) {
        const uint4* from = reinterpret_cast<const uint4*>(a.x) + static_cast<int64_t>(k_begin) * a.rows * 4;
#pragma unroll 4
        for (int i = lane; i < count; i += 32) to[i] = __ldcg(from + i);
      } else {
#pragma unroll 4
        for (int i = lane; i < count; i += 32) {
          const int part = i % 4, row = i / 4 % a.rows, step = i / 4 / a.rows;
          const uint2* from = reinterpret_cast<const uint2*>(
              a.x + (static_cast<int64_t>(row) * a.k32 + k_begin + step) * 64 + part * 8);
          to[i] = slots_from_natural(__ldcg(from), __ldcg(from + 4));
        }
      }
      __syncwarp();
    }
  }

  // Where this lane's part of the B operand stands, for each group of eight rows.
  int64_t x_offset[kColumnTiles];
#pragma unroll
  for (int j = 0; j < kColumnTiles; ++j) {
    const int row = min(8 * j + g, a.rows - 1);
    x_offset[j] = a.x_order == XOrder::kSlots || !kGlobalX ? row * 64 + t * 16
                                                             : static_cast<int64_t>(row) * a.k32 * 64 + t * 8;
  }
  const auto load_b = [&](int step, int j) -> uint4 {
    if constexpr (!kGlobalX) {
      return *reinterpret_cast<const uint4*>(x_shared + (run_begin + step) * a.rows * 64 +
                                             static_cast<int>(x_offset[j]));
    } else if (a.x_order == XOrder::kSlots) {
      return *reinterpret_cast<const uint4*>(a.x + static_cast<int64_t>(k_begin + step) * a.rows * 64 + x_offset[j]);
    } else {
      const uint2* from = reinterpret_cast<const uint2*>(a.x + static_cast<int64_t>(k_begin + step) * 64 + x_offset[j]);
      return slots_from_natural(from[0], from[4]);
    }
  };

  uint32_t slot = 0;
  int buffer = 0;
  for (int group = first_group; group < row_groups; group += a.block_rows) {
    float acc[kRowTiles][kColumnTiles][4] = {};
    for (int step = 0; step < steps; step += K::kSteps) {
      wait_for_copies<K::kDepth - 1>();
#pragma unroll
      for (int u = 0; u < K::kSteps; ++u) {
        if (step + u >= steps) continue;
        uint4 b[kColumnTiles <= 8 ? kColumnTiles : 1];
        if constexpr (kColumnTiles <= 8) {
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) b[j] = load_b(step + u, j);
        }
        TileA tile[kRowTiles];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const uint8_t* piece = shared + warp * K::kRingBytes + slot + (u * kRowTiles + r) * K::kPieceBytes + lane * 16;
          const uint4 s0 = *reinterpret_cast<const uint4*>(piece);
          if constexpr (kFormat == TileFormat::kF8E4M3) {
            tile[r] = tile_from_f8(s0);
          } else {
            tile[r] = tile_from_bf16(s0, *reinterpret_cast<const uint4*>(piece + 512));
          }
        }
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) {
          uint4 bj;
          if constexpr (kColumnTiles <= 8) {
            bj = b[j];
          } else {
            bj = load_b(step + u, j);
          }
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) {
            multiply_add(acc[r][j], tile[r].r[0], bj.x, bj.y);
            multiply_add(acc[r][j], tile[r].r[1], bj.z, bj.w);
          }
        }
      }
      copy_next();
      slot = slot + K::kGroupBytes == K::kRingBytes ? 0 : slot + K::kGroupBytes;
    }

#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      float* sums = red + buffer * K::kRedFloats;
      float* mine = sums + warp * 8 * kColumnTiles * kRedPitch;
#pragma unroll
      for (int j = 0; j < kColumnTiles; ++j) {
        const int row = 8 * j + 2 * t;
        if (row >= a.rows) continue;
        mine[row * kRedPitch + g] = acc[r][j][0];
        mine[(row + 1) * kRedPitch + g] = acc[r][j][1];
        mine[row * kRedPitch + g + 8] = acc[r][j][2];
        mine[(row + 1) * kRedPitch + g + 8] = acc[r][j][3];
      }
      __syncthreads();
      const auto sum_at = [&](int row, int i) {
        float sum = sums[row * kRedPitch + i];
#pragma unroll
        for (int w = 1; w < kProductWarps; ++w) sum += sums[(w * 8 * kColumnTiles + row) * kRedPitch + i];
        return sum;
      };
      const int row_tile = group * kRowTiles + r;
      if (row_tile < a.row_tiles) {
        if (a.out_kind == ProductOut::kGatedUp) {
          for (int i = tid; i < 8 * a.rows; i += kProductThreads) {
            const int row = i / 8, f = i % 8;
            const float gate = sum_at(row, f) * scale[r][0], up = sum_at(row, f + 8) * scale[r][1];
            static_cast<__nv_bfloat16*>(a.out)[slot_order(row, row_tile * 8 + f, a.rows)] =
                __float2bfloat16_rn(gelu_tanh(gate) * up);
          }
        } else {
          for (int i = tid; i < 16 * a.rows; i += kProductThreads) {
            const int row = i / 16, column = row_tile * 16 + i % 16;
            const float value = sum_at(row, i % 16) * scale[r][0];
            if (a.out_kind == ProductOut::kF32) {
              static_cast<float*>(a.out)[(static_cast<int64_t>(split) * a.rows + row) * a.n + column] = value;
            } else if (a.out_kind == ProductOut::kGatedPle) {
              static_cast<__nv_bfloat16*>(a.out)[slot_order(row, column, a.rows)] =
                  __float2bfloat16_rn(gelu_tanh(value) * __ldcg(a.ple + row * a.ple_stride + column));
            } else {
              static_cast<float*>(a.out)[static_cast<int64_t>(row) * a.n + column] =
                  a.cap == 0 ? value : a.cap * tanhf(value / a.cap);
            }
          }
        }
      }
      if constexpr (K::kRedBuffers == 2) {
        buffer ^= 1;
      } else {
        __syncthreads();
      }
    }
    if (group + a.block_rows < row_groups) fetch_scales(group + a.block_rows);
  }
}

__global__ __launch_bounds__(kProductThreads) void residual_norm_kernel(const __grid_constant__ ResidualNorm norm,
                                                                        int rows, int hidden, uint8_t* x) {
  __shared__ float scratch[2 * kProductWarps];
  release_next_kernel();
  NormWeights w;
  fetch_norm_weights(norm, hidden, w);
  wait_for_last_kernel();
  residual_norm_rows<1>(norm, w, static_cast<int>(blockIdx.x), 1, rows, hidden, true, scratch,
                        [&](int row, int column, uint2 values) {
                          if (x != nullptr) *reinterpret_cast<uint2*>(x + slot_bytes(row, column, rows)) = values;
                        });
}

struct Device {
  int sms = 0;
  int shared_per_block = 0;
  bool dependent_launch = false;
};

const Device& device() {
  static const Device d = [] {
    Device found;
    int id = 0, major = 0;
    cudaGetDevice(&id);
    cudaDeviceGetAttribute(&found.sms, cudaDevAttrMultiProcessorCount, id);
    cudaDeviceGetAttribute(&found.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    found.dependent_launch = major >= 9;
    return found;
  }();
  return d;
}

struct Overlap {
  cudaLaunchAttribute attribute{};
  explicit Overlap(bool on) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = on ? 1 : 0;
  }
};

template <TileFormat kFormat, int kColumnTiles, int kRowTiles, int kNormRows, bool kGlobalX>
cudaError_t launch(Args& args, bool overlap, int blocks_per_sm, cudaStream_t stream) {
  using K = Kernel<kFormat, kColumnTiles, kRowTiles, kNormRows, kGlobalX>;
  const auto kernel = product_kernel<kFormat, kColumnTiles, kRowTiles, kNormRows, kGlobalX>;
  const size_t shared = K::shared_bytes((args.k32 + args.splits - 1) / args.splits, args.rows);
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device().shared_per_block);
  if (allowed != cudaSuccess) return allowed;
  // As many blocks as are resident together, every one with the same number of row groups.
  const int groups = (args.row_tiles + kRowTiles - 1) / kRowTiles;
  const int resident = std::max(1, device().sms * blocks_per_sm / args.splits);
  const int per_block = (groups + resident - 1) / resident;
  args.block_rows = (groups + per_block - 1) / per_block;
  const Overlap attribute(overlap && device().dependent_launch);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.block_rows * args.splits));
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = const_cast<cudaLaunchAttribute*>(&attribute.attribute);
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args);
}

constexpr int kFusedNormRows = 4;

template <TileFormat kFormat>
cudaError_t dispatch(Args& a, bool norm, bool overlap, cudaStream_t stream) {
  const bool big = a.row_tiles >= 512;
  const int per_sm = a.row_tiles * a.splits <= 320 ? 3 : 1;
  if (norm) {
    if (a.rows == 1) return launch<kFormat, 1, 1, 1, false>(a, overlap, per_sm, stream);
    if (a.rows == 2) return launch<kFormat, 1, 1, 2, false>(a, overlap, per_sm, stream);
    return launch<kFormat, 1, 1, 4, false>(a, overlap, per_sm, stream);
  }
  if (a.rows <= 8) return launch<kFormat, 1, 1, 0, false>(a, overlap, per_sm, stream);
  if (a.rows <= 16) return launch<kFormat, 2, 1, 0, true>(a, overlap, per_sm, stream);
  if (a.rows <= 32) {
    return big ? launch<kFormat, 4, 4, 0, true>(a, overlap, 1, stream) : launch<kFormat, 4, 2, 0, true>(a, overlap, 1, stream);
  }
  if (a.rows <= 64) {
    return big ? launch<kFormat, 8, 4, 0, true>(a, overlap, 1, stream) : launch<kFormat, 8, 2, 0, true>(a, overlap, 1, stream);
  }
  return big ? launch<kFormat, 16, 2, 0, true>(a, overlap, 1, stream) : launch<kFormat, 16, 1, 0, true>(a, overlap, 1, stream);
}

}  // namespace

cudaError_t launch_residual_norm(const ResidualNorm& norm, int rows, int hidden, void* x, bool overlap,
                                 cudaStream_t stream) {
  if (hidden > kMaxHidden || hidden % 4 != 0 || rows < 1) return cudaErrorInvalidValue;
  const Overlap attribute(overlap && device().dependent_launch);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(rows));
  config.blockDim = dim3(kProductThreads);
  config.stream = stream;
  config.attrs = const_cast<cudaLaunchAttribute*>(&attribute.attribute);
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, residual_norm_kernel, norm, rows, hidden, static_cast<uint8_t*>(x));
}

cudaError_t launch_decode_product(const DecodeProduct& p, cudaStream_t stream) {
  if (p.rows < 1 || p.rows > kMaxDecodeRows || p.w.n % 16 != 0 || p.w.k % 32 != 0) return cudaErrorInvalidValue;
  const bool overlap = p.overlap && !p.portable;
  const bool fused = p.x == nullptr && p.rows <= kFusedNormRows;
  const void* x = p.x;
  XOrder order = p.x_order;
  if (p.x == nullptr && !fused) {
    const cudaError_t e = launch_residual_norm(p.norm, p.rows, p.w.k, p.x_scratch, overlap, stream);
    if (e != cudaSuccess) return e;
    x = p.x_scratch;
    order = XOrder::kSlots;
  }
  if (fused && p.w.k > kMaxHidden) return cudaErrorInvalidValue;
  Args args{.tiles = static_cast<const uint8_t*>(p.w.tiles),
            .row_scale = p.w.row_scale,
            .row_tiles = p.w.n / 16,
            .k32 = p.w.k / 32,
            .splits = product_splits(p.w.k),
            .block_rows = 0,
            .rows = p.rows,
            .n = p.w.n,
            .x = static_cast<const uint8_t*>(x),
            .x_order = order,
            .norm = p.norm,
            .out_kind = p.out_kind,
            .out = p.out,
            .ple = p.ple,
            .ple_stride = p.ple_stride,
            .cap = p.cap};
  return p.w.format == TileFormat::kF8E4M3 ? dispatch<TileFormat::kF8E4M3>(args, fused, overlap, stream)
                                           : dispatch<TileFormat::kBF16>(args, fused, overlap, stream);
}

}  // namespace jewel::cuda

// Block `rank` of the cluster computes 16 of the 256 gated values (its warps share K in eight runs, as in
// decode_product_few.cu) and sends them to all; then 1/16 of the columns of up, which go to the block that
// norms the row they belong to: row r is block r's. Weights are in registers before the input is there.
#include "backend/cuda/decode_ple.h"

#include "backend/cuda/cluster.h"
#include "backend/cuda/decode_product_args.h"

namespace jewel::cuda {
namespace {

constexpr int kBlocks = 16;
constexpr int kWidth = 256;             // of the per-layer inputs
constexpr int kUpPieces = kWidth / 32;  // of 32 columns: one a warp
constexpr int kPieceBytes = 1024;       // 16 x 32 of W in BF16
static_assert(kWidth == 16 * kBlocks && kUpPieces == kProductWarps);

struct PleArgs {
  const uint8_t* gate;
  const uint8_t* up;
  const uint8_t* x;
  int rows;
  const float* ple;
  int64_t ple_stride;
  DecodeNorm norm;
  uint8_t* x_out;
  XOrder x_out_order;
};

// hidden = 256 kParts: kParts pieces of K a warp for gate, kParts row tiles a block for up.
template <int kParts>
struct Ple {
  static constexpr int kHidden = 256 * kParts;
  static constexpr int kK32 = kHidden / 32;

  // Places in shared memory, in bytes.
  int x, mid, sums, y, weights, scratch, barriers, bytes;
  __host__ __device__ explicit Ple(int rows) {
    const int red_rows = rows + rows % 2;
    x = 0;
    mid = x + kK32 * 64 * rows;
    sums = mid + kUpPieces * 64 * rows;
    y = sums + kParts * kProductWarps * red_rows * kRedPitch * 4;
    weights = y + kHidden * 4;
    scratch = weights + 2 * kHidden * 4;
    barriers = scratch + kNormScratch * 4;
    bytes = barriers + 32;
  }
};

template <int kTiles>
__device__ __forceinline__ void load_tiles(const uint8_t* from, int64_t stride, uint4 (&raw)[kTiles][2]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    raw[i][0] = load_once(from + i * stride);
    raw[i][1] = load_once(from + i * stride + 512);
  }
}
template <int kTiles>
__device__ __forceinline__ void convert_tiles(const uint4 (&raw)[kTiles][2], TileA (&tiles)[kTiles]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) tiles[i] = tile_from_bf16(raw[i][0], raw[i][1]);
  convert_here(tiles);
}

// The residual update of this block's row with the y that all blocks sent, and the norm of what follows.
template <int kParts>
__device__ __forceinline__ void norm_row(const PleArgs& a, const Ple<kParts>& at, uint8_t* shared,
                                         float4 (&h)[kNormVectors], bool keep) {
  constexpr int kHidden = Ple<kParts>::kHidden;
  const int tid = static_cast<int>(threadIdx.x), row = static_cast<int>(blockIdx.x);
  const auto load_y = [&](int, float4(&out)[kNormVectors]) {
#pragma unroll
    for (int v = 0; v < kNormVectors; ++v) {
      const int i = v * kProductThreads + tid;
      out[v] = 4 * i < kHidden ? reinterpret_cast<const float4*>(shared + at.y)[i] : float4{0, 0, 0, 0};
    }
  };
  residual_norm_row(a.norm, reinterpret_cast<const float*>(shared + at.weights), h, row, kHidden,
                    reinterpret_cast<float*>(shared + at.scratch), keep, load_y,
                    [&](int column, const float4& values) {
                      if (a.x_out == nullptr) return;
                      store_four(a.x_out, a.x_out_order, row, column, a.rows, values);
                    });
}

template <int kParts>
__global__ __launch_bounds__(kProductThreads, 1) void ple_kernel(const __grid_constant__ PleArgs a) {
  using P = Ple<kParts>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int rank = static_cast<int>(blockIdx.x);
  const P at(a.rows);
  const int red_rows = a.rows + a.rows % 2;
  uint8_t* mid = shared + at.mid;
  float* sums = reinterpret_cast<float*>(shared + at.sums);
  const float* y = reinterpret_cast<const float*>(shared + at.y);
  float* weights = reinterpret_cast<float*>(shared + at.weights);
  const uint8_t* barriers = shared + at.barriers;
  const uint32_t x_arrived = shared_address(barriers), mid_arrived = x_arrived + 8,
                 y_arrived = x_arrived + 16;
  const int x_bytes = P::kK32 * 64 * a.rows;
  const bool norms = rank < a.rows;
  if (tid == 0) {
    for (int i = 0; i < 3; ++i) start_barrier(x_arrived + 8 * i);
    expect_bulk(static_cast<uint32_t>(x_bytes), x_arrived);
    expect_bulk(static_cast<uint32_t>(2 * kWidth * a.rows), mid_arrived);
    if (norms) expect_bulk(4 * P::kHidden, y_arrived);
  }
  cluster_arrive();

  uint4 raw_gate[kParts][2], raw_up[kParts][2];
  load_tiles(a.gate + (static_cast<int64_t>(rank) * P::kK32 + warp * kParts) * kPieceBytes + lane * 16,
             kPieceBytes, raw_gate);
  load_tiles(a.up + (static_cast<int64_t>(rank) * kParts * kUpPieces + warp) * kPieceBytes + lane * 16,
             kUpPieces * kPieceBytes, raw_up);
  if (norms) {
    for (int i = tid; 4 * i < P::kHidden; i += kProductThreads) {
      copy_async_16(shared_address(weights + 4 * i), a.norm.post_norm + 4 * i);
      if (a.norm.pre_norm != nullptr)
        copy_async_16(shared_address(weights + P::kHidden + 4 * i), a.norm.pre_norm + 4 * i);
    }
  }
  commit_copies();
  const int b_lane = min(lane / 4, a.rows - 1) * 64 + lane % 4 * 16;
  wait_for_copies<0>();
  // A rehearsal of the norm with numbers that are not there yet comes first; what it finds is dropped. See
  // residual_norm_kernel().
#pragma unroll 1
  for (bool real = a.rows > kRehearsedRows;; real = true) {
    float4 h[kNormVectors] = {};
    if (real) {
      TileA gate[kParts], up[kParts];
      convert_tiles(raw_gate, gate);
      convert_tiles(raw_up, up);
      release_next_kernel();
      wait_for_last_kernel();
      if (tid == 0) fetch_bulk(shared_address(shared + at.x), a.x, static_cast<uint32_t>(x_bytes), x_arrived);
      float ple = 0;
      if (tid < 16 * a.rows) ple = __ldcg(a.ple + tid / 16 * a.ple_stride + rank * 16 + tid % 16);
      if (norms) load_row(a.norm.h, rank, P::kHidden, h);
      __syncthreads();
      wait_for_bulk(x_arrived);

      {
        const uint8_t* x = shared + at.x + warp * kParts * a.rows * 64 + b_lane;
        float acc[1][4] = {};
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          const uint4 b = *reinterpret_cast<const uint4*>(x + i * a.rows * 64);
          multiply_piece<TileFormat::kBF16>(acc[0], gate[i], b);
        }
        stash_sums<1>(sums + warp * red_rows * kRedPitch, acc, a.rows, lane);
      }
      __syncthreads();
      cluster_wait();  // all blocks have started: their shared memory can be written
      if (32 * warp < 16 * a.rows) {
        // Four values, which stand together in slot order as 0, 2, 1, 3, to one lane; each block gets them.
        const int row = min(tid / 16, a.rows - 1), column = tid % 16;
        const uint32_t value =
            __bfloat16_as_ushort(__float2bfloat16_rn(gated(sum_of_runs(sums, red_rows, row, column), ple)));
        const uint32_t pair = value | __shfl_down_sync(~0u, value, 2) << 16;
        const uint2 four = {pair, __shfl_down_sync(~0u, pair, 1)};
        if (tid < 16 * a.rows && column % 4 == 0) {
          const uint8_t* place = mid + 2 * slot_order(row, rank * 16 + column, a.rows);
#pragma unroll
          for (int block = 0; block < kBlocks; ++block)
            send_cluster8(address_in(place, block), four, address_in(barriers + 8, block));
        }
      }
      wait_for_sent(mid_arrived);

      {
        const uint4 b = *reinterpret_cast<const uint4*>(mid + warp * a.rows * 64 + b_lane);
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          float acc[1][4] = {};
          multiply_piece<TileFormat::kBF16>(acc[0], up[i], b);
          stash_sums<1>(sums + (i * kProductWarps + warp) * red_rows * kRedPitch, acc, a.rows, lane);
        }
      }
      __syncthreads();
      for (int i = tid; i < 4 * kParts * a.rows; i += kProductThreads) {
        const int row = i / (4 * kParts), column = i % (4 * kParts) * 4;
        const float* tile = sums + column / 16 * kProductWarps * red_rows * kRedPitch;
        const auto sum = [&](int c) { return sum_of_runs(tile, red_rows, row, column % 16 + c); };
        send_cluster16(address_in(y + rank * 16 * kParts + column, row),
                       float4{sum(0), sum(1), sum(2), sum(3)}, address_in(barriers + 16, row));
      }
      if (norms) wait_for_sent(y_arrived);
      cluster_arrive_relaxed();  // nobody leaves before what it sent has arrived
    }
    if (norms) norm_row<kParts>(a, at, shared, h, real);
    if (real) break;
    __syncthreads();
  }
  cluster_wait();
}

// What the kernel needs beyond every kernel's due, at each launch: a device that was reset has forgotten it.
template <int kParts>
cudaError_t allow() {
  const auto kernel = ple_kernel<kParts>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 Ple<kParts>(kMaxPleRows).bytes);
  return error != cudaSuccess
             ? error
             : cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <int kParts>
cudaError_t launch(const PleArgs& args, cudaStream_t stream) {
  const LaunchShape shape{.grid = dim3(kBlocks),
                          .shared = static_cast<size_t>(Ple<kParts>(args.rows).bytes),
                          .overlap = true,
                          .cluster = kBlocks};
  const cudaError_t error = allow<kParts>();
  return error != cudaSuccess ? error : launch_kernel<PleArgs>(ple_kernel<kParts>, shape, stream, args);
}

// Whether the device has room for such a cluster (a part of a GPU may not).
template <int kParts>
bool fits() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = static_cast<size_t>(Ple<kParts>(kMaxPleRows).bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool fits = allow<kParts>() == cudaSuccess &&
                    cudaOccupancyMaxActiveClusters(&clusters, ple_kernel<kParts>, &config) == cudaSuccess &&
                    clusters > 0;
  cudaGetLastError();
  return fits;
}

}  // namespace

bool takes_ple(const TiledWeight& gate, const TiledWeight& up, int rows) {
  if (rows < 1 || rows > kMaxPleRows || gate.n != kWidth || up.k != kWidth || up.n != gate.k ||
      gate.format != TileFormat::kBF16 || up.format != TileFormat::kBF16 || gate.row_scale != nullptr ||
      up.row_scale != nullptr || !product_device().dependent_launch) {
    return false;
  }
  if (gate.k == Ple<10>::kHidden) {
    static const bool can = fits<10>();
    return can;
  }
  if (gate.k == Ple<6>::kHidden) {
    static const bool can = fits<6>();
    return can;
  }
  return false;
}

cudaError_t launch_decode_ple(const DecodePle& p, cudaStream_t stream) {
  if (!takes_ple(p.gate, p.up, p.rows)) return cudaErrorInvalidValue;
  PleArgs args{.gate = static_cast<const uint8_t*>(p.gate.tiles),
               .up = static_cast<const uint8_t*>(p.up.tiles),
               .x = static_cast<const uint8_t*>(p.x),
               .rows = p.rows,
               .ple = p.ple,
               .ple_stride = p.ple_stride,
               .norm = p.norm,
               .x_out = static_cast<uint8_t*>(p.x_out),
               .x_out_order = p.x_out_order};
  args.norm.y = p.norm.h;  // an update is owed; what y is, the kernel knows itself
  args.norm.y_parts = 1;
  return p.gate.k == Ple<10>::kHidden ? launch<10>(args, stream) : launch<6>(args, stream);
}

}  // namespace jewel::cuda

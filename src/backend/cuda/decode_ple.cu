// Block `rank` of the cluster computes 16 of the 256 gated values (its warps share K in eight runs, as in
// decode_product_few.cu) and sends them to all; then 1/16 of the columns of up, which go to the block that
// norms the row they belong to: row r is block r's. gate's weights are in registers before the input is
// there; up's come to shared memory meanwhile, since a cluster's blocks stand in one part of the device and
// share its way to L2: both matrices take them 3 us.
//
// A step of more rows has a cluster for each 8 or, where so many would not run at once, 16. They share
// nothing.
#include "backend/cuda/decode_ple.h"

#include <algorithm>

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
  int x, gate_sums, up_sums, mid, y, weights, scratch, barriers, up, bytes;
  __host__ __device__ explicit Ple(int rows) {
    const int red_rows = rows + rows % 2;
    const int sums = kProductWarps * red_rows * kRedPitch * 4;  // of a row tile
    x = 0;
    gate_sums = x + kK32 * 64 * rows;
    up_sums = 0;  // where x and gate's sums were: both have been read
    const int gate_end = gate_sums + sums, up_end = up_sums + kParts * sums;
    mid = gate_end > up_end ? gate_end : up_end;
    y = mid + kUpPieces * 64 * rows;
    weights = y + kHidden * 4;
    scratch = weights + 2 * kHidden * 4;
    barriers = scratch + kNormScratch * 4;
    up = (barriers + 32 + 127) / 128 * 128;
    bytes = up + kParts * kUpPieces * kPieceBytes;
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

// The residual update of row `row`, this block's, with the y that all blocks sent, and the norm of what
// follows.
template <int kParts>
__device__ __forceinline__ void norm_row(const PleArgs& a, const Ple<kParts>& at, uint8_t* shared,
                                         float4 (&h)[kNormVectors], int row, bool keep) {
  constexpr int kHidden = Ple<kParts>::kHidden;
  const int tid = static_cast<int>(threadIdx.x);
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

// The cluster's rows of x, [k / 32][rows][64 bytes] in shared memory. In global memory they stand together
// where the step has no others; of more rows each block fetches a share for all.
template <class P>
__device__ __forceinline__ void fetch_x(const PleArgs& a, int first_row, int rows, uint32_t to,
                                        uint32_t arrived) {
  const int tid = static_cast<int>(threadIdx.x);
  if (a.rows == rows) {
    if (tid == 0) fetch_bulk(to, a.x, static_cast<uint32_t>(P::kK32 * 64 * rows), arrived);
    return;
  }
  cluster_wait();  // all blocks have started: their shared memory can be written
  constexpr int kShare = P::kK32 / kBlocks;
  static_assert(P::kK32 % kBlocks == 0);
  if (tid < kShare) {
    const int piece = static_cast<int>(blockIdx.x) % kBlocks * kShare + tid;
    fetch_bulk_for(to + piece * 64 * rows, a.x + (static_cast<int64_t>(piece) * a.rows + first_row) * 64,
                   static_cast<uint32_t>(64 * rows), arrived, (1 << kBlocks) - 1);
  }
}

// A cluster has kColumnTiles times 8 rows, the last of a step what is left.
template <int kParts, int kColumnTiles>
__global__ __launch_bounds__(kProductThreads, 1) void ple_kernel(const __grid_constant__ PleArgs a) {
  using P = Ple<kParts>;
  static_assert(8 * kColumnTiles <= kBlocks);
  extern __shared__ __align__(128) uint8_t shared[];
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int rank = static_cast<int>(blockIdx.x) % kBlocks;
  const int first_row = static_cast<int>(blockIdx.x) / kBlocks * 8 * kColumnTiles;
  const int rows = min(a.rows - first_row, 8 * kColumnTiles);
  const P at(rows);
  const int red_rows = rows + rows % 2;
  uint8_t* mid = shared + at.mid;
  float* gate_sums = reinterpret_cast<float*>(shared + at.gate_sums);
  float* up_sums = reinterpret_cast<float*>(shared + at.up_sums);
  const float* y = reinterpret_cast<const float*>(shared + at.y);
  float* weights = reinterpret_cast<float*>(shared + at.weights);
  const uint8_t* barriers = shared + at.barriers;
  const uint32_t x_arrived = shared_address(barriers), mid_arrived = x_arrived + 8,
                 y_arrived = x_arrived + 16;
  const int x_bytes = P::kK32 * 64 * rows;
  const bool norms = rank < rows;
  if (tid == 0) {
    for (int i = 0; i < 3; ++i) start_barrier(x_arrived + 8 * i);
    expect_bulk(static_cast<uint32_t>(x_bytes), x_arrived);
    expect_bulk(static_cast<uint32_t>(2 * kWidth * rows), mid_arrived);
    if (norms) expect_bulk(4 * P::kHidden, y_arrived);
  }
  cluster_arrive();

  uint4 raw_gate[kParts][2];
  load_tiles(a.gate + (static_cast<int64_t>(rank) * P::kK32 + warp * kParts) * kPieceBytes + lane * 16,
             kPieceBytes, raw_gate);
  if (norms) {
    for (int i = tid; 4 * i < P::kHidden; i += kProductThreads) {
      copy_async_16(shared_address(weights + 4 * i), a.norm.post_norm + 4 * i);
      if (a.norm.pre_norm != nullptr)
        copy_async_16(shared_address(weights + P::kHidden + 4 * i), a.norm.pre_norm + 4 * i);
    }
  }
  commit_copies();
  // A lane reads of up what it copied itself.
  const uint8_t* up = shared + at.up + warp * kParts * kPieceBytes + lane * 16;
  const uint8_t* up_from =
      a.up + (static_cast<int64_t>(rank) * kParts * kUpPieces + warp) * kPieceBytes + lane * 16;
#pragma unroll
  for (int i = 0; i < 2 * kParts; ++i) {
    copy_async_16(shared_address(up + i * 512), up_from + i / 2 * kUpPieces * kPieceBytes + i % 2 * 512);
  }
  commit_copies();
  const auto piece_of = [&](const uint8_t* x, int piece, int j) {
    const int row = min(8 * j + lane / 4, rows - 1);
    return *reinterpret_cast<const uint4*>(x + (piece * rows + row) * 64 + lane % 4 * 16);
  };
  wait_for_copies<1>();  // for the norms' weights
  // A rehearsal of the norm with numbers that are not there yet comes first; what it finds is dropped. See
  // residual_norm_kernel().
#pragma unroll 1
  for (bool real = a.rows > kRehearsedRows;; real = true) {
    float4 h[kNormVectors] = {};
    if (real) {
      TileA gate[kParts];
      convert_tiles(raw_gate, gate);
      wait_for_last_kernel();
      release_next_kernel();  // not before: its weights would stand in the way of up's
      fetch_x<P>(a, first_row, rows, shared_address(shared + at.x), x_arrived);
      float ple = 0;
      if (tid < 16 * rows) ple = __ldcg(a.ple + (first_row + tid / 16) * a.ple_stride + rank * 16 + tid % 16);
      if (norms) load_row(a.norm.h, first_row + rank, P::kHidden, h);
      __syncthreads();
      wait_for_bulk(x_arrived);

      {
        float acc[kColumnTiles][4] = {};
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            const uint4 b = piece_of(shared + at.x, warp * kParts + i, j);
            multiply_piece<TileFormat::kBF16>(acc[j], gate[i], b);
          }
        }
        stash_sums<kColumnTiles>(gate_sums + warp * red_rows * kRedPitch, acc, rows, lane);
      }
      __syncthreads();
      if (a.rows == rows) cluster_wait();  // otherwise fetch_x() has waited
      if (32 * warp < 16 * rows) {
        // Four values, which stand together in slot order as 0, 2, 1, 3, to one lane; each block gets them.
        const int row = min(tid / 16, rows - 1), column = tid % 16;
        const uint32_t value = __bfloat16_as_ushort(
            __float2bfloat16_rn(gated(sum_of_runs(gate_sums, red_rows, row, column), ple)));
        const uint32_t pair = value | __shfl_down_sync(~0u, value, 2) << 16;
        const uint2 four = {pair, __shfl_down_sync(~0u, pair, 1)};
        if (tid < 16 * rows && column % 4 == 0) {
          const uint8_t* place = mid + 2 * slot_order(row, rank * 16 + column, rows);
#pragma unroll
          for (int block = 0; block < kBlocks; ++block)
            send_cluster8(address_in(place, block), four, address_in(barriers + 8, block));
        }
      }
      wait_for_copies<0>();
      wait_for_sent(mid_arrived);

      {
        uint4 b[kColumnTiles];
#pragma unroll
        for (int j = 0; j < kColumnTiles; ++j) b[j] = piece_of(mid, warp, j);
#pragma unroll
        for (int i = 0; i < kParts; ++i) {
          const TileA tile = read_piece<TileFormat::kBF16>(up + i * kPieceBytes);
          float acc[kColumnTiles][4] = {};
#pragma unroll
          for (int j = 0; j < kColumnTiles; ++j) {
            multiply_piece<TileFormat::kBF16>(acc[j], tile, b[j]);
          }
          stash_sums<kColumnTiles>(up_sums + (i * kProductWarps + warp) * red_rows * kRedPitch, acc, rows,
                                   lane);
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int i = tid; i < 4 * kParts * rows; i += kProductThreads) {
        const int row = i / (4 * kParts), column = i % (4 * kParts) * 4;
        const float* tile = up_sums + column / 16 * kProductWarps * red_rows * kRedPitch;
        const auto sum = [&](int c) { return sum_of_runs(tile, red_rows, row, column % 16 + c); };
        send_cluster16(address_in(y + rank * 16 * kParts + column, row),
                       float4{sum(0), sum(1), sum(2), sum(3)}, address_in(barriers + 16, row));
      }
      if (norms) wait_for_sent(y_arrived);
      cluster_arrive_relaxed();  // nobody leaves before what it sent has arrived
    }
    if (norms) norm_row<kParts>(a, at, shared, h, first_row + rank, real);
    if (real) break;
    __syncthreads();
  }
  cluster_wait();
}

// Of a block of a step of `rows` rows.
template <int kParts, int kColumnTiles>
size_t shared_bytes(int rows) {
  const auto needed = static_cast<size_t>(Ple<kParts>(std::min(rows, 8 * kColumnTiles)).bytes);
  return rows > 8 && product_device().wgmma ? std::max(needed, kPleShared) : needed;
}

// What the kernel needs beyond every kernel's due, at each launch: a device that was reset has forgotten it.
template <int kParts, int kColumnTiles>
cudaError_t allow() {
  const auto kernel = ple_kernel<kParts, kColumnTiles>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(shared_bytes<kParts, kColumnTiles>(kMaxDecodeRows)));
  return error != cudaSuccess
             ? error
             : cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <int kParts, int kColumnTiles>
cudaError_t launch(const PleArgs& args, cudaStream_t stream) {
  constexpr int kRows = 8 * kColumnTiles;
  const int clusters = (args.rows + kRows - 1) / kRows;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(kBlocks * clusters)),
                          .shared = shared_bytes<kParts, kColumnTiles>(args.rows),
                          .overlap = true,
                          .cluster = kBlocks};
  const cudaError_t error = allow<kParts, kColumnTiles>();
  return error != cudaSuccess ? error
                              : launch_kernel<PleArgs>(ple_kernel<kParts, kColumnTiles>, shape, stream, args);
}

// How many clusters the device has room for at once; a part of a GPU may have none.
template <int kParts, int kColumnTiles>
int clusters_at_once() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = shared_bytes<kParts, kColumnTiles>(kMaxDecodeRows);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  const bool known =
      allow<kParts, kColumnTiles>() == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, ple_kernel<kParts, kColumnTiles>, &config) == cudaSuccess;
  cudaGetLastError();
  return known ? clusters : 0;
}

// Activation rows that clusters take which run at once, with one and with two column tiles.
struct Rows {
  int eights, sixteens;
};
template <int kParts>
const Rows& rows_at_once() {
  static const Rows rows = {8 * clusters_at_once<kParts, 1>(), 16 * clusters_at_once<kParts, 2>()};
  return rows;
}
Rows rows_at_once(int hidden) {
  return hidden == Ple<10>::kHidden  ? rows_at_once<10>()
         : hidden == Ple<6>::kHidden ? rows_at_once<6>()
                                     : Rows{0, 0};
}

template <int kParts>
cudaError_t launch(const PleArgs& args, cudaStream_t stream) {
  return args.rows <= rows_at_once<kParts>().eights ? launch<kParts, 1>(args, stream)
                                                    : launch<kParts, 2>(args, stream);
}

}  // namespace

bool takes_ple(const TiledWeight& gate, const TiledWeight& up, int rows) {
  if (rows < 1 || gate.n != kWidth || up.k != kWidth || up.n != gate.k || gate.format != TileFormat::kBF16 ||
      up.format != TileFormat::kBF16 || gate.row_scale != nullptr || up.row_scale != nullptr ||
      !product_device().dependent_launch) {
    return false;
  }
  const Rows at_once = rows_at_once(gate.k);
  return rows <= std::max(at_once.eights, at_once.sixteens);
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

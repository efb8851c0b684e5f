#include "backend/cuda/step_ops.h"

#include "backend/cuda/device_values.h"

namespace jewel::cuda {
namespace {

__global__ void page_updates(int32_t* tables, const PageUpdate* updates, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) tables[updates[i].index] = updates[i].page;
}

constexpr int kBeginThreads = 256;

constexpr int kPartColumns = 8 * kBeginThreads;  // of per-layer inputs

__device__ __forceinline__ void begin_row(const BeginRows& b, int row, int32_t id, const DecodeRow& r) {
  b.to.ids[row] = id;
  b.to.positions[row] = r.position, b.to.slots[row] = r.slot, b.to.sampled_at[row] = r.sampled_at;
  b.to.allowed[row] = r.allowed, b.to.n_top[row] = r.n_top;
  if (row == 0) *b.also_ids_at = b.also_ids;
}

// Blocks [row, part]: part 0 takes the embedding, each of the others kPartColumns of the per-layer inputs.
__global__ void __launch_bounds__(kBeginThreads) begin_rows(const __grid_constant__ BeginRows b) {
  __shared__ int32_t shared_id;
  const int row = static_cast<int>(blockIdx.x), part = static_cast<int>(blockIdx.y);
  if (threadIdx.x == 0) {
    const DecodeRow r = b.rows[row];
    const int32_t id = r.given >= 0 ? r.given : b.last_tokens[r.slot];
    shared_id = id >= 0 ? id : 0;  // a slot whose row found nothing to sample: the host ends it
    if (part == 0) begin_row(b, row, shared_id, r);
  }
  __syncthreads();
  const int64_t id = shared_id;
  if (part == 0) {
    const __nv_bfloat16* from = b.table + id * b.hidden;
    for (int k = 4 * static_cast<int>(threadIdx.x); k < b.hidden; k += 4 * kBeginThreads) {
      *reinterpret_cast<float4*>(b.h + int64_t{row} * b.hidden + k) = scaled(load_bf16x4(from + k), b.scale);
    }
  } else if (const int column = (part - 1) * kPartColumns + 8 * static_cast<int>(threadIdx.x);
             column < b.per_layer_columns) {
    const uint4 raw = *reinterpret_cast<const uint4*>(b.per_layer_table + id * b.per_layer_columns + column);
    auto* to = reinterpret_cast<float4*>(b.per_layer_inputs + int64_t{row} * b.per_layer_columns + column);
    to[0] = scaled(widened_f16x4({raw.x, raw.y}), b.per_layer_scale);
    to[1] = scaled(widened_f16x4({raw.z, raw.w}), b.per_layer_scale);
  }
  __threadfence();
}

// One thread a group of 16 columns.
__global__ void to_product_order(uint32_t* x, int64_t groups) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= groups) return;
  auto* at = reinterpret_cast<uint4*>(x) + 2 * i;
  const uint4 a = at[0], b = at[1];  // pairs of columns: 01 23 45 67, 89 1011 1213 1415
  at[0] = {a.x, a.z, b.x, b.z};
  at[1] = {a.y, a.w, b.y, b.w};
}

unsigned blocks_of(int64_t n) {
  return static_cast<unsigned>((n + 255) / 256);
}

}  // namespace

cudaError_t launch_page_updates(int32_t* tables, const PageUpdate* updates, int n, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  page_updates<<<blocks_of(n), 256, 0, stream>>>(tables, updates, n);
  return cudaGetLastError();
}

cudaError_t launch_begin_rows(const BeginRows& begin, cudaStream_t stream) {
  if (begin.hidden % 4 != 0 || begin.per_layer_columns % 8 != 0) return cudaErrorInvalidValue;
  if (begin.n == 0) return cudaSuccess;
  const int parts = 1 + (begin.per_layer_columns + kPartColumns - 1) / kPartColumns;
  const dim3 grid(static_cast<unsigned>(begin.n), static_cast<unsigned>(parts));
  begin_rows<<<grid, kBeginThreads, 0, stream>>>(begin);
  return cudaGetLastError();
}

cudaError_t launch_to_product_order(void* x, int rows, int columns, cudaStream_t stream) {
  const int64_t groups = int64_t{rows} * columns / 16;
  if (groups == 0) return cudaSuccess;
  to_product_order<<<blocks_of(groups), 256, 0, stream>>>(static_cast<uint32_t*>(x), groups);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

#include "backend/cuda/step_ops.h"

namespace jewel::cuda {
namespace {

__global__ void page_updates(int32_t* tables, const PageUpdate* updates, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) tables[updates[i].index] = updates[i].page;
}

__global__ void decode_ids(const int32_t* given, const int32_t* slots, const int32_t* last_tokens, int n,
                           int32_t* ids) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const int id = given[i] >= 0 ? given[i] : last_tokens[slots[i]];
  ids[i] = id >= 0 ? id : 0;  // a slot whose row found nothing to sample: the host ends it
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

cudaError_t launch_decode_ids(const int32_t* given, const int32_t* slots, const int32_t* last_tokens, int n,
                              int32_t* ids, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  decode_ids<<<blocks_of(n), 256, 0, stream>>>(given, slots, last_tokens, n, ids);
  return cudaGetLastError();
}

cudaError_t launch_to_product_order(void* x, int rows, int columns, cudaStream_t stream) {
  const int64_t groups = int64_t{rows} * columns / 16;
  if (groups == 0) return cudaSuccess;
  to_product_order<<<blocks_of(groups), 256, 0, stream>>>(static_cast<uint32_t*>(x), groups);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

// Small kernels of a step that belong to no family: what turns the host's description of a step into rows.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

// Where a slot's page table changes: entry `index` of the tables' memory becomes `page`.
struct PageUpdate {
  uint32_t index = 0;
  int32_t page = 0;
};

cudaError_t launch_page_updates(int32_t* tables, const PageUpdate* updates, int n, cudaStream_t stream);

// ids[r] = given[r], or, where that is negative, the token that slot slots[r] sampled last.
cudaError_t launch_decode_ids(const int32_t* given, const int32_t* slots, const int32_t* last_tokens, int n,
                              int32_t* ids, cudaStream_t stream);

// BF16 [rows, columns] from natural order to product order (prefill_product.h), in place; columns % 16 == 0.
cudaError_t launch_to_product_order(void* x, int rows, int columns, cudaStream_t stream);

}  // namespace jewel::cuda

// Small kernels of a step that belong to no family: what turns the host's description of a step into rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/cuda/decode_product.h"

namespace jewel::cuda {

// Where a slot's page table changes: entry `index` of the tables' memory becomes `page`.
struct PageUpdate {
  uint32_t index = 0;
  int32_t page = 0;
};

cudaError_t launch_page_updates(int32_t* tables, const PageUpdate* updates, int n, cudaStream_t stream);

// A row that decodes, as the host describes it.
struct DecodeRow {
  int32_t given = 0;      // its token; negative: the one that its slot sampled last
  int32_t position = -1;  // negative: a row of padding
  int32_t slot = 0;
  int32_t sampled_at = -1;            // its position, or -1 where it is not sampled
  const uint32_t* allowed = nullptr;  // on the device; a bit per id
  int32_t n_top = -1;                 // log-probabilities wanted
};

// The same on the device, as the kernels of a step read it.
struct DecodeRows {
  int32_t *ids = nullptr, *positions = nullptr, *slots = nullptr, *sampled_at = nullptr, *n_top = nullptr;
  const uint32_t** allowed = nullptr;

  DecodeRows from(int first) const {
    return {ids + first,        positions + first, slots + first,
            sampled_at + first, n_top + first,     allowed + first};
  }
};

// What stands in front of a decode step: descriptions, which come as the kernel's argument (a copy would have
// to be waited for, and so would memory of the host), token ids, and what a token's row of two tables says:
// its embedding and its per-layer inputs. The kernels behind it may start early and read what it wrote before
// they wait, so it lets none start before it has ended.
struct BeginRows {
  DecodeRow rows[kMaxDecodeRows];  // of them n
  int n = 0;
  DecodeRows to;
  const int32_t* last_tokens = nullptr;  // [slots]
  // Noted for the sampler (SampleRows::also_ids), which is launched with the same arguments in every step.
  int32_t* also_ids = nullptr;
  int32_t** also_ids_at = nullptr;

  const __nv_bfloat16* table = nullptr;  // [vocab, hidden]
  float scale = 1;
  int hidden = 0;      // a multiple of 4
  float* h = nullptr;  // [n, hidden]

  const __half* per_layer_table = nullptr;  // [vocab, per_layer_columns]
  float per_layer_scale = 1;                // of the table's values
  int per_layer_columns = 0;                // a multiple of 8; 0: a model without
  float* per_layer_inputs = nullptr;        // [n, per_layer_columns]
};
cudaError_t launch_begin_rows(const BeginRows& begin, cudaStream_t stream);

// BF16 [rows, columns] from natural order to product order (prefill_product.h), in place; columns % 16 == 0.
cudaError_t launch_to_product_order(void* x, int rows, int columns, cudaStream_t stream);

}  // namespace jewel::cuda

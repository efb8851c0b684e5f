// Attention of prompt chunks: any number of sequences in one launch, each with consecutive positions, causal,
// in a window where the layer has one. K and V are read from the pages as stored, those of the chunk itself
// included (qkv_post.h has written them).
//
// Keys are taken in tiles that start at absolute multiples of the tile, from the first that a query sees to
// the query's own; tiles that a row does not see change none of its bits. So the result does not depend,
// bitwise, on how a prompt was cut into chunks or on what else is in the launch.
#pragma once

#include "backend/cuda/attention_types.h"

namespace jewel::cuda {

struct PrefillAttention {
  AttentionShape shape;
  KvLayer kv;
  AttentionRows rows;
  // Device, [n_chunks + 1]: rows [chunk_rows[c], chunk_rows[c + 1]) are consecutive positions of one slot.
  // The last entry may be less than rows.n (rows of padding behind it).
  const int32_t* chunk_rows = nullptr;
  int n_chunks = 0;
  const void* q = nullptr;  // BF16 [rows, n_heads * head_dim]
  void* out = nullptr;      // BF16 [rows, n_heads * head_dim]
};

cudaError_t launch_prefill_attention(const PrefillAttention& attention, AttentionDesign design,
                                     cudaStream_t stream);

}  // namespace jewel::cuda

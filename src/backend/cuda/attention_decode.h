// Attention of decode rows, from the raw products of q, k and v to the input of o_proj, in one kernel: RMS
// norm and RoPE of q and k, norm of v, the new position written to its page (layers that own K and V),
// attention over the pages as stored, and the merge of the parts that the keys were cut into.
//
// How the keys of a row are cut follows from its position and the window alone; so a row's result is bitwise
// the same in any batch, on any pages. Queries and probabilities enter the tensor cores as sums of two
// 16-bit numbers, scores and sums are float32: the result is as exact as the stored K and V.
//
// kSm90 may start before the kernels ahead of it in the stream have finished (programmatic dependent launch):
// it then reads positions, slots, page tables and all stored positions but the rows' newest. Those must have
// been complete before the step's first kernel; only `qkv` (and the newest position's K and V in layers that
// borrow them) may come from kernels of the same chain.
#pragma once

#include "backend/cuda/attention_types.h"
#include "backend/cuda/decode_product.h"

namespace jewel::cuda {

struct DecodeAttention {
  AttentionShape shape;
  KvLayer kv;  // of the layer whose K and V are read
  Rope rope;
  HeadNorms norms;
  AttentionRows rows;
  // [rows, stride]: q [n_heads, head_dim], then, if owns_kv, k and v [n_kv_heads, head_dim].
  const float* qkv = nullptr;
  int qkv_stride = 0;
  bool owns_kv = false;
  // q is normed and rotated already and K, V are in their pages: for passes that show stages to an observer.
  bool prepared = false;
  // No row stands at a position >= max_context. Sizes the grid, changes no result; a captured graph gives the
  // bound it was captured for.
  int max_context = 0;
  // How many of a piece's eight runs of keys a block takes: 1, 2, 4 or 8, at least 2 at head_dim 256, where
  // it works on two at once; 0 = by the number of rows. Changes no result.
  int runs_a_block = 0;
  void* out = nullptr;                  // [rows, n_heads * head_dim], 16 bits
  XOrder out_order = XOrder::kNatural;  // of out (decode_product.h)
  void* workspace = nullptr;  // decode_attention_workspace(); zeroed once, then left as it should be found
  int workspace_rows = 0;     // the max_rows it was sized for
};

// Bytes of workspace for launches of up to `max_rows` rows. One may serve all layers of a
// stream: size it for the larger head_dim.
size_t decode_attention_workspace(const AttentionShape& shape, int max_rows, AttentionDesign design);

cudaError_t launch_decode_attention(const DecodeAttention& attention, AttentionDesign design,
                                    cudaStream_t stream);

}  // namespace jewel::cuda

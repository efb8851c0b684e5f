// Attention of new positions over the paged cache: causal, in a window for sliding layers, scale 1, no
// softcap.
//
// K and V are read as they are stored, those of the same step included (they are written first). Softmax is
// running: keys are taken in blocks of kKeyBlock positions that start at multiples of kKeyBlock, from the
// first visible key to the query itself. So the order of all operations follows from the query's position and
// the window alone, and the result does not depend on chunking, on page ids or on the batch. Queries, scores
// and sums are float32.
#pragma once

#include <span>

#include "backend/cpu/buffer.h"
#include "backend/cpu/kv_cache.h"
#include "backend/cpu/linear.h"

namespace jewel {

// Consecutive positions of one sequence: rows [row, row + n) of q, at positions [position, position + n).
struct QuerySpan {
  int64_t row = 0;
  int n = 0;
  int position = 0;
  std::span<const PageId> pages;  // of the layer's pool; entry i holds positions [i * kPageTokens, ...)
};

struct AttentionLayer {
  int kv_layer = 0;  // whose K and V are read
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;  // a multiple of 16
  int window = 0;    // keys visible to a query, itself included; 0 = all
};

// q and out are [rows, n_heads * head_dim].
void attention(const Compute& compute, const KvCache& cache, const AttentionLayer& layer,
               std::span<const QuerySpan> spans, const Matrix& q, const Matrix& out);

}  // namespace jewel

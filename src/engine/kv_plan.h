// How many KV pages, from how much memory: arithmetic only, no profiling run.
//
// Bytes = min(memory_bytes, max_num_seqs sequences of max_model_len + prefix_cache_bytes). They are divided
// so that both pools run out together: each sequence wants its positions in the full pool and one window (+
// its share of a step) in the sliding pool.
#pragma once

#include <cstddef>

#include "backend/backend.h"
#include "base/result.h"
#include "model/config.h"

namespace jewel {

struct KvBudget {
  size_t memory_bytes = 0;  // what the device can give: utilization * memory - weights - working memory
  size_t prefix_cache_bytes = size_t{4} << 30;
  int max_num_seqs = 1;
  int max_model_len = 0;  // 0: the model's, or what memory allows
  int max_num_batched_tokens = 2048;
};

struct KvPlan {
  KvSizes sizes;
  int max_model_len = 0;  // as asked, or what fits
  size_t bytes = 0;
};

// Errors: kUnavailable when not even one sequence of max_model_len (0: of 256 tokens) fits.
Result<KvPlan> plan_kv(const KvBudget& budget, const BackendInfo& info, const TextConfig& text);

}  // namespace jewel

#include "engine/kv_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/pages.h"

namespace jewel {
namespace {

// The cache keeps a window of sliding pages per checkpoint. One checkpoint for so many tokens of full pages:
// a turn of a conversation with an image, or a short document.
constexpr int64_t kTokensPerCheckpoint = 1024;
constexpr int kLeastModelLen = 256;  // with less than this nothing useful fits

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / (int64_t{1} << 30);
}

}  // namespace

Result<KvPlan> plan_kv(const KvBudget& budget, const BackendInfo& info, const TextConfig& text) {
  const auto full_bytes = static_cast<int64_t>(info.full_page_bytes);
  const auto sliding_bytes = static_cast<int64_t>(info.sliding_page_bytes);
  const auto memory = static_cast<int64_t>(std::min(budget.memory_bytes, size_t{1} << 60));
  const auto cache = static_cast<int64_t>(std::min(budget.prefix_cache_bytes, size_t{1} << 60));
  const int wanted_len = budget.max_model_len > 0 ? budget.max_model_len : text.max_position_embeddings;
  const int64_t window = pages_of(std::min(text.sliding_window - 1, wanted_len)) + 1;

  // A sequence holds a window, and the page it writes; two steps' chunks are in use at a time.
  const int64_t step_pages = int64_t{2} * (pages_of(std::min(budget.max_num_batched_tokens, wanted_len)) + 1);
  int64_t sliding = budget.max_num_seqs * (window + 1) + step_pages;
  int64_t full = int64_t{budget.max_num_seqs} * pages_of(wanted_len);
  const int64_t checkpoint_bytes = window * sliding_bytes + kTokensPerCheckpoint / kPageTokens * full_bytes;
  const auto add_cache = [&](int64_t bytes) {
    const int64_t checkpoints = checkpoint_bytes > 0 ? bytes / checkpoint_bytes : 0;
    sliding += checkpoints * window;
    full += checkpoints * (kTokensPerCheckpoint / kPageTokens);
  };
  if (full * full_bytes + sliding * sliding_bytes + cache <= memory) {
    add_cache(cache);
  } else {
    // Less than asked for. Windows of running sequences come first, in at most half of it; then windows for
    // the cache, as many as go with the full pages that the rest makes; full pages are running sequences' or
    // cached ones as it comes.
    const int64_t least = window + step_pages;
    if (sliding * sliding_bytes > memory / 2)
      sliding = std::max(least, memory / 2 / std::max<int64_t>(1, sliding_bytes));
    const int64_t rest = memory - sliding * sliding_bytes;
    full = 0;
    add_cache(std::clamp<int64_t>(std::min(cache, rest / 2), 0, std::max<int64_t>(0, rest)));
    const int64_t left = memory - sliding * sliding_bytes - full * full_bytes;
    full += full_bytes > 0 ? std::max<int64_t>(0, left) / full_bytes : full;
  }
  constexpr int64_t kMaxPages = int64_t{1} << 30;
  full = std::min(full, kMaxPages);
  sliding = std::min(sliding, kMaxPages);
  // No sequence is longer than the full pages.
  if (full_bytes == 0) full = std::max<int64_t>(full, pages_of(wanted_len));
  const int max_model_len = static_cast<int>(std::min<int64_t>(wanted_len, full * kPageTokens));
  const int64_t bytes = full * full_bytes + sliding * sliding_bytes;
  const int least_len =
      budget.max_model_len > 0 ? budget.max_model_len : std::min(kLeastModelLen, wanted_len);
  if (max_model_len < least_len || bytes > memory) {
    const int64_t needed = pages_of(least_len) * full_bytes + (window + step_pages) * sliding_bytes;
    return unavailable(fmt::format("KV cache: {:.2f} GiB are left for it, one sequence of {} tokens needs "
                                   "{:.2f}; allow fewer tokens "
                                   "(max_model_len, max_num_batched_tokens), an 8-bit cache, or more memory",
                                   gib(memory), least_len, gib(needed)),
                       "max_model_len");
  }
  return KvPlan{
      .sizes = {.n_full_pages = static_cast<int>(full), .n_sliding_pages = static_cast<int>(sliding)},
      .max_model_len = max_model_len,
      .bytes = static_cast<size_t>(bytes)};
}

}  // namespace jewel

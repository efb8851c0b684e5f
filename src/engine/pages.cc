#include "engine/pages.h"

#include <fmt/format.h>

#include <algorithm>

namespace jewel {
namespace {

int div_up(int value, int divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace

PagePool::PagePool(int n_pages) : n_pages_(n_pages), held_(static_cast<size_t>(n_pages), false) {
  for (PageId page = n_pages - 1; page >= 0; --page) free_.push_back(page);
}

PageId PagePool::take() {
  if (free_.empty()) return kNoPage;
  const PageId page = free_.back();
  free_.pop_back();
  held_[static_cast<size_t>(page)] = true;
  return page;
}

void PagePool::give_back(PageId page) {
  JEWEL_CHECK(page >= 0 && page < n_pages_ && held_[static_cast<size_t>(page)], "page {} is not held", page);
  held_[static_cast<size_t>(page)] = false;
  free_.push_back(page);
}

SequencePages::SequencePages(PagePool& full, PagePool& sliding, int sliding_window)
    : full_pool_(full), sliding_pool_(sliding), sliding_window_(sliding_window) {}

SequencePages::~SequencePages() {
  for (const PageId page : full_pages_) full_pool_.give_back(page);
  for (const PageId page : sliding_pages_) {
    if (page != kNoPage) sliding_pool_.give_back(page);
  }
}

Result<void> SequencePages::prepare_step(int begin, int count) {
  // The first query of the step sees keys from begin - window + 1 on; whole pages before that are done.
  const int first_visible = std::max(0, begin - sliding_window_ + 1);
  for (; first_sliding_page_ < first_visible / kPageTokens; ++first_sliding_page_) {
    PageId& page = sliding_pages_[static_cast<size_t>(first_sliding_page_)];
    sliding_pool_.give_back(page);
    page = kNoPage;
  }
  const auto pages_needed = static_cast<size_t>(div_up(begin + count, kPageTokens));
  const auto grow = [&](PagePool& pool, std::vector<PageId>& pages, std::string_view name) -> Result<void> {
    while (pages.size() < pages_needed) {
      const PageId page = pool.take();
      if (page == kNoPage) {
        return unavailable(
            fmt::format("no {} KV page is free: {} of {} are held", name, pool.n_held(), pool.n_pages()));
      }
      pages.push_back(page);
    }
    return {};
  };
  JEWEL_TRY(grow(full_pool_, full_pages_, "full-attention"));
  return grow(sliding_pool_, sliding_pages_, "sliding");
}

KvSizes SequencePages::needed(int max_tokens, int step_tokens, int sliding_window) {
  const int full = div_up(max_tokens, kPageTokens);
  // The window before the step and the step itself, each of which may begin inside a page.
  const int live =
      div_up(sliding_window - 1, kPageTokens) + div_up(std::min(step_tokens, max_tokens), kPageTokens) + 1;
  return {.n_full_pages = full, .n_sliding_pages = std::min(full, live)};
}

}  // namespace jewel

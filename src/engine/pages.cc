#include "engine/pages.h"

#include "base/check.h"

namespace jewel {

PagePool::PagePool(int n_pages) : pages_(static_cast<size_t>(n_pages)) {
  free_.reserve(pages_.size());
  for (PageId page = n_pages - 1; page >= 0; --page) free_.push_back(page);
}

PagePool::Page& PagePool::at(PageId page) {
  JEWEL_CHECK(page >= 0 && page < n_pages(), "page {} of {}", page, n_pages());
  return pages_[static_cast<size_t>(page)];
}

PageId PagePool::take() {
  if (free_.empty()) return kNoPage;
  const PageId page = free_.back();
  free_.pop_back();
  at(page).n_holders = 1;
  ++n_held_;
  return page;
}

void PagePool::hold(PageId page) {
  Page& p = at(page);
  JEWEL_CHECK(p.n_holders > 0 || p.kept, "page {} is free and cannot be shared", page);
  if (p.n_holders++ == 0) ++n_held_;
}

void PagePool::give_back(PageId page) {
  Page& p = at(page);
  JEWEL_CHECK(p.n_holders > 0, "page {} is not held", page);
  if (--p.n_holders > 0) return;
  --n_held_;
  if (!p.kept) free_.push_back(page);
}

void PagePool::keep(PageId page) {
  Page& p = at(page);
  JEWEL_CHECK(p.n_holders > 0 && !p.kept, "page {}: {} holders, {}", page, p.n_holders,
              p.kept ? "kept already" : "not kept");
  p.kept = true;
}

void PagePool::drop(PageId page) {
  Page& p = at(page);
  JEWEL_CHECK(p.kept, "page {} is not kept", page);
  p.kept = false;
  if (p.n_holders == 0) free_.push_back(page);
}

SequencePages::SequencePages(PagePool& full, PagePool& sliding, int sliding_window)
    : full_pool_(full), sliding_pool_(sliding), sliding_window_(sliding_window) {}

SequencePages::~SequencePages() {
  release_all();
}

void SequencePages::reserve(int n_pages) {
  const auto n = static_cast<size_t>(n_pages);
  full_pages_.reserve(n);
  for (View& view : views_) view.pages.reserve(n);
}

void SequencePages::share_full(std::span<const PageId> full) {
  JEWEL_CHECK(full_pages_.empty() && sliding_pages_.empty(),
              "a sequence that has pages cannot begin on others");
  for (const PageId page : full) full_pool_.hold(page);
  full_pages_.assign(full.begin(), full.end());
}

void SequencePages::share(std::span<const PageId> full, std::span<const PageId> sliding_window_pages) {
  share_full(full);
  first_sliding_ = static_cast<int>(full.size() - sliding_window_pages.size());
  sliding_pages_.assign(static_cast<size_t>(first_sliding_), kNoPage);
  for (const PageId page : sliding_window_pages) {
    sliding_pool_.hold(page);
    sliding_pages_.push_back(page);
  }
}

void SequencePages::grow_full(int end) {
  for (int missing = missing_full(end); missing > 0; --missing) {
    full_pages_.push_back(full_pool_.take());
    JEWEL_CHECK(full_pages_.back() != kNoPage, "no full page is free");
  }
}

void SequencePages::grow(int end) {
  grow_full(end);
  for (int missing = missing_sliding(end); missing > 0; --missing) {
    sliding_pages_.push_back(sliding_pool_.take());
    JEWEL_CHECK(sliding_pages_.back() != kNoPage, "no sliding page is free");
  }
}

void SequencePages::grow_sliding_from(int first_page, int end) {
  JEWEL_CHECK(sliding_pages_.empty(), "the sequence has sliding pages");
  first_sliding_ = first_page;
  sliding_pages_.assign(static_cast<size_t>(first_page), kNoPage);
  grow(end);
}

void SequencePages::release_behind(int position) {
  const int first =
      std::min(first_window_page(position, sliding_window_), static_cast<int>(sliding_pages_.size()));
  for (; first_sliding_ < first; ++first_sliding_) {
    PageId& page = sliding_pages_[static_cast<size_t>(first_sliding_)];
    sliding_pool_.give_back(page);
    page = kNoPage;
  }
}

void SequencePages::release_all() {
  for (const PageId page : full_pages_) full_pool_.give_back(page);
  for (auto i = static_cast<size_t>(first_sliding_); i < sliding_pages_.size(); ++i) {
    sliding_pool_.give_back(sliding_pages_[i]);
  }
  full_pages_.clear();
  sliding_pages_.clear();
  first_sliding_ = 0;
  for (View& view : views_) {
    view.pages.clear();
    view.first = 0;
  }
}

std::span<const PageId> SequencePages::sliding_view(int parity) {
  View& view = views_[static_cast<size_t>(parity)];
  const auto known = static_cast<std::ptrdiff_t>(view.pages.size());
  view.pages.insert(view.pages.end(), sliding_pages_.begin() + known, sliding_pages_.end());
  for (; view.first < first_sliding_; ++view.first) view.pages[static_cast<size_t>(view.first)] = kNoPage;
  return view.pages;
}

KvSizes SequencePages::needed(int max_tokens, int step_tokens, int sliding_window) {
  const int full = pages_of(max_tokens);
  // The window before the step and the step itself, each of which may begin inside a page.
  const int live = pages_of(sliding_window - 1) + pages_of(std::min(step_tokens, max_tokens)) + 1;
  return {.n_full_pages = full, .n_sliding_pages = std::min(full, live)};
}

}  // namespace jewel

// Who holds which KV page: the engine's books over the backend's two pools.
//
// PagePool knows of every page of one pool how many sequences hold it and whether the prefix cache keeps it.
// A page is held (by at least one sequence), cached (by the cache alone) or free; free + held + cached = all
// at every moment. SequencePages keeps the two page tables of one sequence: full-attention layers keep every
// position, sliding ones only what a window still reaches. One thread, the engine's. A SequencePages gives
// its pages back when it goes.
#pragma once

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace jewel {

class PagePool {
 public:
  explicit PagePool(int n_pages);

  int n_pages() const { return static_cast<int>(pages_.size()); }
  int n_free() const { return static_cast<int>(free_.size()); }
  int n_held() const { return n_held_; }
  int n_cached() const { return n_pages() - n_free() - n_held_; }  // by the cache alone

  // A free page, now held once; kNoPage when none is free.
  PageId take();
  void hold(PageId page);       // once more; the page is held or cached
  void give_back(PageId page);  // once less
  void keep(PageId page);       // the cache keeps a held page
  void drop(PageId page);       // and no longer

  int n_holders(PageId page) const { return at(page).n_holders; }
  bool kept(PageId page) const { return at(page).kept; }

 private:
  struct Page {
    int n_holders = 0;
    bool kept = false;
  };
  Page& at(PageId page);
  const Page& at(PageId page) const { return const_cast<PagePool*>(this)->at(page); }

  std::vector<Page> pages_;
  std::vector<PageId> free_;
  int n_held_ = 0;
};

// Whole pages from the first that a query at `position` sees in a sliding layer. `sliding_window` counts
// visible keys, the query's own included.
inline int first_window_page(int position, int sliding_window) {
  const int first_visible = position - sliding_window + 1;
  return first_visible > 0 ? first_visible / kPageTokens : 0;
}
inline int pages_of(int tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

class SequencePages {
 public:
  // The pools must outlive it.
  SequencePages(PagePool& full, PagePool& sliding, int sliding_window);
  ~SequencePages();
  SequencePages(const SequencePages&) = delete;
  SequencePages& operator=(const SequencePages&) = delete;

  // Spans of full() and sliding_view() stay valid while the sequence grows to `n_pages`.
  void reserve(int n_pages);

  // Begins on pages that others have: all full pages of a prefix, and the last window of its sliding pages.
  // Holds each once more. The sequence must have none yet.
  void share(std::span<const PageId> full, std::span<const PageId> sliding_window_pages);

  // The same with full pages alone; grow_sliding_from() has to follow.
  void share_full(std::span<const PageId> full);

  // Pages for positions up to `end`; the pools must have that many free (missing_*() tells).
  void grow(int end);
  void grow_full(int end);
  int missing_full(int end) const {
    return std::max(0, pages_of(end) - static_cast<int>(full_pages_.size()));
  }
  int missing_sliding(int end) const {
    return std::max(0, pages_of(end) - static_cast<int>(sliding_pages_.size()));
  }
  // Sliding pages begin in the middle: after pages come back from host memory.
  void grow_sliding_from(int first_page, int end);

  // Gives back sliding pages that no query from `position` on can see.
  void release_behind(int position);
  void release_all();

  std::span<const PageId> full() const { return full_pages_; }
  // kNoPage before first_sliding().
  std::span<const PageId> sliding() const { return sliding_pages_; }
  int first_sliding() const { return first_sliding_; }
  // A copy of sliding() that stays as it is until the same `parity` is asked for again: a step in flight
  // reads one while the next is planned with the other.
  std::span<const PageId> sliding_view(int parity);

  // Pages that a lone sequence of `max_tokens` positions needs when its steps have at most `step_tokens`.
  static KvSizes needed(int max_tokens, int step_tokens, int sliding_window);

 private:
  struct View {
    std::vector<PageId> pages;
    int first = 0;  // entries before it are kNoPage
  };

  PagePool& full_pool_;
  PagePool& sliding_pool_;
  int sliding_window_;
  std::vector<PageId> full_pages_;
  std::vector<PageId> sliding_pages_;
  int first_sliding_ = 0;
  std::array<View, 2> views_;
};

}  // namespace jewel

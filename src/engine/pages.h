// Who holds which KV page: the engine's books over the backend's two pools.
//
// PagePool hands out page numbers of one pool; free + held = all at every moment. SequencePages keeps the two
// page tables of one sequence: full-attention layers keep every position, sliding ones only what a window
// still reaches. One thread, the engine's. A SequencePages gives its pages back when it goes.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"

namespace jewel {

class PagePool {
 public:
  explicit PagePool(int n_pages);

  int n_pages() const { return n_pages_; }
  int n_free() const { return static_cast<int>(free_.size()); }
  int n_held() const { return n_pages_ - n_free(); }

  // kNoPage when none is free.
  PageId take();
  void give_back(PageId page);

 private:
  int n_pages_;
  std::vector<PageId> free_;
  std::vector<bool> held_;  // catches a page given back twice
};

class SequencePages {
 public:
  // The pools must outlive it. `sliding_window` counts visible keys, the query's own included.
  SequencePages(PagePool& full, PagePool& sliding, int sliding_window);
  ~SequencePages();
  SequencePages(const SequencePages&) = delete;
  SequencePages& operator=(const SequencePages&) = delete;

  // Makes room for a step over positions [begin, begin + count): sliding pages that no query from `begin` on
  // can see go back first. Steps come in order. An Error (kUnavailable) when a pool is empty; what was taken
  // stays until the end.
  Result<void> prepare_step(int begin, int count);

  std::span<const PageId> full() const { return full_pages_; }
  std::span<const PageId> sliding() const { return sliding_pages_; }

  // Pages that a lone sequence of `max_tokens` positions needs when its steps have at most `step_tokens`.
  static KvSizes needed(int max_tokens, int step_tokens, int sliding_window);

 private:
  PagePool& full_pool_;
  PagePool& sliding_pool_;
  int sliding_window_;
  std::vector<PageId> full_pages_;
  std::vector<PageId> sliding_pages_;
  int first_sliding_page_ = 0;  // pages before it were given back
};

}  // namespace jewel

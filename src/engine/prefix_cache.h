// The prefix cache: a tree of pages that sequences have computed, by the chain keys of engine/prefix_keys.h.
//
// A node is one page of positions: its full page, and, where a checkpoint needs it, its sliding page. A
// checkpoint at a node means that a sequence can resume right after it: every sliding page of the window
// before that point is kept. Without sliding pages full ones are useless, so a chain is kept only as far as
// its last checkpoint; and where no checkpoint is, no sliding page is. That is why a cache that is too small
// loses whole sessions, least worth first, instead of the tails of all.
//
// Sequences hold nodes (the path of their prompt) as well as pages: a node that a sequence holds is not
// dropped, though its checkpoint may be. Whatever is kept and not held can be evicted, from the leaves up.
//
// What to evict: first checkpoints that were superseded (the conversation went on and has a later one); then
// the least recently used. That collapses when sessions return in turn and are more than fit: each is evicted
// just before it comes back. So the cache remembers the keys of what it evicted. While most of those who
// return are found among these, it keeps what it has and evicts the one whose return is farthest away (last
// use + the time it took to return before), except those that are overdue by twice that time, which are
// taken for dead and go first.
//
// Every operation takes a time that depends on the pages it is about and on the logarithm of what is cached,
// never on all of it (but for the moment when the rule of eviction changes): nodes are found by
// engine/digest_index.h; what goes next is known by engine/eviction_order.h; that a checkpoint is dead is
// noticed by a hand that goes round with each eviction.
//
// One thread, the engine's. Time is counted in lookups. The pools must outlive the cache.
#pragma once

#include <memory>
#include <vector>

#include "engine/digest_index.h"
#include "engine/evicted_keys.h"
#include "engine/eviction_order.h"
#include "engine/pages.h"
#include "engine/request.h"

namespace jewel {

class PrefixCache {
 public:
  struct Node;  // opaque; valid while held
  struct Hit {
    std::vector<Node*> path;       // from the first page
    uint64_t return_distance = 0;  // lookups since the session was last here; 0 = unknown
    int n_pages() const { return static_cast<int>(path.size()); }
  };
  enum class Kind : uint8_t {
    kGiven,  // the caller named the point: others may branch off there
    kEnd,    // of a prompt or an answer: a later one of the same conversation supersedes it
  };

  PrefixCache(PagePool& full, PagePool& sliding, int sliding_window);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest prefix of at most `max_pages` from which a sequence can resume. Changes nothing.
  Hit lookup(std::span<const Digest> keys, int max_pages) const;
  // Gives the pages of a hit to a sequence that has none, and holds its path.
  void take(const Hit& hit, SequencePages& pages);
  // The sequence goes on from this hit (or from nothing): its checkpoint was used, a lookup has passed.
  void note_use(Hit& hit, std::span<const Digest> keys, int max_pages);

  // These pages are added or found in a moment; saves waiting for memory one page at a time.
  void prefetch(std::span<const Digest> keys) const;
  // Adds the page after `path` (computed, never to be written again) or finds the one that is there, holds
  // it, and appends it to the path.
  void extend(std::vector<Node*>& path, const Digest& key, PageId full_page);
  // Makes the end of path[0, n_pages) a point to resume from, when the sequence still has the window before
  // it. False when it has not.
  bool checkpoint(std::span<Node* const> path, int n_pages, const SequencePages& pages, Kind kind,
                  uint64_t return_distance);
  bool has_checkpoint(std::span<Node* const> path, int n_pages) const;
  // A sequence resumed after path[0, from) and has now a checkpoint beyond it: ends of earlier prompts and
  // answers on the way, from which nobody else branched off, go first when room is needed.
  void supersede(std::span<Node* const> path, int from);
  // Lets the path go; what no checkpoint needs is dropped.
  void let_go(std::vector<Node*>& path);

  // Which node this is, never reused: pages of a node with the same serial hold the same bytes.
  uint64_t serial(const Node* node) const;
  // The cached nodes that match `serials` and `keys` from the first page on, as a hit without sliding pages.
  std::vector<Node*> find_same(std::span<const Digest> keys, std::span<const uint64_t> serials) const;
  void take_full(std::span<Node* const> path, SequencePages& pages);

  // Frees at least one page of the pool, or returns false: nothing is kept that no sequence holds.
  bool evict(LayerType pool);
  void clear();

  int n_nodes() const { return static_cast<int>(index_.size()); }
  int n_checkpoints() const { return static_cast<int>(checkpoints_.size()); }
  bool thrashing() const { return thrashing_; }

  // Asserts that nodes, checkpoints and the pools' kept pages agree. O(pages).
  void check_books() const;

 private:
  static constexpr uint32_t kRoot = 0xffffffff;
  // What few operations ask of a node.
  struct Name {
    Digest key;
    uint64_t serial;
  };
  struct Checkpoint {
    Node* node = nullptr;
    uint64_t last_used = 0;
    uint64_t return_distance = 0;
    Kind kind = Kind::kEnd;
    bool superseded = false;
  };

  uint32_t number(const Node* node) const;
  Node* parent(const Node* node) const;
  Node* find(const Digest& key) const;
  Node* make_node(const Digest& key, Node* parent, PageId full_page);
  void hold(Node* node);
  int window_pages(int n_pages) const;
  void note_return(bool resident, uint64_t distance);
  void remove_checkpoint(size_t index, bool remember);
  void drop_unneeded(Node* node);
  uint64_t rank(const Checkpoint& checkpoint) const;
  void rank_again(size_t index);
  void rank_again(const Node* node);
  void look_for_dead();
  static bool can_free_full(const Node& node);

  PagePool& full_pool_;
  PagePool& sliding_pool_;
  int sliding_window_;
  uint64_t clock_ = 0;  // lookups
  uint64_t next_serial_ = 1;

  std::unique_ptr<Node[]> nodes_;
  std::unique_ptr<Name[]> names_;  // by number, as nodes_
  uint32_t n_nodes_made_ = 0;      // places in nodes_ that were ever used
  std::vector<uint32_t> free_nodes_;
  DigestIndex index_;  // numbers of nodes by key
  std::vector<Checkpoint> checkpoints_;
  EvictionOrder full_order_, sliding_order_;  // of checkpoints_
  size_t hand_ = 0;                           // in checkpoints_

  EvictedKeys evicted_;
  double late_share_ = 0;      // of the last returns, those that came too late
  double usual_distance_ = 0;  // of the last returns
  bool thrashing_ = false;
  std::vector<PageId> full_scratch_, sliding_scratch_;
};

}  // namespace jewel

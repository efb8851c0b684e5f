#include "engine/prefix_cache.h"

#include <algorithm>

namespace jewel {
namespace {

constexpr size_t kMaxGhosts = 8192;
constexpr double kLearn = 1.0 / 16;  // weight of the newest return in the running averages

}  // namespace

struct PrefixCache::Node {
  Digest key;
  uint64_t serial = 0;
  Node* parent = nullptr;
  int depth = 0;  // pages up to and including this one
  PageId full_page = kNoPage;
  PageId sliding_page = kNoPage;  // kept while n_windows > 0
  int n_windows = 0;              // checkpoints whose window covers this page
  int n_children = 0;
  int n_sequences = 0;  // whose path goes through here
  int checkpoint = -1;  // index in checkpoints_
};

PrefixCache::PrefixCache(PagePool& full, PagePool& sliding, int sliding_window)
    : full_pool_(full), sliding_pool_(sliding), sliding_window_(sliding_window) {}

PrefixCache::~PrefixCache() = default;

uint64_t PrefixCache::serial(const Node* node) {
  return node->serial;
}

PrefixCache::Node* PrefixCache::find(const Digest& key) const {
  const auto it = nodes_.find(key);
  return it == nodes_.end() ? nullptr : it->second.get();
}

// Sliding pages that a sequence needs to resume after `n_pages` pages.
int PrefixCache::window_pages(int n_pages) const {
  return n_pages - first_window_page(n_pages * kPageTokens, sliding_window_);
}

int PrefixCache::match(std::span<const Digest> keys, int max_pages) const {
  const size_t limit = std::min(keys.size(), static_cast<size_t>(std::max(0, max_pages)));
  int usable = 0;
  int run = 0;  // pages in a row, up to here, whose sliding page is kept
  for (size_t i = 0; i < limit; ++i) {
    const Node* node = find(keys[i]);
    if (node == nullptr) break;
    run = node->sliding_page == kNoPage ? 0 : run + 1;
    const int n_pages = static_cast<int>(i) + 1;
    if (run >= window_pages(n_pages)) usable = n_pages;
  }
  return usable;
}

PrefixCache::Hit PrefixCache::lookup(std::span<const Digest> keys, int max_pages) const {
  Hit hit;
  const int n_pages = match(keys, max_pages);
  hit.path.reserve(keys.size());
  for (int i = 0; i < n_pages; ++i) hit.path.push_back(find(keys[static_cast<size_t>(i)]));
  return hit;
}

void PrefixCache::note_use(Hit& hit, std::span<const Digest> keys, int max_pages) {
  ++clock_;
  const int n_pages = hit.n_pages();
  // Did this conversation get further before, and was it forgotten?
  for (size_t i = std::min(keys.size(), static_cast<size_t>(std::max(0, max_pages)));
       !ghosts_.empty() && i > static_cast<size_t>(n_pages); --i) {
    const auto ghost = ghosts_.find(keys[i - 1]);
    if (ghost == ghosts_.end()) continue;
    hit.return_distance = clock_ - ghost->second;
    note_return(/*resident=*/false, hit.return_distance);
    break;
  }
  const int index = n_pages > 0 ? hit.path.back()->checkpoint : -1;
  if (index >= 0) {
    Checkpoint& checkpoint = checkpoints_[static_cast<size_t>(index)];
    const uint64_t distance = clock_ - checkpoint.last_used;
    if (hit.return_distance == 0) {
      hit.return_distance = distance;
      note_return(/*resident=*/true, distance);
    }
    checkpoint.last_used = clock_;
    checkpoint.return_distance = distance;
    checkpoint.superseded = false;
  }
}

void PrefixCache::note_return(bool resident, uint64_t distance) {
  ghost_share_ += kLearn * ((resident ? 0.0 : 1.0) - ghost_share_);
  const auto d = static_cast<double>(distance);
  usual_distance_ = usual_distance_ == 0 ? d : usual_distance_ + kLearn * (d - usual_distance_);
}

void PrefixCache::take(const Hit& hit, SequencePages& pages) {
  std::vector<PageId> full, sliding;
  const int first_sliding = hit.n_pages() - window_pages(hit.n_pages());
  for (int i = 0; i < hit.n_pages(); ++i) {
    Node* node = hit.path[static_cast<size_t>(i)];
    ++node->n_sequences;
    full.push_back(node->full_page);
    if (i >= first_sliding) sliding.push_back(node->sliding_page);
  }
  pages.share(full, sliding);
}

std::vector<PrefixCache::Node*> PrefixCache::find_same(std::span<const Digest> keys,
                                                       std::span<const uint64_t> serials) const {
  std::vector<Node*> path;
  for (size_t i = 0; i < std::min(keys.size(), serials.size()); ++i) {
    Node* node = find(keys[i]);
    if (node == nullptr || node->serial != serials[i]) break;
    path.push_back(node);
  }
  return path;
}

void PrefixCache::take_full(std::span<Node* const> path, SequencePages& pages) {
  std::vector<PageId> full;
  for (Node* node : path) {
    ++node->n_sequences;
    full.push_back(node->full_page);
  }
  pages.share_full(full);
}

void PrefixCache::extend(std::vector<Node*>& path, const Digest& key, PageId full_page) {
  std::unique_ptr<Node>& place = nodes_[key];
  if (place == nullptr) {
    place = std::make_unique<Node>();
    place->key = key;
    place->serial = next_serial_++;
    place->parent = path.empty() ? nullptr : path.back();
    place->depth = static_cast<int>(path.size()) + 1;
    place->full_page = full_page;
    full_pool_.keep(full_page);
    if (place->parent != nullptr) ++place->parent->n_children;
  } else if (place->full_page != full_page && full_pool_.n_holders(place->full_page) == 0) {
    // Computed twice, and the first one's sequence is gone: keep the page that is held anyway.
    full_pool_.drop(place->full_page);
    place->full_page = full_page;
    full_pool_.keep(full_page);
  }
  ++place->n_sequences;
  path.push_back(place.get());
}

bool PrefixCache::has_checkpoint(std::span<Node* const> path, int n_pages) const {
  return n_pages >= 1 && n_pages <= static_cast<int>(path.size()) &&
         path[static_cast<size_t>(n_pages) - 1]->checkpoint >= 0;
}

bool PrefixCache::checkpoint(std::span<Node* const> path, int n_pages, const SequencePages& pages, Kind kind,
                             uint64_t return_distance) {
  if (n_pages < 1 || n_pages > static_cast<int>(path.size())) return false;
  Node* node = path[static_cast<size_t>(n_pages) - 1];
  if (node->checkpoint >= 0) {
    Checkpoint& known = checkpoints_[static_cast<size_t>(node->checkpoint)];
    known.last_used = clock_;
    known.superseded = false;
    if (kind == Kind::kGiven) known.kind = kind;
    return true;
  }
  const int first = n_pages - window_pages(n_pages);
  const std::span<const PageId> sliding = pages.sliding();
  for (int i = first; i < n_pages; ++i) {
    const auto at = static_cast<size_t>(i);
    if (path[at]->sliding_page == kNoPage && (at >= sliding.size() || sliding[at] == kNoPage)) return false;
  }
  for (int i = first; i < n_pages; ++i) {
    const auto at = static_cast<size_t>(i);
    Node& covered = *path[at];
    if (covered.sliding_page == kNoPage) {
      covered.sliding_page = sliding[at];
      sliding_pool_.keep(sliding[at]);
    }
    ++covered.n_windows;
  }
  node->checkpoint = static_cast<int>(checkpoints_.size());
  checkpoints_.push_back(
      {.node = node, .last_used = clock_, .return_distance = return_distance, .kind = kind});
  ghosts_.erase(node->key);
  return true;
}

void PrefixCache::supersede(std::span<Node* const> path, int from) {
  bool branches = false;  // between here and the next checkpoint
  for (size_t i = path.size(); i-- > 0;) {
    const Node* node = path[i];
    branches = branches || node->n_children > 1;
    if (node->checkpoint < 0) continue;
    Checkpoint& checkpoint = checkpoints_[static_cast<size_t>(node->checkpoint)];
    if (static_cast<int>(i) < from && !branches && checkpoint.kind == Kind::kEnd)
      checkpoint.superseded = true;
    branches = false;
  }
}

// Drops a node that nothing needs, then its parent if that was all that needed it.
void PrefixCache::drop_unneeded(Node* node) {
  while (node != nullptr && node->n_children == 0 && node->n_sequences == 0 && node->checkpoint < 0) {
    JEWEL_CHECK(node->n_windows == 0, "a leaf without a checkpoint is part of {} windows", node->n_windows);
    Node* parent = node->parent;
    full_pool_.drop(node->full_page);
    if (parent != nullptr) --parent->n_children;
    nodes_.erase(Digest(node->key));
    node = parent;
  }
}

void PrefixCache::let_go(std::vector<Node*>& path) {
  for (Node* node : path) --node->n_sequences;
  if (!path.empty()) drop_unneeded(path.back());
  path.clear();
}

void PrefixCache::remove_checkpoint(size_t index, bool remember) {
  Node* node = checkpoints_[index].node;
  if (remember && !checkpoints_[index].superseded) {
    if (ghosts_.insert_or_assign(node->key, checkpoints_[index].last_used).second)
      ghost_order_.push_back(node->key);
    while (ghost_order_.size() > kMaxGhosts) {
      ghosts_.erase(ghost_order_.front());
      ghost_order_.pop_front();
    }
  }
  checkpoints_[index] = checkpoints_.back();
  checkpoints_[index].node->checkpoint = static_cast<int>(index);
  checkpoints_.pop_back();
  node->checkpoint = -1;
  int covered = window_pages(node->depth);
  for (Node* at = node; covered > 0; --covered, at = at->parent) {
    if (--at->n_windows > 0) continue;
    sliding_pool_.drop(at->sliding_page);
    at->sliding_page = kNoPage;
  }
  drop_unneeded(node);
}

// Larger is kept longer.
double PrefixCache::worth(const Checkpoint& checkpoint) const {
  const auto last_used = static_cast<double>(checkpoint.last_used);
  constexpr double kClass = 1e15;
  if (checkpoint.superseded) return last_used - 2 * kClass;
  if (!thrashing()) return last_used;
  const double distance =
      checkpoint.return_distance > 0 ? static_cast<double>(checkpoint.return_distance) : usual_distance_;
  const auto now = static_cast<double>(clock_);
  if (now > last_used + 2 * distance + 1) return last_used - kClass;  // taken for dead
  return -(last_used + distance);
}

bool PrefixCache::can_free_full(const Node& node) const {
  return node.n_children == 0 && node.n_sequences == 0;
}

bool PrefixCache::evict(LayerType pool) {
  PagePool& pages = pool == LayerType::kFull ? full_pool_ : sliding_pool_;
  const int before = pages.n_free();
  while (pages.n_cached() > 0) {
    size_t victim = checkpoints_.size();
    double least = 0;
    for (size_t i = 0; i < checkpoints_.size(); ++i) {
      if (pool == LayerType::kFull && !can_free_full(*checkpoints_[i].node)) continue;
      const double value = worth(checkpoints_[i]);
      if (victim == checkpoints_.size() || value < least) {
        victim = i;
        least = value;
      }
    }
    if (victim == checkpoints_.size()) return false;
    remove_checkpoint(victim, /*remember=*/true);
    if (pages.n_free() > before) return true;
  }
  return false;
}

void PrefixCache::clear() {
  while (!checkpoints_.empty()) remove_checkpoint(checkpoints_.size() - 1, /*remember=*/false);
  ghosts_.clear();
  ghost_order_.clear();
}

void PrefixCache::check_books() const {
  std::unordered_map<const Node*, int> children, windows;
  int kept_full = 0, kept_sliding = 0;
  for (const Checkpoint& checkpoint : checkpoints_) {
    const Node* at = checkpoint.node;
    JEWEL_CHECK(&checkpoints_[static_cast<size_t>(at->checkpoint)] == &checkpoint,
                "a checkpoint is not its node's");
    for (int covered = window_pages(at->depth); covered > 0; --covered, at = at->parent) ++windows[at];
  }
  for (const auto& [key, node] : nodes_) {
    if (node->parent != nullptr) ++children[node->parent];
  }
  for (const auto& [key, node] : nodes_) {
    JEWEL_CHECK(node->n_children == children[node.get()], "node of depth {}: {} children, counted {}",
                node->depth, node->n_children, children[node.get()]);
    JEWEL_CHECK(node->n_windows == windows[node.get()], "node of depth {}: {} windows, counted {}",
                node->depth, node->n_windows, windows[node.get()]);
    JEWEL_CHECK(full_pool_.kept(node->full_page), "full page {} is not kept", node->full_page);
    ++kept_full;
    JEWEL_CHECK((node->sliding_page != kNoPage) == (node->n_windows > 0), "a sliding page without a window");
    if (node->sliding_page != kNoPage) {
      JEWEL_CHECK(sliding_pool_.kept(node->sliding_page), "sliding page {} is not kept", node->sliding_page);
      ++kept_sliding;
    }
    JEWEL_CHECK(node->n_children > 0 || node->n_sequences > 0 || node->checkpoint >= 0,
                "a leaf that nobody needs, depth {}", node->depth);
    JEWEL_CHECK(node->parent == nullptr || node->parent->n_sequences >= node->n_sequences,
                "a sequence holds a node but not its parent");
  }
  const auto count_kept = [](const PagePool& pool) {
    int n = 0;
    for (PageId page = 0; page < pool.n_pages(); ++page) n += pool.kept(page) ? 1 : 0;
    return n;
  };
  JEWEL_CHECK(count_kept(full_pool_) == kept_full, "{} full pages are kept, nodes have {}",
              count_kept(full_pool_), kept_full);
  JEWEL_CHECK(count_kept(sliding_pool_) == kept_sliding, "{} sliding pages are kept, nodes have {}",
              count_kept(sliding_pool_), kept_sliding);
}

}  // namespace jewel

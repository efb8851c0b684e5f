#include "engine/prefix_cache.h"

#include <algorithm>
#include <ranges>
#include <unordered_map>

namespace jewel {
namespace {

constexpr size_t kMaxEvictedKeys = 8192;
constexpr double kLearn = 1.0 / 16;  // weight of the newest return in the running averages
// Shares of late returns at which the rule of eviction changes, and changes back.
constexpr double kThrashing = 0.5, kFitsAgain = 0.4;
// Checkpoints that the hand looks at with each eviction.
constexpr int kLooks = 16;

// Ranks of eviction: the class in the two highest bits, the order inside of it below.
enum class Class : uint8_t { kSuperseded, kDead, kAlive };
constexpr int kClassBits = 62;
constexpr uint64_t kLast = (uint64_t{1} << kClassBits) - 1;
constexpr uint64_t rank_of(Class which, uint64_t order) {
  return (static_cast<uint64_t>(which) << kClassBits) + order;
}

}  // namespace

// Half a cache line. Nodes of one chain lie together, as they are made and dropped in turn.
struct PrefixCache::Node {
  uint32_t parent;  // number, or kRoot
  int depth;        // pages up to and including this one
  PageId full_page;
  PageId sliding_page;  // kept while n_windows > 0, else kNoPage
  int n_windows;        // checkpoints whose window covers this page
  int n_children;
  int n_sequences;  // whose path goes through here
  int checkpoint;   // index in checkpoints_, or -1
};

// A node keeps a full page of its own, so there are never more nodes than pages. Memory that no node has had
// yet is not touched.
PrefixCache::PrefixCache(PagePool& full, PagePool& sliding, int sliding_window)
    : full_pool_(full),
      sliding_pool_(sliding),
      sliding_window_(sliding_window),
      nodes_(std::make_unique_for_overwrite<Node[]>(static_cast<size_t>(full.n_pages()))),
      names_(std::make_unique_for_overwrite<Name[]>(static_cast<size_t>(full.n_pages()))),
      index_(static_cast<size_t>(full.n_pages())),
      evicted_(kMaxEvictedKeys) {}

PrefixCache::~PrefixCache() = default;

uint32_t PrefixCache::number(const Node* node) const {
  return static_cast<uint32_t>(node - nodes_.get());
}

uint64_t PrefixCache::serial(const Node* node) const {
  return names_[number(node)].serial;
}

PrefixCache::Node* PrefixCache::parent(const Node* node) const {
  return node->parent == kRoot ? nullptr : &nodes_[node->parent];
}

PrefixCache::Node* PrefixCache::find(const Digest& key) const {
  const uint32_t number = index_.find(key, [&](uint32_t n) { return names_[n].key == key; });
  return number == DigestIndex::kNone ? nullptr : &nodes_[number];
}

PrefixCache::Node* PrefixCache::make_node(const Digest& key, Node* parent, PageId full_page) {
  uint32_t number = n_nodes_made_;
  if (free_nodes_.empty()) {
    ++n_nodes_made_;
  } else {
    number = free_nodes_.back();
    free_nodes_.pop_back();
  }
  index_.insert(key, number);
  names_[number] = {.key = key, .serial = next_serial_++};
  nodes_[number] = {.parent = parent == nullptr ? kRoot : this->number(parent),
                    .depth = parent == nullptr ? 1 : parent->depth + 1,
                    .full_page = full_page,
                    .sliding_page = kNoPage,
                    .n_windows = 0,
                    .n_children = 0,
                    .n_sequences = 0,
                    .checkpoint = -1};
  full_pool_.keep(full_page);
  if (parent != nullptr && parent->n_children++ == 0) rank_again(parent);
  return &nodes_[number];
}

void PrefixCache::hold(Node* node) {
  if (node->n_sequences++ == 0) rank_again(node);
}

// Sliding pages that a sequence needs to resume after `n_pages` pages.
int PrefixCache::window_pages(int n_pages) const {
  return n_pages - first_window_page(n_pages * kPageTokens, sliding_window_);
}

PrefixCache::Hit PrefixCache::lookup(std::span<const Digest> keys, int max_pages) const {
  Hit hit;
  // A node that is there has its parents, so one probe tells about all pages before it.
  size_t known = 0, limit = std::min(keys.size(), static_cast<size_t>(std::max(0, max_pages)));
  Node* deepest = nullptr;
  while (known < limit) {
    const size_t n_pages = (known + limit + 1) / 2;
    if (Node* node = find(keys[n_pages - 1]); node != nullptr) {
      JEWEL_CHECK(node->depth == static_cast<int>(n_pages), "the key of page {} is that of page {}", n_pages,
                  node->depth);
      deepest = node;
      known = n_pages;
    } else {
      limit = n_pages - 1;
    }
  }
  if (deepest == nullptr) return hit;
  hit.path.resize(known);
  for (size_t i = known; i-- > 0; deepest = parent(deepest)) hit.path[i] = deepest;
  size_t usable = 0;
  int run = 0;  // pages in a row, up to here, whose sliding page is kept
  for (size_t i = 0; i < known; ++i) {
    run = hit.path[i]->sliding_page == kNoPage ? 0 : run + 1;
    if (run >= window_pages(static_cast<int>(i) + 1)) usable = i + 1;
  }
  hit.path.resize(usable);
  return hit;
}

void PrefixCache::note_use(Hit& hit, std::span<const Digest> keys, int max_pages) {
  ++clock_;
  const int n_pages = hit.n_pages();
  // Did this conversation get further before, and was it forgotten?
  std::span<const Digest> beyond;
  if (!evicted_.empty()) {
    beyond = keys.first(std::min(keys.size(), static_cast<size_t>(std::max(n_pages, max_pages))))
                 .subspan(static_cast<size_t>(n_pages));
  }
  for (const Digest& key : beyond) evicted_.prefetch(key);
  for (const Digest& key : std::views::reverse(beyond)) {
    const std::optional<uint64_t> last_used = evicted_.last_used(key);
    if (!last_used) continue;
    hit.return_distance = clock_ - *last_used;
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
    rank_again(static_cast<size_t>(index));
  }
}

void PrefixCache::note_return(bool resident, uint64_t distance) {
  late_share_ += kLearn * ((resident ? 0.0 : 1.0) - late_share_);
  const auto d = static_cast<double>(distance);
  usual_distance_ = usual_distance_ == 0 ? d : usual_distance_ + kLearn * (d - usual_distance_);
  const bool thrashing = late_share_ > (thrashing_ ? kFitsAgain : kThrashing);
  if (thrashing == thrashing_) return;
  thrashing_ = thrashing;
  for (size_t i = 0; i < checkpoints_.size(); ++i) rank_again(i);
}

void PrefixCache::take(const Hit& hit, SequencePages& pages) {
  full_scratch_.clear();
  sliding_scratch_.clear();
  const int first_sliding = hit.n_pages() - window_pages(hit.n_pages());
  for (int i = 0; i < hit.n_pages(); ++i) {
    Node* node = hit.path[static_cast<size_t>(i)];
    hold(node);
    full_scratch_.push_back(node->full_page);
    if (i >= first_sliding) sliding_scratch_.push_back(node->sliding_page);
  }
  pages.share(full_scratch_, sliding_scratch_);
}

std::vector<PrefixCache::Node*> PrefixCache::find_same(std::span<const Digest> keys,
                                                       std::span<const uint64_t> serials) const {
  std::vector<Node*> path;
  for (size_t i = 0; i < std::min(keys.size(), serials.size()); ++i) {
    Node* node = find(keys[i]);
    if (node == nullptr || serial(node) != serials[i]) break;
    path.push_back(node);
  }
  return path;
}

void PrefixCache::take_full(std::span<Node* const> path, SequencePages& pages) {
  full_scratch_.clear();
  for (Node* node : path) {
    hold(node);
    full_scratch_.push_back(node->full_page);
  }
  pages.share_full(full_scratch_);
}

void PrefixCache::prefetch(std::span<const Digest> keys) const {
  for (const Digest& key : keys) index_.prefetch(key);
}

void PrefixCache::extend(std::vector<Node*>& path, const Digest& key, PageId full_page) {
  Node* node = find(key);
  if (node == nullptr) {
    node = make_node(key, path.empty() ? nullptr : path.back(), full_page);
  } else if (node->full_page != full_page && full_pool_.n_holders(node->full_page) == 0) {
    // Computed twice, and the first one's sequence is gone: keep the page that is held anyway.
    full_pool_.drop(node->full_page);
    node->full_page = full_page;
    full_pool_.keep(full_page);
  }
  hold(node);
  path.push_back(node);
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
    rank_again(node);
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
  rank_again(node);
  evicted_.forget(names_[number(node)].key);
  return true;
}

void PrefixCache::supersede(std::span<Node* const> path, int from) {
  bool branches = false;  // between here and the next checkpoint
  for (size_t i = path.size(); i-- > 0;) {
    const Node* node = path[i];
    branches = branches || node->n_children > 1;
    if (node->checkpoint < 0) continue;
    Checkpoint& checkpoint = checkpoints_[static_cast<size_t>(node->checkpoint)];
    if (static_cast<int>(i) < from && !branches && checkpoint.kind == Kind::kEnd && !checkpoint.superseded) {
      checkpoint.superseded = true;
      rank_again(node);
    }
    branches = false;
  }
}

// Drops a node that nothing needs, then its parent if that was all that needed it.
void PrefixCache::drop_unneeded(Node* node) {
  const auto unneeded = [](const Node& at, int n_children) {
    return at.n_children == n_children && at.n_sequences == 0 && at.checkpoint < 0;
  };
  if (node == nullptr || !unneeded(*node, 0)) return;
  for (const Node* at = node; at != nullptr && unneeded(*at, at == node ? 0 : 1); at = parent(at))
    index_.prefetch(names_[number(at)].key);
  while (node != nullptr && unneeded(*node, 0)) {
    JEWEL_CHECK(node->n_windows == 0, "a leaf without a checkpoint is part of {} windows", node->n_windows);
    full_pool_.drop(node->full_page);
    index_.erase(names_[number(node)].key, number(node));
    free_nodes_.push_back(number(node));
    node = parent(node);
    if (node != nullptr && --node->n_children == 0) rank_again(node);
  }
}

void PrefixCache::let_go(std::vector<Node*>& path) {
  for (Node* node : path) {
    if (--node->n_sequences == 0) rank_again(node);
  }
  if (!path.empty()) drop_unneeded(path.back());
  path.clear();
}

void PrefixCache::remove_checkpoint(size_t index, bool remember) {
  const Checkpoint gone = checkpoints_[index];
  Node* node = gone.node;
  if (remember && !gone.superseded) evicted_.remember(names_[number(node)].key, gone.last_used);
  const size_t last = checkpoints_.size() - 1;
  full_order_.set(last, EvictionOrder::kNever);
  sliding_order_.set(last, EvictionOrder::kNever);
  if (index != last) {
    checkpoints_[index] = checkpoints_[last];
    checkpoints_[index].node->checkpoint = static_cast<int>(index);
    rank_again(index);
  }
  checkpoints_.pop_back();
  node->checkpoint = -1;
  int covered = window_pages(node->depth);
  for (Node* at = node; covered > 0; --covered, at = parent(at)) {
    if (--at->n_windows > 0) continue;
    sliding_pool_.drop(at->sliding_page);
    at->sliding_page = kNoPage;
  }
  drop_unneeded(node);
}

// The least goes first.
uint64_t PrefixCache::rank(const Checkpoint& checkpoint) const {
  if (checkpoint.superseded) return rank_of(Class::kSuperseded, checkpoint.last_used);
  if (!thrashing_) return rank_of(Class::kAlive, checkpoint.last_used);
  const uint64_t distance =
      checkpoint.return_distance > 0 ? checkpoint.return_distance : static_cast<uint64_t>(usual_distance_);
  if (clock_ > checkpoint.last_used + 2 * distance + 1) return rank_of(Class::kDead, checkpoint.last_used);
  return rank_of(Class::kAlive, kLast - (checkpoint.last_used + distance));
}

bool PrefixCache::can_free_full(const Node& node) {
  return node.n_children == 0 && node.n_sequences == 0;
}

void PrefixCache::rank_again(size_t index) {
  const Checkpoint& checkpoint = checkpoints_[index];
  const uint64_t now = rank(checkpoint);
  sliding_order_.set(index, now);
  full_order_.set(index, can_free_full(*checkpoint.node) ? now : EvictionOrder::kNever);
}

void PrefixCache::rank_again(const Node* node) {
  if (node->checkpoint >= 0) rank_again(static_cast<size_t>(node->checkpoint));
}

// Ranks do not change by themselves, except that in the end a checkpoint is taken for dead.
void PrefixCache::look_for_dead() {
  if (!thrashing_) return;
  for (int i = 0; i < kLooks && !checkpoints_.empty(); ++i) {
    hand_ = hand_ + 1 < checkpoints_.size() ? hand_ + 1 : 0;
    rank_again(hand_);
  }
}

bool PrefixCache::evict(LayerType pool) {
  PagePool& pages = pool == LayerType::kFull ? full_pool_ : sliding_pool_;
  const EvictionOrder& order = pool == LayerType::kFull ? full_order_ : sliding_order_;
  look_for_dead();
  const int before = pages.n_free();
  size_t victim = 0;
  while (pages.n_cached() > 0 && order.least(victim)) {
    remove_checkpoint(victim, /*remember=*/true);
    if (pages.n_free() > before) return true;
  }
  return false;
}

void PrefixCache::clear() {
  while (!checkpoints_.empty()) remove_checkpoint(checkpoints_.size() - 1, /*remember=*/false);
  evicted_.clear();
}

void PrefixCache::check_books() const {
  std::unordered_map<const Node*, int> children, windows;
  int kept_full = 0, kept_sliding = 0;
  for (size_t i = 0; i < checkpoints_.size(); ++i) {
    const Node* at = checkpoints_[i].node;
    JEWEL_CHECK(at->checkpoint == static_cast<int>(i), "a checkpoint is not its node's");
    JEWEL_CHECK((full_order_.rank(i) != EvictionOrder::kNever) == can_free_full(*at),
                "a checkpoint's place in the order of eviction is not up to date");
    for (int covered = window_pages(at->depth); covered > 0; --covered, at = parent(at)) ++windows[at];
  }
  std::vector<bool> in_use(n_nodes_made_, true);
  for (const uint32_t free : free_nodes_) in_use[free] = false;
  std::vector<const Node*> nodes;
  for (uint32_t i = 0; i < n_nodes_made_; ++i) {
    if (in_use[i]) nodes.push_back(&nodes_[i]);
  }
  JEWEL_CHECK(nodes.size() == index_.size(), "{} nodes, {} in the index", nodes.size(), index_.size());
  for (const Node* node : nodes) {
    if (node->parent != kRoot) ++children[parent(node)];
  }
  for (const Node* node : nodes) {
    JEWEL_CHECK(find(names_[number(node)].key) == node, "node of depth {} is not in the index", node->depth);
    JEWEL_CHECK(node->n_children == children[node], "node of depth {}: {} children, counted {}", node->depth,
                node->n_children, children[node]);
    JEWEL_CHECK(node->n_windows == windows[node], "node of depth {}: {} windows, counted {}", node->depth,
                node->n_windows, windows[node]);
    JEWEL_CHECK(full_pool_.kept(node->full_page), "full page {} is not kept", node->full_page);
    ++kept_full;
    JEWEL_CHECK((node->sliding_page != kNoPage) == (node->n_windows > 0), "a sliding page without a window");
    if (node->sliding_page != kNoPage) {
      JEWEL_CHECK(sliding_pool_.kept(node->sliding_page), "sliding page {} is not kept", node->sliding_page);
      ++kept_sliding;
    }
    JEWEL_CHECK(node->n_children > 0 || node->n_sequences > 0 || node->checkpoint >= 0,
                "a leaf that nobody needs, depth {}", node->depth);
    JEWEL_CHECK(node->parent == kRoot || parent(node)->n_sequences >= node->n_sequences,
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

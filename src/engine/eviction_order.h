// EvictionOrder: entries 0..n-1, each with a rank, and which of them has the least.
//
// A tournament tree: a change of one rank plays log2(n) matches again, mostly fewer, and the winner is always
// known. Of equal ranks the smaller entry wins, so the order does not depend on history.
#pragma once

#include <cstdint>
#include <vector>

namespace jewel {

class EvictionOrder {
 public:
  static constexpr uint64_t kNever = ~uint64_t{0};  // not to be evicted now; also of entries never set

  void set(size_t entry, uint64_t rank) {
    if (entry >= capacity_) grow(entry + 1);
    size_t at = capacity_ + entry;
    tree_[at].rank = rank;
    for (at /= 2; at > 0; at /= 2) {
      const Player winner = better(tree_[2 * at], tree_[2 * at + 1]);
      if (winner.rank == tree_[at].rank && winner.entry == tree_[at].entry) return;
      tree_[at] = winner;
    }
  }
  uint64_t rank(size_t entry) const { return entry < capacity_ ? tree_[capacity_ + entry].rank : kNever; }

  // False: no entry may be evicted.
  bool least(size_t& entry) const {
    if (capacity_ == 0 || tree_[1].rank == kNever) return false;
    entry = tree_[1].entry;
    return true;
  }

 private:
  struct Player {
    uint64_t rank = kNever;
    size_t entry = 0;
  };
  static const Player& better(const Player& a, const Player& b) { return b.rank < a.rank ? b : a; }

  void grow(size_t n) {
    size_t capacity = capacity_ == 0 ? 16 : capacity_;
    while (capacity < n) capacity *= 2;
    std::vector<Player> tree(2 * capacity);
    for (size_t i = 0; i < capacity; ++i) tree[capacity + i] = {.rank = rank(i), .entry = i};
    for (size_t i = capacity; i-- > 1;) tree[i] = better(tree[2 * i], tree[2 * i + 1]);
    tree_ = std::move(tree);
    capacity_ = capacity;
  }

  size_t capacity_ = 0;       // a power of two
  std::vector<Player> tree_;  // [1] has won, [capacity_ + i] is entry i
};

}  // namespace jewel

// EvictedKeys: the keys of what the prefix cache evicted lately, and when each was last used. A ring: beyond
// its limit the oldest is forgotten.
#pragma once

#include <optional>

#include "engine/digest_index.h"

namespace jewel {

class EvictedKeys {
 public:
  explicit EvictedKeys(size_t limit) : limit_(limit) {}

  bool empty() const { return index_.size() == 0; }

  void prefetch(const Digest& key) const { index_.prefetch(key); }

  std::optional<uint64_t> last_used(const Digest& key) const {
    const uint32_t place = find(key);
    return place == DigestIndex::kNone ? std::nullopt : std::optional(ring_[place].last_used);
  }

  void remember(const Digest& key, uint64_t last_used) {
    if (const uint32_t place = find(key); place != DigestIndex::kNone) {
      ring_[place].last_used = last_used;
      return;
    }
    const Entry entry{.key = key, .last_used = last_used, .known = true};
    const size_t place = next_;
    if (place == ring_.size()) {
      ring_.push_back(entry);
    } else {
      if (ring_[place].known) index_.erase(ring_[place].key, static_cast<uint32_t>(place));
      ring_[place] = entry;
    }
    index_.insert(key, static_cast<uint32_t>(place));
    next_ = (next_ + 1) % limit_;
  }

  void forget(const Digest& key) {
    const uint32_t place = find(key);
    if (place == DigestIndex::kNone) return;
    index_.erase(key, place);
    ring_[place].known = false;
  }

  void clear() {
    ring_.clear();
    index_.clear();
    next_ = 0;
  }

 private:
  struct Entry {
    Digest key{};
    uint64_t last_used = 0;
    bool known = false;
  };

  uint32_t find(const Digest& key) const {
    return index_.find(key, [&](uint32_t place) { return ring_[place].key == key; });
  }

  size_t limit_;
  std::vector<Entry> ring_;
  size_t next_ = 0;
  DigestIndex index_;
};

}  // namespace jewel

// DigestIndex: from a SHA-256 digest to a small number, say an index into an array whose entries know their
// whole digest.
//
// Open addressing with linear probing over slots of 8 bytes, at most half of them in use; an erased slot is
// filled from behind, so nothing is left over that later probes have to pass. The place is a hash of the
// digest's first 8 bytes and a secret of this process: whoever sends us texts can choose these bytes by
// trying many, but not the place. A slot has 32 bits of the hash, so that most probes end without a look
// elsewhere; equal ones are no proof of equal digests, and the caller compares these. Not synchronised.
#pragma once

#include <bit>
#include <cstring>
#include <random>
#include <vector>

#include "base/check.h"
#include "engine/request.h"

namespace jewel {

class DigestIndex {
 public:
  static constexpr uint32_t kNone = 0xffffffff;

  // Grows as needed; up to `expected` entries it does not have to.
  explicit DigestIndex(size_t expected = 0) { set_slots(std::bit_ceil(std::max(kFewest, 2 * expected))); }

  size_t size() const { return n_entries_; }

  // The value of an entry with this digest for which is_it(value) is true, or kNone.
  template <class IsIt>
  uint32_t find(const Digest& key, IsIt&& is_it) const {
    const uint32_t hash = hash_of(key);
    for (size_t i = home(hash); slots_[i].value != kNone; i = next(i)) {
      if (slots_[i].hash == hash && is_it(slots_[i].value)) return slots_[i].value;
    }
    return kNone;
  }

  // This digest is asked for soon: brings its place nearer. Places are far apart, so each first look at one
  // waits for memory, unless many are under way at a time.
  void prefetch(const Digest& key) const { __builtin_prefetch(&slots_[home(hash_of(key))]); }

  // The digest must not be in.
  void insert(const Digest& key, uint32_t value) {
    if (2 * (n_entries_ + 1) > slots_.size()) grow();
    place({.hash = hash_of(key), .value = value});
    ++n_entries_;
  }

  // The entry must be in.
  void erase(const Digest& key, uint32_t value) {
    size_t hole = home(hash_of(key));
    while (slots_[hole].value != value) {
      JEWEL_CHECK(slots_[hole].value != kNone, "a digest is not in the index");
      hole = next(hole);
    }
    for (size_t i = next(hole); slots_[i].value != kNone; i = next(i)) {
      // What stands at i may move to the hole unless its probing begins behind it.
      if (distance(home(slots_[i].hash), i) < distance(hole, i)) continue;
      slots_[hole] = slots_[i];
      hole = i;
    }
    slots_[hole] = {};
    --n_entries_;
  }

  void clear() {
    slots_.assign(slots_.size(), {});
    n_entries_ = 0;
  }

 private:
  struct Slot {
    uint32_t hash = 0;
    uint32_t value = kNone;
  };
  static constexpr size_t kFewest = 16;

  static uint32_t hash_of(const Digest& key) {
    static const uint64_t secret = [] {
      std::random_device random;
      return (uint64_t{random()} << 32 | random()) | 1;
    }();
    uint64_t bytes = 0;
    std::memcpy(&bytes, key.data(), sizeof(bytes));
    // The product's high bits depend on all of both.
    return static_cast<uint32_t>(((bytes ^ std::rotl(secret, 32)) * secret) >> 32);
  }
  size_t home(uint32_t hash) const { return hash >> shift_; }
  size_t next(size_t i) const { return (i + 1) & (slots_.size() - 1); }
  size_t distance(size_t from, size_t to) const { return (to - from) & (slots_.size() - 1); }

  void set_slots(size_t n) {
    slots_.assign(n, {});
    shift_ = 32 - std::countr_zero(n);
  }
  void place(const Slot& slot) {
    size_t i = home(slot.hash);
    while (slots_[i].value != kNone) i = next(i);
    slots_[i] = slot;
  }
  void grow() {
    const std::vector<Slot> old = std::move(slots_);
    set_slots(2 * old.size());
    for (const Slot& slot : old) {
      if (slot.value != kNone) place(slot);
    }
  }

  std::vector<Slot> slots_;  // a power of two of them, at most 2^31
  int shift_ = 0;
  size_t n_entries_ = 0;
};

}  // namespace jewel

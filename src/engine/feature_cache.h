// Soft tokens of encoded images, by content: an image that two requests show is encoded once.
//
// The bytes are the backend's; this knows which FeatureId is which image, who uses it, and when the unused
// ones have to go (least recently used first, beyond `max_rows` soft tokens). One thread, the engine's.
#pragma once

#include <list>
#include <map>
#include <utility>

#include "backend/backend.h"
#include "base/result.h"
#include "engine/request.h"

namespace jewel {

class FeatureCache {
 public:
  struct Entry {
    FeatureId feature = 0;
    int rows = 0;
    int n_users = 0;
    bool shared = true;  // false: another entry may take its key, this one goes with its last user
    std::pair<Digest, int> key;
  };

  FeatureCache(Backend& backend, int max_rows) : backend_(backend), max_rows_(max_rows) {}
  ~FeatureCache() { clear(); }
  FeatureCache(const FeatureCache&) = delete;
  FeatureCache& operator=(const FeatureCache&) = delete;

  // The image's soft tokens, encoded now unless they are here. `encoded` tells which.
  Result<Entry*> use(const PromptImage& image, bool& encoded);
  void let_go(Entry* entry);

  // The device failed: requests to come encode their images anew. A backend may run an image before or after
  // the step it was asked for in, so which entries are good is not known.
  void distrust();

  int n_entries() const { return static_cast<int>(entries_.size()); }
  void clear();  // unused ones

 private:
  using Entries = std::list<Entry>;  // least recently used first
  void trim();
  void erase(Entries::iterator entry);

  Backend& backend_;
  int max_rows_;
  int rows_ = 0;
  Entries entries_;
  std::map<std::pair<Digest, int>, Entries::iterator> by_key_;
};

}  // namespace jewel

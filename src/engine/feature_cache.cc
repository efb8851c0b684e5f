#include "engine/feature_cache.h"

#include <algorithm>

namespace jewel {

Result<FeatureCache::Entry*> FeatureCache::use(const PromptImage& image, bool& encoded) {
  const std::pair key(image.content, image.budget);
  const auto known = by_key_.find(key);
  encoded = known == by_key_.end();
  if (!encoded) {
    const auto entry = known->second;
    if (entry->rows != image.count) {
      return invalid("images: the same content and budget come with different numbers of soft tokens",
                     "images");
    }
    entries_.splice(entries_.end(), entries_, entry);
    ++entry->n_users;
    return &*entry;
  }
  if (image.patches == nullptr) return invalid("images: an image without patches", "images");
  JEWEL_ASSIGN(const FeatureId feature, backend_.encode_image(*image.patches));
  entries_.push_back({.feature = feature, .rows = image.count, .n_users = 1, .key = key});
  by_key_[key] = std::prev(entries_.end());
  rows_ += image.count;
  trim();
  return &entries_.back();
}

void FeatureCache::let_go(Entry* entry) {
  JEWEL_CHECK(entry->n_users > 0, "feature {} is not in use", entry->feature);
  if (--entry->n_users > 0) return;
  if (entry->shared) return trim();
  erase(std::ranges::find_if(entries_, [&](const Entry& e) { return &e == entry; }));
}

void FeatureCache::distrust() {
  for (auto it = entries_.begin(); it != entries_.end();) {
    const auto entry = it++;
    if (!entry->shared) continue;
    by_key_.erase(entry->key);
    entry->shared = false;
    if (entry->n_users == 0) erase(entry);
  }
}

void FeatureCache::trim() {
  for (auto it = entries_.begin(); it != entries_.end() && rows_ > max_rows_;) {
    const auto entry = it++;
    if (entry->n_users == 0) erase(entry);
  }
}

void FeatureCache::clear() {
  for (auto it = entries_.begin(); it != entries_.end();) {
    const auto entry = it++;
    if (entry->n_users == 0) erase(entry);
  }
}

void FeatureCache::erase(Entries::iterator entry) {
  backend_.release_feature(entry->feature);
  rows_ -= entry->rows;
  if (entry->shared) by_key_.erase(entry->key);
  entries_.erase(entry);
}

}  // namespace jewel

// ImageCache: pictures from file bytes to patches, and the latest of them kept, because a conversation sends
// its pictures again with every turn. Any thread, several at once; two that ask for the same new picture both
// do the work.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "engine/request.h"
#include "image/prepare.h"

namespace jewel {

struct ReadyImage {
  Digest content{};  // of the file's bytes
  int budget = 0;    // as asked for
  int soft_tokens = 0;
  std::shared_ptr<const ImagePatches> patches;
};

class ImageCache {
 public:
  // `config` must outlive the cache.
  ImageCache(const VisionConfig& config, const ImageLimits& limits, size_t max_bytes)
      : config_(config), limits_(limits), max_bytes_(max_bytes) {}

  Result<ReadyImage> prepare(const std::string& file, int budget);

 private:
  const VisionConfig& config_;
  ImageLimits limits_;
  size_t max_bytes_;
  std::mutex mutex_;
  std::list<ReadyImage> images_;  // the latest first
  size_t bytes_ = 0;              // of their pixels
};

}  // namespace jewel

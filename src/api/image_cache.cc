#include "api/image_cache.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/prefix_keys.h"

namespace jewel {

Result<ReadyImage> ImageCache::prepare(const std::string& file, int budget) {
  const std::span bytes(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  const Digest content = sha256(std::as_bytes(bytes));
  {
    const std::scoped_lock lock(mutex_);
    const auto at = std::ranges::find_if(
        images_, [&](const ReadyImage& image) { return image.content == content && image.budget == budget; });
    if (at != images_.end()) {
      images_.splice(images_.begin(), images_, at);
      return images_.front();
    }
  }
  JEWEL_ASSIGN(PreparedImage prepared, prepare_image(bytes, budget, limits_, config_));
  ReadyImage image{.content = content, .budget = budget, .soft_tokens = prepared.size.soft_tokens};
  image.patches = std::make_shared<const ImagePatches>(std::move(prepared.patches));
  const std::scoped_lock lock(mutex_);
  images_.push_front(image);
  bytes_ += image.patches->pixels.size();
  while (bytes_ > max_bytes_ && images_.size() > 1) {
    bytes_ -= images_.back().patches->pixels.size();
    images_.pop_back();
  }
  return image;
}

}  // namespace jewel

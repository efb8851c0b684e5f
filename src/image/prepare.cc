#include "image/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "image/patches.h"
#include "image/resize.h"

namespace jewel {

Result<PreparedImage> prepare_image(std::span<const uint8_t> bytes, int max_soft_tokens,
                                    const ImageLimits& limits, const VisionConfig& config) {
  SoftTokenBudget budget{max_soft_tokens, config.patch_size, config.pooling_kernel_size};
  if (max_soft_tokens != kAutoBudget) JEWEL_TRY(check_budget(budget));  // before the work of decoding
  JEWEL_ASSIGN(RgbImage image, decode_image(bytes, limits));
  if (max_soft_tokens == kAutoBudget) {
    budget.max_soft_tokens =
        auto_budget(image.height, image.width, config.patch_size, config.pooling_kernel_size);
  }
  JEWEL_ASSIGN(const TargetSize size, target_size(image.height, image.width, budget));
  const int longest = std::max(size.height, size.width) / config.patch_size;
  if (longest > config.position_embedding_size) {
    return invalid(fmt::format(
        "an image of {} × {} pixels becomes {} patches long, the model knows {} positions; crop it to a "
        "less extreme shape or use a smaller max_soft_tokens",
        image.width, image.height, longest, config.position_embedding_size));
  }
  PreparedImage prepared{size, {}, image.height, image.width};
  if (size.height != image.height || size.width != image.width)
    image = resize_bicubic(image, size.height, size.width);
  prepared.patches = patchify(image, config.patch_size);
  return prepared;
}

}  // namespace jewel

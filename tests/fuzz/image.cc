// The bytes of a picture, through decoding, resizing and cutting into patches. Limits are small here, so that
// a header that promises more than they allow must be refused before anything of that size is allocated (the
// runner's memory limit notices), and so that inputs stay quick.
#include "image/budget.h"
#include "image/decode.h"
#include "image/patches.h"
#include "image/resize.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace jewel;
  const ImageLimits limits = {.max_bytes = 1 << 18, .max_pixels = 1 << 18, .max_edge = 2048};
  const Result<RgbImage> image = decode_image({data, size}, limits);
  if (!image.ok()) {
    JEWEL_CHECK(!image.error().message.empty(), "an error without a message");
    return 0;
  }
  JEWEL_CHECK(image->height > 0 && image->width > 0, "{} x {}", image->width, image->height);
  JEWEL_CHECK(image->height <= limits.max_edge && image->width <= limits.max_edge, "an edge over the limit");
  const int64_t pixels = int64_t{image->height} * image->width;
  JEWEL_CHECK(pixels <= limits.max_pixels, "{} pixels are over the limit", pixels);
  JEWEL_CHECK(static_cast<int64_t>(image->rgb.size()) == 3 * pixels, "{} bytes for {} pixels",
              image->rgb.size(), pixels);

  const SoftTokenBudget budget = {.max_soft_tokens = 70};
  const Result<TargetSize> target = target_size(image->height, image->width, budget);
  if (!target.ok()) return 0;
  JEWEL_CHECK(target->soft_tokens >= 1 && target->soft_tokens <= 70, "{} soft tokens", target->soft_tokens);
  const ImagePatches patches =
      patchify(resize_bicubic(*image, target->height, target->width), budget.patch_size);
  JEWEL_CHECK(patches.grid_h * patches.grid_w == 9 * target->soft_tokens,
              "{} x {} patches for {} soft tokens", patches.grid_h, patches.grid_w, target->soft_tokens);
  return 0;
}

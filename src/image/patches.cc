#include "image/patches.h"

#include <cstring>

#include "base/check.h"

namespace jewel {

ImagePatches patchify(const RgbImage& image, int patch_size) {
  JEWEL_CHECK(patch_size > 0 && image.height > 0 && image.width > 0 && image.height % patch_size == 0 &&
                  image.width % patch_size == 0,
              "{} x {} in patches of {}", image.height, image.width, patch_size);
  JEWEL_CHECK(image.rgb.size() == size_t{3} * image.height * image.width, "{} bytes for {} x {}",
              image.rgb.size(), image.height, image.width);
  ImagePatches patches{image.height / patch_size, image.width / patch_size, {}};
  patches.pixels.resize(image.rgb.size());
  const size_t row_bytes = size_t{3} * image.width;
  const size_t patch_row_bytes = size_t{3} * patch_size;
  uint8_t* out = patches.pixels.data();
  for (int gy = 0; gy < patches.grid_h; ++gy) {
    for (int gx = 0; gx < patches.grid_w; ++gx) {
      const uint8_t* in = image.rgb.data() +
                          static_cast<size_t>(gy) * static_cast<size_t>(patch_size) * row_bytes +
                          static_cast<size_t>(gx) * patch_row_bytes;
      for (int py = 0; py < patch_size; ++py, in += row_bytes, out += patch_row_bytes)
        std::memcpy(out, in, patch_row_bytes);
    }
  }
  return patches;
}

}  // namespace jewel

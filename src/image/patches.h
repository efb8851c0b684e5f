// The last step before the vision tower: a picture of the target size is cut into patches.
//
// Patches stay uint8, a quarter of the floats' bytes on the way to the backend. What the tower sees is
// pixel = float(byte) · float(1/255), without mean or deviation, and its encoder starts with 2(pixel − 1/2).
// The position of patch i is (x, y) = (i mod grid_w, i div grid_w); since the list is never padded, positions
// need not be stored.
#pragma once

#include "backend/backend.h"
#include "image/rgb_image.h"

namespace jewel {

// Both sides of the image must be positive multiples of patch_size (target_size() sees to that).
ImagePatches patchify(const RgbImage& image, int patch_size);

// The value the reference's processor hands to the model for a byte.
inline float pixel_value(uint8_t byte) {
  return static_cast<float>(byte) * static_cast<float>(1.0 / 255.0);
}

}  // namespace jewel

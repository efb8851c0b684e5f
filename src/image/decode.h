// decode_image: the bytes of a picture file to upright 8-bit RGB, as the reference's loader gives it.
//
// The kind of file is decided by its first bytes. Size limits are checked on the header, before anything is
// allocated that grows with the picture. The EXIF orientation is applied. Alpha is dropped without
// compositing and 16-bit gray is clipped at 255, because Pillow's convert("RGB") does so. Of animations the
// first frame is taken.
//
// All bytes are taken as hostile: broken, cut or lying files are Errors (kInvalid), files over a limit are
// kTooLarge, other formats kUnsupported. At the default limits a decode holds at most about 12 bytes per
// pixel (16-bit RGBA, or a progressive JPEG's coefficients, beside the result). Pure function, callable from
// any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "image/rgb_image.h"

namespace jewel {

struct ImageLimits {
  size_t max_bytes = size_t{20} << 20;  // of the file
  int64_t max_pixels =
      64'000'000;  // above every phone's usual photo (50 MP), below Pillow's warning (89 MP): 192 MB of RGB
  int max_edge = 16384;  // the longest side; the widest WebP
};

Result<RgbImage> decode_image(std::span<const uint8_t> bytes, const ImageLimits& limits = {});

}  // namespace jewel

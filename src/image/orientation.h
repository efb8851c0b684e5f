// The orientation tag of photographs: which of the eight ways the stored pixels are to be turned before
// anyone looks.
//
// Found where cameras and editors write it: EXIF in a JPEG's APP1, a PNG's eXIf chunk or a WebP's EXIF chunk;
// when there is none, the tiff:Orientation of an XMP packet in the same places. (Not read: XMP and EXIF
// inside compressed PNG text chunks.) A tag that is damaged or out of range counts as absent. Pure functions,
// callable from any thread.
#pragma once

#include <cstdint>
#include <span>

#include "image/rgb_image.h"
#include "image/sniff.h"

namespace jewel {

// 1 to 8 as in EXIF; 1 (upright) when nothing valid is found. Reads any bytes safely.
int find_orientation(ImageFormat format, std::span<const uint8_t> bytes);

// The upright image. 2: mirrored, 3: half turn, 4: flipped, 5: transposed, 6: quarter turn clockwise, 7:
// transversed, 8: quarter turn anticlockwise; anything else leaves it alone.
RgbImage apply_orientation(RgbImage image, int orientation);

}  // namespace jewel

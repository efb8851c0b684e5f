// RgbImage: decoded pixels on their way from decode.cc through resize.cc to patches.cc. A plain value: it
// owns its bytes and may be used from any thread.
#pragma once

#include <cstdint>
#include <vector>

namespace jewel {

struct RgbImage {
  int height = 0;
  int width = 0;
  std::vector<uint8_t> rgb;  // [height, width, 3]
};

}  // namespace jewel

// Test pictures drawn from (height, width, seed), the same bytes as tools/goldens_image/pattern.py, and the
// hash both sides compare by (FNV-1a over little-endian 64-bit words, the tail padded with zeros, then the
// length).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include "image/rgb_image.h"

namespace jewel {

inline uint32_t scramble(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7FEB352Du;
  x ^= x >> 15;
  x *= 0x846CA68Bu;
  x ^= x >> 16;
  return x;
}

inline RgbImage pattern(int height, int width, uint32_t seed) {
  RgbImage image{height, width, {}};
  image.rgb.reserve(size_t{3} * height * width);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        const uint32_t index = (static_cast<uint32_t>(y) * width + x) * 3 + c;
        const int noise = scramble(index + seed * 0x9E3779B1u) & 255;
        const int gradient =
            (x * 255 / std::max(width - 1, 1) * (c + 1) + y * 255 / std::max(height - 1, 1) * (3 - c)) / 4;
        const int edge =
            ((x / (1 + static_cast<int>(seed % 7))) ^ (y / (1 + static_cast<int>(seed % 5))) ^ c) & 1 ? 255
                                                                                                      : 0;
        const bool right = 2 * x >= width, low = 2 * y >= height;
        const int value = low ? (right ? (gradient + (noise & 15)) & 255 : edge) : (right ? gradient : noise);
        image.rgb.push_back(static_cast<uint8_t>(value));
      }
    }
  }
  return image;
}

inline std::string fnv1a(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint64_t hash = 0xCBF29CE484222325u;
  for (size_t at = 0; at < size; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + at, std::min<size_t>(8, size - at));
    hash = (hash ^ word) * 0x100000001B3u;
  }
  return fmt::format("{:016x}", (hash ^ size) * 0x100000001B3u);
}

template <typename T>
std::string fnv1a(const std::vector<T>& values) {
  return fnv1a(values.data(), values.size() * sizeof(T));
}

}  // namespace jewel

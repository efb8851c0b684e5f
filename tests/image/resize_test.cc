// Resize and patches against the reference: hashes of its outputs (tools/goldens_image/make_resize.py),
// inputs drawn here.
#include "image/resize.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "image/patches.h"
#include "pattern.h"

namespace jewel {
namespace {

std::vector<std::string> golden_lines(const std::string& name) {
  std::ifstream file(JEWEL_SOURCE_DIR "/tests/data/image/" + name);
  std::vector<std::string> lines;
  std::string line;
  std::getline(file, line);  // the head
  while (std::getline(file, line)) lines.push_back(line);
  return lines;
}

std::string hex(const std::vector<uint8_t>& bytes) {
  std::string text;
  for (uint8_t b : bytes) text += fmt::format("{:02x}", b);
  return text;
}

TEST(Resize, EqualsTorch) {
  const auto lines = golden_lines("resize.txt");
  ASSERT_GE(lines.size(), 20u);
  for (const std::string& line : lines) {
    std::istringstream in(line);
    int height, width, seed, target_height, target_width;
    std::string hash, whole;
    ASSERT_TRUE(in >> height >> width >> seed >> target_height >> target_width >> hash >> whole) << line;
    const RgbImage out = resize_bicubic(pattern(height, width, seed), target_height, target_width);
    EXPECT_EQ(out.height, target_height);
    EXPECT_EQ(out.width, target_width);
    EXPECT_EQ(fnv1a(out.rgb), hash) << line.substr(0, 40);
    if (whole != "-") EXPECT_EQ(hex(out.rgb), whole);
    const RgbImage plain =
        resize_bicubic(pattern(height, width, seed), target_height, target_width, ResizePath::kPortable);
    EXPECT_EQ(fnv1a(plain.rgb), hash) << "portable path, " << line.substr(0, 40);
  }
}

// The processor's whole output: resized bytes, pixel_values as float32, position ids, for every budget.
TEST(Resize, EqualsProcessor) {
  const auto lines = golden_lines("processor.txt");
  ASSERT_GE(lines.size(), 60u);
  for (const std::string& line : lines) {
    std::istringstream in(line);
    int height, width, seed, budget, target_height, target_width, soft_tokens;
    std::string bytes_hash, values_hash, positions_hash;
    ASSERT_TRUE(in >> height >> width >> seed >> budget >> target_height >> target_width >> soft_tokens >>
                bytes_hash >> values_hash >> positions_hash)
        << line;
    const RgbImage out = resize_bicubic(pattern(height, width, seed), target_height, target_width);
    EXPECT_EQ(fnv1a(out.rgb), bytes_hash) << line;
    if (budget <= 280) {
      const RgbImage plain =
          resize_bicubic(pattern(height, width, seed), target_height, target_width, ResizePath::kPortable);
      EXPECT_EQ(fnv1a(plain.rgb), bytes_hash) << "portable path, " << line;
    }

    const ImagePatches patches = patchify(out, 16);
    EXPECT_EQ(patches.grid_h * patches.grid_w, soft_tokens * 9) << line;
    std::vector<float> values;
    values.reserve(patches.pixels.size());
    for (uint8_t byte : patches.pixels) values.push_back(pixel_value(byte));
    EXPECT_EQ(fnv1a(values), values_hash) << line;
    std::vector<int64_t> positions;
    for (int i = 0; i < patches.grid_h * patches.grid_w; ++i) {
      positions.push_back(i % patches.grid_w);
      positions.push_back(i / patches.grid_w);
    }
    EXPECT_EQ(fnv1a(positions), positions_hash) << line;
  }
}

TEST(Resize, SameSizeIsACopy) {
  const RgbImage image = pattern(31, 17, 3);
  EXPECT_EQ(resize_bicubic(image, 31, 17).rgb, image.rgb);
}

// A flat picture stays flat: the integer weights of every output sum to one unit within the rounding.
TEST(Resize, FlatStaysFlat) {
  for (int value : {0, 1, 127, 254, 255}) {
    const RgbImage image{37, 53, std::vector<uint8_t>(37 * 53 * 3, static_cast<uint8_t>(value))};
    for (auto [height, width] : {std::pair{11, 200}, {336, 5}, {37, 48}, {48, 53}, {1, 1}}) {
      for (uint8_t byte : resize_bicubic(image, height, width).rgb) ASSERT_EQ(byte, value);
    }
  }
}

TEST(Patchify, Order) {
  RgbImage image{4, 6, {}};
  for (int i = 0; i < 4 * 6 * 3; ++i) image.rgb.push_back(static_cast<uint8_t>(i));
  const ImagePatches patches = patchify(image, 2);
  EXPECT_EQ(patches.grid_h, 2);
  EXPECT_EQ(patches.grid_w, 3);
  // Patch 4 is (x 1, y 1): pixels (2, 2), (2, 3), (3, 2), (3, 3) by (row, column).
  const std::vector<uint8_t> expected = {42, 43, 44, 45, 46, 47, 60, 61, 62, 63, 64, 65};
  EXPECT_EQ(std::vector<uint8_t>(patches.pixels.begin() + 48, patches.pixels.begin() + 60), expected);
}

}  // namespace
}  // namespace jewel

#include "bench/made_up.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <jpeglib.h>

#include "base/check.h"
#include "bench/draws.h"

namespace jewel {
namespace {

constexpr std::array<std::string_view, 96> kWords = {
    "the",  "of",    "and",    "to",    "in",    "is",    "that",   "for",   "was",  "on",    "are",
    "with", "as",    "at",     "be",    "this",  "have",  "from",   "or",    "had",  "by",    "word",
    "but",  "what",  "some",   "we",    "can",   "out",   "other",  "were",  "all",  "there", "when",
    "up",   "use",   "how",    "said",  "each",  "she",   "which",  "their", "time", "if",    "will",
    "way",  "about", "many",   "then",  "them",  "write", "would",  "like",  "so",   "these", "long",
    "make", "thing", "see",    "him",   "two",   "has",   "look",   "more",  "day",  "could", "go",
    "come", "did",   "number", "sound", "no",    "most",  "people", "over",  "know", "water", "than",
    "call", "first", "who",    "may",   "down",  "side",  "been",   "now",   "find", "any",   "new",
    "work", "part",  "take",   "get",   "place", "made",  "live",   "where"};

struct Canvas {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgb;

  uint8_t* at(int x, int y) {
    return rgb.data() + 3 * (static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x));
  }
};

void draw_shapes(Canvas& canvas, Draws& draws) {
  for (int shape = 0; shape < 24; ++shape) {
    const bool round = draws.uniform() < 0.5;
    const int radius = draws.between(canvas.height / 40, canvas.height / 6);
    const int cx = draws.between(0, canvas.width - 1);
    const int cy = draws.between(0, canvas.height - 1);
    const std::array<uint8_t, 3> colour = {static_cast<uint8_t>(draws.between(0, 255)),
                                           static_cast<uint8_t>(draws.between(0, 255)),
                                           static_cast<uint8_t>(draws.between(0, 255))};
    for (int y = std::max(0, cy - radius); y < std::min(canvas.height, cy + radius); ++y) {
      for (int x = std::max(0, cx - radius); x < std::min(canvas.width, cx + radius); ++x) {
        if (round && (x - cx) * (x - cx) + (y - cy) * (y - cy) > radius * radius) continue;
        std::copy(colour.begin(), colour.end(), canvas.at(x, y));
      }
    }
  }
}

Canvas paint(uint64_t seed, int soft_tokens) {
  Draws draws(seed);
  Canvas canvas;
  canvas.height = static_cast<int>(std::sqrt(soft_tokens * 48.0 * 48.0 * 1.2 * 3 / 4));
  canvas.width = canvas.height * 4 / 3;
  canvas.rgb.resize(3 * static_cast<size_t>(canvas.width) * static_cast<size_t>(canvas.height));
  const int tint = draws.between(0, 80);
  for (int y = 0; y < canvas.height; ++y) {
    for (int x = 0; x < canvas.width; ++x) {
      uint8_t* pixel = canvas.at(x, y);
      pixel[0] = static_cast<uint8_t>(tint + 120 * x / canvas.width);
      pixel[1] = static_cast<uint8_t>(tint + 120 * y / canvas.height);
      pixel[2] = static_cast<uint8_t>(160 - tint);
    }
  }
  draw_shapes(canvas, draws);
  // ± 4 levels: without noise a JPEG of plain colours decodes faster than any photograph.
  for (size_t i = 0; i < canvas.rgb.size();) {
    uint64_t bits = draws.bits();
    for (int k = 0; k < 16 && i < canvas.rgb.size(); ++k, ++i, bits >>= 4) {
      const int value = canvas.rgb[i] + static_cast<int>(bits & 7) - 4;
      canvas.rgb[i] = static_cast<uint8_t>(std::clamp(value, 0, 255));
    }
  }
  return canvas;
}

}  // namespace

std::string made_up_words(uint64_t seed, int words) {
  Draws draws(seed);
  std::string text;
  int left_of_sentence = 0;
  for (int i = 0; i < words; ++i) {
    std::string word(kWords[draws.bits() % kWords.size()]);
    if (left_of_sentence == 0) {
      left_of_sentence = draws.between(6, 14);
      word[0] = static_cast<char>(word[0] - 'a' + 'A');
    }
    --left_of_sentence;
    if (i > 0) text += ' ';
    text += word;
    if (left_of_sentence == 0 || i + 1 == words) text += '.';
  }
  return text;
}

std::string made_up_picture(uint64_t seed, int soft_tokens) {
  Canvas canvas = paint(seed, soft_tokens);
  jpeg_compress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg.err = jpeg_std_error(&errors);
  // Compressing into memory fails only when there is none.
  errors.error_exit = [](j_common_ptr) { JEWEL_CHECK(false, "libjpeg cannot compress"); };
  jpeg_create_compress(&jpeg);
  unsigned char* bytes = nullptr;
  unsigned long size = 0;  // NOLINT(google-runtime-int): libjpeg's type
  jpeg_mem_dest(&jpeg, &bytes, &size);
  jpeg.image_width = static_cast<JDIMENSION>(canvas.width);
  jpeg.image_height = static_cast<JDIMENSION>(canvas.height);
  jpeg.input_components = 3;
  jpeg.in_color_space = JCS_RGB;
  jpeg_set_defaults(&jpeg);
  jpeg_set_quality(&jpeg, 85, TRUE);
  jpeg_start_compress(&jpeg, TRUE);
  for (int y = 0; y < canvas.height; ++y) {
    JSAMPROW row = canvas.at(0, y);
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  jpeg_destroy_compress(&jpeg);
  std::string file(reinterpret_cast<const char*>(bytes), size);
  std::free(bytes);  // NOLINT(cppcoreguidelines-no-malloc): libjpeg allocated it
  return file;
}

}  // namespace jewel

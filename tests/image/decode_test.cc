// Decoding against the reference's loader (tools/goldens_image/make_decode.py), and against files that lie,
// stop early or are something else.
#include "image/decode.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "image/orientation.h"
#include "image/patches.h"
#include "image/prepare.h"
#include "image/sniff.h"
#include "pattern.h"

namespace jewel {
namespace {

using Bytes = std::vector<uint8_t>;
using testing::HasSubstr;

const std::string kData = JEWEL_SOURCE_DIR "/tests/data/image/";

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

Bytes golden_file(const std::string& name) {
  return read_file(kData + "files/" + name);
}

std::vector<std::string> golden_lines(const std::string& name) {
  std::ifstream file(kData + name);
  std::vector<std::string> lines;
  std::string line;
  std::getline(file, line);  // the head
  while (std::getline(file, line)) lines.push_back(line);
  return lines;
}

Bytes bytes_of(std::string_view text) {
  return Bytes(text.begin(), text.end());
}

VisionConfig e4b_vision() {
  VisionConfig config;
  config.patch_size = 16;
  config.pooling_kernel_size = 3;
  config.position_embedding_size = 10240;
  return config;
}

TEST(Decode, EqualsReference) {
  const auto lines = golden_lines("decode.txt");
  ASSERT_GE(lines.size(), 130u);
  for (const std::string& line : lines) {
    std::istringstream in(line);
    std::string name, hash;
    int height, width;
    ASSERT_TRUE(in >> name >> height >> width >> hash) << line;
    auto image = decode_image(golden_file(name));
    ASSERT_TRUE(image.ok()) << name << ": " << image.error().message;
    EXPECT_EQ(image->height, height) << name;
    EXPECT_EQ(image->width, width) << name;
    EXPECT_EQ(fnv1a(image->rgb), hash) << name;
  }
}

// From the bytes of a file to the processor's whole output.
TEST(Prepare, EqualsProcessor) {
  const auto lines = golden_lines("prepare.txt");
  ASSERT_GE(lines.size(), 50u);
  for (const std::string& line : lines) {
    std::istringstream in(line);
    std::string name, values_hash, positions_hash;
    int budget, grid_h, grid_w, soft_tokens;
    ASSERT_TRUE(in >> name >> budget >> grid_h >> grid_w >> soft_tokens >> values_hash >> positions_hash)
        << line;
    auto image = prepare_image(golden_file(name), budget, {}, e4b_vision());
    ASSERT_TRUE(image.ok()) << line << ": " << image.error().message;
    EXPECT_EQ(image->size.soft_tokens, soft_tokens) << line;
    EXPECT_EQ(image->patches.grid_h, grid_h) << line;
    EXPECT_EQ(image->patches.grid_w, grid_w) << line;
    std::vector<float> values;
    values.reserve(image->patches.pixels.size());
    for (uint8_t byte : image->patches.pixels) values.push_back(pixel_value(byte));
    EXPECT_EQ(fnv1a(values), values_hash) << line;
    std::vector<int64_t> positions;
    for (int i = 0; i < grid_h * grid_w; ++i) positions.insert(positions.end(), {i % grid_w, i / grid_w});
    EXPECT_EQ(fnv1a(positions), positions_hash) << line;
  }
}

TEST(Prepare, Errors) {
  const Bytes file = golden_file("rgb8.png");
  EXPECT_EQ(prepare_image(file, 256, {}, e4b_vision()).error().param, "max_soft_tokens");
  VisionConfig small = e4b_vision();
  small.position_embedding_size = 16;
  auto image = prepare_image(file, 280, {}, small);
  ASSERT_FALSE(image.ok());
  EXPECT_THAT(image.error().message, HasSubstr("16 positions"));
}

TEST(Orientation, AllEight) {
  // 2 × 3 pixels a b c / d e f, by their first channel.
  const RgbImage image{2, 3, {1, 0, 0, 2, 0, 0, 3, 0, 0, 4, 0, 0, 5, 0, 0, 6, 0, 0}};
  const std::vector<int> expected[] = {{1, 2, 3, 4, 5, 6}, {3, 2, 1, 6, 5, 4}, {6, 5, 4, 3, 2, 1},
                                       {4, 5, 6, 1, 2, 3}, {1, 4, 2, 5, 3, 6}, {4, 1, 5, 2, 6, 3},
                                       {6, 3, 5, 2, 4, 1}, {3, 6, 2, 5, 1, 4}};
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const RgbImage turned = apply_orientation(image, orientation);
    EXPECT_EQ(turned.height, orientation >= 5 ? 3 : 2);
    std::vector<int> first;
    for (size_t i = 0; i < turned.rgb.size(); i += 3) first.push_back(turned.rgb[i]);
    EXPECT_EQ(first, expected[orientation - 1]) << orientation;
  }
  EXPECT_EQ(apply_orientation(image, 0).rgb, image.rgb);
  EXPECT_EQ(apply_orientation(image, 9).rgb, image.rgb);
}

TEST(Decode, SaysWhatItFound) {
  using namespace std::string_view_literals;
  const std::pair<std::string_view, const char*> cases[] = {
      {"%PDF-1.7 and so on"sv, "a PDF document"},
      {"\0\0\0\x18"
       "ftypheic\0\0\0\0mif1"sv,
       "a HEIC image"},
      {"\0\0\0\x1c"
       "ftypavif\0\0\0\0"sv,
       "an AVIF image"},
      {"\0\0\0\x1c"
       "ftypisom\0\0\0\0"sv,
       "an MP4"},
      {"II*\0\x08\0\0\0"sv, "a TIFF image"},
      {"MM\0*\0\0\0\x08"sv, "a TIFF image"},
      {"<?xml version=\"1.0\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\"/>"sv, "an SVG drawing"},
      {"<!DOCTYPE html><html><body>404</body></html>"sv, "an HTML page"},
      {"RIFF\x24\0\0\0WAVEfmt "sv, "a RIFF file that is not WebP"},
      {"{\"error\": \"no such image\"}"sv, "text"},
      {"data:image/png;base64,iVBORw0KGgo="sv, "a data: URL"},
      {"iVBORw0KGgoAAAANSUhEUg"sv, "base64"},
      {"BM\0\0\0\0"sv, "no known kind (it begins with 42 4d 00 00 00 00)"},
      {"\x01\x02\x03"sv, "no known kind (it begins with 01 02 03)"},
      {"\xff"sv, "no known kind"},
  };
  for (const auto& [text, what] : cases) {
    auto image = decode_image(bytes_of(text));
    ASSERT_FALSE(image.ok()) << what;
    EXPECT_EQ(image.error().code, ErrorCode::kUnsupported) << what;
    EXPECT_THAT(image.error().message, HasSubstr(what));
    EXPECT_THAT(image.error().message, HasSubstr("JPEG, PNG, WebP, GIF or BMP"));
  }
  auto empty = decode_image({});
  ASSERT_FALSE(empty.ok());
  EXPECT_EQ(empty.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(empty.error().message, HasSubstr("0 bytes"));
}

// ---- limits ----

void put32(Bytes& bytes, size_t at, uint32_t value, bool big_endian) {
  for (int i = 0; i < 4; ++i)
    bytes[at + i] = static_cast<uint8_t>(value >> (big_endian ? 24 - 8 * i : 8 * i));
}

uint32_t crc32_of(const uint8_t* data, size_t size) {
  uint32_t crc = ~0u;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int k = 0; k < 8; ++k) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

Bytes png_of_size(uint32_t width, uint32_t height) {
  Bytes bytes = golden_file("rgb8.png");
  put32(bytes, 16, width, true);
  put32(bytes, 20, height, true);
  put32(bytes, 29, crc32_of(&bytes[12], 17), true);
  return bytes;
}

// The same small file in each format, its header changed to claim another size.
Bytes lying_file(const std::string& format, uint32_t width, uint32_t height) {
  const auto low = [](uint32_t v) { return static_cast<uint8_t>(v); };
  const auto high = [](uint32_t v) { return static_cast<uint8_t>(v >> 8); };
  if (format == "png") return png_of_size(width, height);
  if (format == "bmp") {
    Bytes bytes = golden_file("rgb24.bmp");
    put32(bytes, 18, width, false);
    put32(bytes, 22, height, false);
    return bytes;
  }
  if (format == "gif") {
    Bytes bytes = golden_file("frame.gif");
    for (auto [at, v] : {std::pair{6, width}, {8, height}}) bytes[at] = low(v), bytes[at + 1] = high(v);
    return bytes;
  }
  if (format == "jpg" || format == "progressive") {
    Bytes bytes = golden_file(format == "jpg" ? "rgb_420.jpg" : "progressive.jpg");
    for (size_t at = 2; at + 9 < bytes.size(); at += 2 + bytes[at + 2] * 256 + bytes[at + 3]) {
      if (bytes[at + 1] != 0xC0 && bytes[at + 1] != 0xC2)
        continue;  // the frame header: length, precision, height, width
      bytes[at + 5] = high(height), bytes[at + 6] = low(height), bytes[at + 7] = high(width),
                 bytes[at + 8] = low(width);
      return bytes;
    }
  }
  if (format == "webp") {  // lossy: 14 bits each, after the start code of the key frame
    Bytes bytes = golden_file("lossy_q50.webp");
    for (size_t at = 12; at + 8 < bytes.size(); ++at) {
      if (bytes[at] != 0x9D || bytes[at + 1] != 0x01 || bytes[at + 2] != 0x2A) continue;
      bytes[at + 3] = low(width), bytes[at + 4] = high(width), bytes[at + 5] = low(height),
                 bytes[at + 6] = high(height);
      return bytes;
    }
  }
  ADD_FAILURE() << "no header found in " << format;
  return {};
}

TEST(Limits, BombsAreRefusedByTheirHeader) {
  for (const char* format : {"png", "bmp", "gif", "jpg", "progressive"}) {
    auto image = decode_image(lying_file(format, 20000, 20000));
    ASSERT_FALSE(image.ok()) << format;
    EXPECT_EQ(image.error().code, ErrorCode::kTooLarge) << format << ": " << image.error().message;
    EXPECT_THAT(image.error().message, HasSubstr("20000 × 20000")) << format;
    image = decode_image(lying_file(format, 12000, 12000));
    ASSERT_FALSE(image.ok()) << format;
    EXPECT_EQ(image.error().code, ErrorCode::kTooLarge) << format << ": " << image.error().message;
    EXPECT_THAT(image.error().message, HasSubstr("144.0 megapixels")) << format;
  }
  auto image = decode_image(lying_file("webp", 16383, 16383));
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().code, ErrorCode::kTooLarge) << image.error().message;
}

// Below the limits, but the pixels are not there.
TEST(Limits, ClaimsWithoutPixels) {
  for (const char* format : {"png", "bmp", "webp"}) {
    auto image = decode_image(lying_file(format, 3000, 2000));
    ASSERT_FALSE(image.ok()) << format;
    EXPECT_EQ(image.error().code, ErrorCode::kInvalid) << format << ": " << image.error().message;
  }
  // A JPEG that ends properly but too soon is filled up by libjpeg, and the reference takes it so.
  for (const char* format : {"jpg", "progressive"}) {
    auto image = decode_image(lying_file(format, 3000, 2000));
    ASSERT_TRUE(image.ok()) << image.error().message;
    EXPECT_EQ(image->rgb.size(), size_t{3000} * 2000 * 3);
  }
  EXPECT_FALSE(decode_image(lying_file("png", 0, 5)).ok());
  EXPECT_FALSE(decode_image(lying_file("png", 0x80000001, 5)).ok());
  EXPECT_FALSE(decode_image(lying_file("bmp", 0x7FFFFFFF, 0x7FFFFFFF)).ok());
  EXPECT_FALSE(decode_image(lying_file("bmp", 5, 0x80000000)).ok());
  EXPECT_FALSE(decode_image(lying_file("jpg", 0, 7)).ok());
}

TEST(Limits, AreTheCallers) {
  const Bytes file = golden_file("rgb_420.jpg");  // 131 × 93
  EXPECT_TRUE(decode_image(file, {.max_bytes = file.size(), .max_pixels = 131 * 93, .max_edge = 131}).ok());
  EXPECT_EQ(decode_image(file, {.max_bytes = file.size() - 1}).error().code, ErrorCode::kTooLarge);
  EXPECT_EQ(decode_image(file, {.max_pixels = 131 * 93 - 1}).error().code, ErrorCode::kTooLarge);
  EXPECT_EQ(decode_image(file, {.max_edge = 130}).error().code, ErrorCode::kTooLarge);
}

// A progressive JPEG of thousands of empty scans: the last scan of a small one, repeated.
TEST(Limits, ScanBomb) {
  const Bytes file = golden_file("progressive.jpg");
  size_t scan = 0;
  for (size_t at = 2; at + 4 < file.size(); ++at) {
    if (file[at] == 0xFF && file[at + 1] == 0xDA) scan = at;
  }
  ASSERT_GT(scan, 0u);
  Bytes bomb(file.begin(), file.end() - 2);
  for (int i = 0; i < 5000; ++i) bomb.insert(bomb.end(), file.begin() + scan, file.end() - 2);
  bomb.insert(bomb.end(), {0xFF, 0xD9});
  auto image = decode_image(bomb);
  ASSERT_FALSE(image.ok());
  EXPECT_THAT(image.error().message, HasSubstr("too many scans"));
}

// Zeros, deflated as far as deflate goes: after one literal, 258 of them in every 13 bits.
Bytes deflate_bomb(size_t size) {
  Bytes out = {0x78, 0x9C};
  uint32_t bits = 0;
  int n_bits = 0;
  const auto put = [&](std::string_view code) {
    for (char bit : code) {
      bits |= static_cast<uint32_t>(bit - '0') << n_bits;
      if (++n_bits < 8) continue;
      out.push_back(static_cast<uint8_t>(bits));
      bits = 0, n_bits = 0;
    }
  };
  put("110");                                      // the last block, fixed codes
  put("00110000");                                 // a zero byte
  while (out.size() < size) put("1100010100000");  // 258 bytes from 1 back
  return out;
}

// A PNG whose profile and text would inflate from 8 MB to 1.3 GB each.
TEST(Limits, ChunkBomb) {
  const Bytes file = golden_file("rgb8.png");
  constexpr size_t kHeaderEnd = 33;
  Bytes bomb(file.begin(), file.begin() + kHeaderEnd);
  for (const char* name : {"iCCP", "zTXt"}) {
    Bytes chunk = bytes_of(name);
    const Bytes deflated = deflate_bomb(8'000'000);
    chunk.insert(chunk.end(), {'x', 0, 0});  // keyword, method
    chunk.insert(chunk.end(), deflated.begin(), deflated.end());
    const size_t at = bomb.size();
    bomb.resize(at + 4);
    put32(bomb, at, static_cast<uint32_t>(chunk.size() - 4), true);
    bomb.insert(bomb.end(), chunk.begin(), chunk.end());
    bomb.resize(bomb.size() + 4);
    put32(bomb, bomb.size() - 4, crc32_of(chunk.data(), chunk.size()), true);
  }
  bomb.insert(bomb.end(), file.begin() + kHeaderEnd, file.end());

  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  auto image = decode_image(bomb);  // the picture itself is sound: either verdict is right
  getrusage(RUSAGE_SELF, &after);
  if (image.ok()) EXPECT_EQ(image->rgb.size(), size_t{29} * 37 * 3);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 300 * 1024) << "kB more at the peak";
}

// ---- broken files ----

// Every golden file cut at many points. What comes back is an Error, or the whole picture when only what
// follows the last row is missing; never a crash, and under ASan never a stray read.
TEST(Broken, CutFiles) {
  int refused = 0, tried = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kData + "files")) {
    const Bytes file = read_file(entry.path());
    if (file.size() > 20'000) continue;
    const auto whole = decode_image(file);
    ASSERT_TRUE(whole.ok());
    const size_t step = std::max<size_t>(1, file.size() / 60);
    for (size_t size = 1; size < file.size(); size += size < 100 ? 3 : step) {
      auto image = decode_image(std::span(file).first(size));
      ++tried;
      if (image.ok()) {
        EXPECT_EQ(image->rgb.size(), whole->rgb.size()) << entry.path() << " cut at " << size;
      } else {
        ++refused;
        EXPECT_FALSE(image.error().message.empty());
      }
    }
  }
  EXPECT_GT(tried, 8000);
  EXPECT_GT(refused, tried * 95 / 100) << "of " << tried;
}

TEST(Broken, CutInTheMiddleIsAnError) {
  for (const char* name :
       {"rgb_420.jpg", "progressive.jpg", "gray.jpg", "cmyk.jpg", "rgb8.png", "rgb8_adam7.png", "rgb16.png",
        "palette8.png", "lossless.webp", "lossy_q80.webp", "frame.gif", "rgb24.bmp", "rle8.bmp"}) {
    const Bytes file = golden_file(name);
    auto image = decode_image(std::span(file).first(file.size() / 2));
    ASSERT_FALSE(image.ok()) << name;
    EXPECT_EQ(image.error().code, ErrorCode::kInvalid) << name << ": " << image.error().message;
  }
}

// Bytes overwritten at random places (the same every run): any outcome but a crash.
TEST(Broken, DamagedFiles) {
  int survived = 0, tried = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kData + "files")) {
    const Bytes file = read_file(entry.path());
    if (file.size() > 20'000) continue;
    for (uint32_t round = 0; round < 20; ++round) {
      Bytes damaged = file;
      for (uint32_t i = 0; i < 1 + round % 4; ++i) {
        const uint32_t random = scramble(round * 977 + i * 131 + static_cast<uint32_t>(file.size()));
        damaged[random % (round % 2 ? file.size() : std::min<size_t>(file.size(), 64))] =
            static_cast<uint8_t>(random >> 24);
      }
      survived += decode_image(damaged, {.max_pixels = 4'000'000}).ok();
      ++tried;
    }
  }
  EXPECT_GT(tried, 2000);
  EXPECT_GT(survived, 0);
  EXPECT_LT(survived, tried);
}

// Lies inside the metadata must not stop the picture from being read.
TEST(Broken, OrientationTags) {
  const Bytes file = golden_file("orient_6.jpg");
  const auto at =
      std::search(file.begin(), file.end(), std::begin("MM\0*"), std::end("MM\0*") - 1) - file.begin();
  ASSERT_LT(static_cast<size_t>(at), file.size());
  for (size_t i = 0; i < 38; ++i) {  // 8 bytes of head, 2 + 2 · 12 + 4 of directory
    for (int value : {0x00, 0x7F, 0xFF}) {
      Bytes damaged = file;
      damaged[at + i] = static_cast<uint8_t>(value);
      EXPECT_TRUE(decode_image(damaged).ok()) << i;
    }
  }
  EXPECT_EQ(find_orientation(ImageFormat::kJpeg, file), 6);
  for (size_t size = 0; size < file.size(); ++size) {
    const int orientation = find_orientation(ImageFormat::kJpeg, std::span(file).first(size));
    EXPECT_TRUE(orientation == 1 || orientation == 6);
  }
  for (ImageFormat format :
       {ImageFormat::kUnknown, ImageFormat::kJpeg, ImageFormat::kPng, ImageFormat::kWebp}) {
    EXPECT_EQ(find_orientation(format, {}), 1);
  }
}

}  // namespace
}  // namespace jewel

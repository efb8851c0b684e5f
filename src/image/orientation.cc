#include "image/orientation.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

namespace jewel {
namespace {

using Bytes = std::span<const uint8_t>;
using namespace std::string_view_literals;

// Reads past the end give nothing instead of bytes, so that every parser below is safe on cut and lying
// files.
struct Reader {
  Bytes bytes;
  bool big_endian = true;

  std::optional<uint32_t> u16(size_t at) const {
    if (bytes.size() < 2 || at > bytes.size() - 2) return std::nullopt;
    return big_endian ? bytes[at] << 8 | bytes[at + 1] : bytes[at + 1] << 8 | bytes[at];
  }
  std::optional<uint32_t> u32(size_t at) const {
    const auto first = u16(at), second = u16(at + 2);
    if (!first || !second) return std::nullopt;
    return big_endian ? *first << 16 | *second : *second << 16 | *first;
  }
  // [at, at + size), or what of it there is.
  Bytes cut(size_t at, size_t size) const {
    if (at >= bytes.size()) return {};
    return bytes.subspan(at, std::min(size, bytes.size() - at));
  }
};

bool starts_with(Bytes bytes, std::string_view text) {
  return bytes.size() >= text.size() && std::memcmp(bytes.data(), text.data(), text.size()) == 0;
}

// What a file says about its orientation, in both languages it may say it.
struct Found {
  Bytes exif;  // a TIFF stream, perhaps behind "Exif\0\0"
  Bytes xmp;   // an XML packet
};

// The value of tag 0x112 in the first directory of a TIFF stream. Of a repeated tag the first counts.
std::optional<int> exif_orientation(Bytes exif) {
  constexpr auto kPrefix = "Exif\0\0"sv;
  for (int i = 0; i < 2 && starts_with(exif, kPrefix); ++i) exif = exif.subspan(kPrefix.size());
  Reader tiff{exif};
  if (starts_with(exif, "II*\0"sv)) {
    tiff.big_endian = false;
  } else if (!starts_with(exif, "MM\0*"sv)) {
    return std::nullopt;
  }
  const auto directory = tiff.u32(4);
  if (!directory) return std::nullopt;
  const auto entries = tiff.u16(*directory);
  if (!entries) return std::nullopt;
  for (size_t i = 0; i < *entries; ++i) {
    const size_t entry = size_t{*directory} + 2 + 12 * i;
    const auto tag = tiff.u16(entry), type = tiff.u16(entry + 2);
    const auto count = tiff.u32(entry + 4);
    if (!tag || !type || !count) return std::nullopt;
    if (*tag != 0x112) continue;
    constexpr uint32_t kShort = 3, kLong = 4, kSignedShort = 8, kSignedLong = 9;
    std::optional<uint32_t> value;
    if (*type == kShort || *type == kSignedShort) value = tiff.u16(entry + 8);
    if (*type == kLong || *type == kSignedLong) value = tiff.u32(entry + 8);
    return value && *count == 1 && *value >= 1 && *value <= 8 ? static_cast<int>(*value) : 1;
  }
  return std::nullopt;
}

// tiff:Orientation="6" or <tiff:Orientation>6 in an XMP packet.
std::optional<int> xmp_orientation(Bytes xmp) {
  const std::string_view text(reinterpret_cast<const char*>(xmp.data()), xmp.size());
  constexpr auto kName = "tiff:Orientation"sv;
  for (size_t at = text.find(kName); at != text.npos; at = text.find(kName, at + 1)) {
    std::string_view rest = text.substr(at + kName.size());
    if (rest.starts_with("=\"")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with(">")) {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
  }
  return std::nullopt;
}

// Segments between the start of a JPEG and its first scan: FF, marker, big-endian length that counts itself.
Found find_in_jpeg(Bytes bytes) {
  constexpr auto kExif = "Exif\0\0"sv;
  constexpr auto kXmp = "http://ns.adobe.com/xap/1.0/\0"sv;
  Found found;
  const Reader file{bytes};
  size_t at = 2;
  while (at + 4 <= bytes.size() && bytes[at] == 0xFF) {
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xFF) {  // fill byte
      ++at;
      continue;
    }
    if (marker == 0xDA || marker == 0xD9) break;
    const size_t length = *file.u16(at + 2);
    const Bytes body = file.cut(at + 4, length < 2 ? 0 : length - 2);
    if (marker == 0xE1 && starts_with(body, kExif) && found.exif.empty()) found.exif = body;
    if (marker == 0xE1 && starts_with(body, kXmp)) found.xmp = body.subspan(kXmp.size());
    at += 2 + std::max<size_t>(length, 2);
  }
  return found;
}

// Chunks of a PNG: big-endian length, four letters, body, checksum.
Found find_in_png(Bytes bytes) {
  constexpr auto kXmp = "XML:com.adobe.xmp\0\0"sv;  // keyword, then "not compressed"
  Found found;
  const Reader file{bytes};
  size_t at = 8;
  while (const auto length = file.u32(at)) {
    const Bytes name = file.cut(at + 4, 4), body = file.cut(at + 8, *length);
    if (starts_with(name, "eXIf")) found.exif = body;
    if (starts_with(name, "iTXt") && starts_with(body, kXmp)) found.xmp = body.subspan(kXmp.size());
    if (starts_with(name, "IEND")) break;
    at += size_t{12} + *length;
  }
  return found;
}

// Chunks of a WebP: four letters, little-endian length, body, padded to even.
Found find_in_webp(Bytes bytes) {
  Found found;
  const Reader file{bytes, false};
  size_t at = 12;
  while (const auto length = file.u32(at + 4)) {
    const Bytes name = file.cut(at, 4), body = file.cut(at + 8, *length);
    if (starts_with(name, "EXIF") && found.exif.empty()) found.exif = body;
    if (starts_with(name, "XMP ") && found.xmp.empty()) found.xmp = body;
    at += size_t{8} + *length + (*length & 1);
  }
  return found;
}

}  // namespace

int find_orientation(ImageFormat format, std::span<const uint8_t> bytes) {
  Found found;
  if (format == ImageFormat::kJpeg) found = find_in_jpeg(bytes);
  if (format == ImageFormat::kPng) found = find_in_png(bytes);
  if (format == ImageFormat::kWebp) found = find_in_webp(bytes);
  auto value = exif_orientation(found.exif);
  if (!value) value = xmp_orientation(found.xmp);
  return value && *value >= 1 && *value <= 8 ? *value : 1;
}

RgbImage apply_orientation(RgbImage image, int orientation) {
  if (orientation < 2 || orientation > 8) return image;
  const bool transposed = orientation >= 5;
  const int height = transposed ? image.width : image.height;
  const int width = transposed ? image.height : image.width;
  // Where the output's rows and columns run in the input: from the far end when mirrored.
  const bool flip_y = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const bool flip_x = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const ptrdiff_t row = ptrdiff_t{3} * image.width;
  const ptrdiff_t step_y = (transposed ? 3 : row) * (flip_y ? -1 : 1);
  const ptrdiff_t step_x = (transposed ? row : 3) * (flip_x ? -1 : 1);
  const ptrdiff_t origin = (flip_y ? -step_y * (height - 1) : 0) + (flip_x ? -step_x * (width - 1) : 0);

  RgbImage out{height, width, std::vector<uint8_t>(image.rgb.size())};
  // In tiles, so that a transposed read touches few cache lines at a time.
  constexpr int kTile = 32;
  for (int tile_y = 0; tile_y < height; tile_y += kTile) {
    for (int tile_x = 0; tile_x < width; tile_x += kTile) {
      for (int y = tile_y; y < std::min(tile_y + kTile, height); ++y) {
        uint8_t* to = out.rgb.data() + (static_cast<ptrdiff_t>(y) * width + tile_x) * 3;
        const uint8_t* from = image.rgb.data() + origin + y * step_y + tile_x * step_x;
        for (int x = tile_x; x < std::min(tile_x + kTile, width); ++x, to += 3, from += step_x)
          std::memcpy(to, from, 3);
      }
    }
  }
  return out;
}

}  // namespace jewel

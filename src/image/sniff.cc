#include "image/sniff.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <string_view>

namespace jewel {
namespace {

using namespace std::string_view_literals;

struct Magic {
  size_t at;
  std::string_view bytes;
  const char* what;
};

// In order of trust: a brand before the container it is written in.
constexpr Magic kForeign[] = {
    {0, "%PDF"sv, "a PDF document"},
    {4, "ftypheic"sv, "a HEIC image"},
    {4, "ftypheix"sv, "a HEIC image"},
    {4, "ftyphevc"sv, "a HEIC image sequence"},
    {4, "ftypmif1"sv, "a HEIF image"},
    {4, "ftypmsf1"sv, "a HEIF image sequence"},
    {4, "ftypavif"sv, "an AVIF image"},
    {4, "ftypavis"sv, "an AVIF image sequence"},
    {4, "ftypcrx "sv, "a Canon raw image"},
    {4, "ftyp"sv, "an MP4 or QuickTime video"},
    {0, "II*\0"sv, "a TIFF image"},
    {0, "MM\0*"sv, "a TIFF image"},
    {0, "\0\0\1\0"sv, "an icon (ICO)"},
    {0, "8BPS"sv, "a Photoshop document"},
    {0, "\xff\x0a"sv, "a JPEG XL image"},
    {0, "\0\0\0\x0cJXL "sv, "a JPEG XL image"},
    {0, "\0\0\0\x0cjP  "sv, "a JPEG 2000 image"},
    {0, "\xff\x4f\xff\x51"sv, "a JPEG 2000 code stream"},
    {0, "\x1a\x45\xdf\xa3"sv, "a Matroska or WebM video"},
    {0, "RIFF"sv, "a RIFF file that is not WebP (sound or video?)"},
    {0, "ID3"sv, "an MP3 sound file"},
    {0, "OggS"sv, "an Ogg file"},
    {0, "PK\3\4"sv, "a ZIP archive (or an office document)"},
    {0, "\x1f\x8b"sv, "gzip-compressed data"},
    {0, "\x28\xb5\x2f\xfd"sv, "zstd-compressed data"},
    {0, "P6"sv, "a PPM image"},
    {0, "P5"sv, "a PGM image"},
    {0, "qoif"sv, "a QOI image"},
    {0, "v/1\1"sv, "an OpenEXR image"},
    {0, "data:"sv, "a data: URL, not the bytes it holds"},
    {0, "iVBORw0KGgo"sv, "a PNG still encoded as base64"},
    {0, "/9j/"sv, "a JPEG still encoded as base64"},
};

std::string_view text_of(std::span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool has(std::string_view text, size_t at, std::string_view magic) {
  return text.size() >= at + magic.size() && text.substr(at, magic.size()) == magic;
}

// "BM" alone is weak; the size of the header that follows the file header is one of a few.
bool looks_like_bmp(std::span<const uint8_t> bytes) {
  if (bytes.size() < 18 || !has(text_of(bytes), 0, "BM")) return false;
  const uint32_t header =
      bytes[14] | bytes[15] << 8 | bytes[16] << 16 | static_cast<uint32_t>(bytes[17]) << 24;
  constexpr uint32_t kHeaders[] = {12, 16, 40, 52, 56, 64, 108, 124};
  return std::ranges::find(kHeaders, header) != std::end(kHeaders);
}

// XML, HTML or plain text, from the first 512 bytes; empty when it is none.
std::string describe_text(std::string_view text) {
  text = text.substr(0, 512);
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  // Mostly ASCII, no control characters: letters of other scripts are bytes from 0x80 on.
  const auto is_control = [](unsigned char c) { return c < 0x20 && !std::isspace(c); };
  const auto is_high = [](unsigned char c) { return c >= 0x80; };
  if (std::ranges::any_of(text, is_control) || std::ranges::count_if(text, is_high) * 2 > std::ssize(text))
    return {};
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  if (lower.find("<svg") != std::string::npos) return "an SVG drawing";
  if (lower.find("<html") != std::string::npos || lower.find("<!doctype html") != std::string::npos)
    return "an HTML page";
  const size_t first = lower.find_first_not_of(" \t\r\n");
  return first != std::string::npos && lower[first] == '<' ? "an XML document" : "text";
}

}  // namespace

ImageFormat sniff_format(std::span<const uint8_t> bytes) {
  const std::string_view text = text_of(bytes);
  if (has(text, 0, "\xff\xd8\xff"sv)) return ImageFormat::kJpeg;
  if (has(text, 0, "\x89PNG\r\n\x1a\n"sv)) return ImageFormat::kPng;
  if (has(text, 0, "RIFF"sv) && has(text, 8, "WEBP"sv)) return ImageFormat::kWebp;
  if (has(text, 0, "GIF87a"sv) || has(text, 0, "GIF89a"sv)) return ImageFormat::kGif;
  if (looks_like_bmp(bytes)) return ImageFormat::kBmp;
  return ImageFormat::kUnknown;
}

std::string describe_unknown(std::span<const uint8_t> bytes) {
  const std::string_view text = text_of(bytes);
  for (const Magic& magic : kForeign) {
    if (has(text, magic.at, magic.bytes)) return magic.what;
  }
  if (std::string what = describe_text(text); !what.empty()) return what;
  std::string hex;
  for (uint8_t byte : bytes.first(std::min<size_t>(8, bytes.size())))
    hex += fmt::format("{}{:02x}", hex.empty() ? "" : " ", byte);
  return fmt::format("data of no known kind (it begins with {})", hex);
}

}  // namespace jewel

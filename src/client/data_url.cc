#include "client/data_url.h"

#include <cstdint>
#include <span>

#include "image/sniff.h"

namespace jewel {
namespace {

const char* media_type(std::string_view picture) {
  switch (sniff_format({reinterpret_cast<const uint8_t*>(picture.data()), picture.size()})) {
    case ImageFormat::kJpeg:
      return "image/jpeg";
    case ImageFormat::kPng:
      return "image/png";
    case ImageFormat::kWebp:
      return "image/webp";
    case ImageFormat::kGif:
      return "image/gif";
    case ImageFormat::kBmp:
      return "image/bmp";
    case ImageFormat::kUnknown:
      break;
  }
  return "image/octet-stream";
}

}  // namespace

std::string base64(std::string_view bytes) {
  constexpr std::string_view kAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto at = [&](size_t i) { return i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : uint32_t{0}; };
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const uint32_t three = at(i) << 16 | at(i + 1) << 8 | at(i + 2);
    text += kAlphabet[three >> 18];
    text += kAlphabet[three >> 12 & 63];
    text += i + 1 < bytes.size() ? kAlphabet[three >> 6 & 63] : '=';
    text += i + 2 < bytes.size() ? kAlphabet[three & 63] : '=';
  }
  return text;
}

std::string data_url(std::string_view picture) {
  return std::string("data:") + media_type(picture) + ";base64," + base64(picture);
}

boost::json::object image_part(std::string_view picture) {
  return {{"type", "image_url"}, {"image_url", {{"url", data_url(picture)}}}};
}

}  // namespace jewel

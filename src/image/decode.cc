#include "image/decode.h"

#include <fmt/format.h>
#include <textkit.h>

#include <algorithm>
#include <string>
#include <utility>

#include "image/jpeg.h"
#include "image/orientation.h"
#include "image/sniff.h"

namespace jewel {
namespace {

Result<void> check_size(int64_t width, int64_t height, const ImageLimits& limits) {
  if (width < 1 || height < 1)
    return invalid(fmt::format("the image is empty: {} × {} pixels", width, height));
  if (std::max(width, height) > limits.max_edge) {
    return too_large(fmt::format("the image is {} × {} pixels, a side may have at most {}; scale it down",
                                 width, height, limits.max_edge));
  }
  if (width * height > limits.max_pixels) {
    return too_large(fmt::format(
        "the image is {} × {} = {:.1f} megapixels, at most {:.1f} are taken; scale it down", width, height,
        static_cast<double>(width * height) / 1e6, static_cast<double>(limits.max_pixels) / 1e6));
  }
  return {};
}

RgbImage blank(int64_t width, int64_t height) {
  return {static_cast<int>(height), static_cast<int>(width),
          std::vector<uint8_t>(static_cast<size_t>(width * height) * 3)};
}

Result<RgbImage> decode_jpeg(std::span<const uint8_t> bytes, const ImageLimits& limits) {
  JEWEL_ASSIGN(JpegDecoder jpeg, JpegDecoder::open(bytes));
  JEWEL_TRY(check_size(jpeg.width(), jpeg.height(), limits));
  RgbImage image = blank(jpeg.width(), jpeg.height());
  JEWEL_TRY(jpeg.read(image.rgb));
  return image;
}

Error textkit_error(int32_t status, tk_buffer& message) {
  std::string text(reinterpret_cast<const char*>(message.data), message.size);
  tk_buffer_free(&message);
  switch (status) {
    case TK_TOO_LARGE:
      return too_large(std::move(text));
    case TK_UNSUPPORTED:
      return unsupported(std::move(text));
    default:  // a decoder's panic is, to us, one more way of saying that the file is broken
      return invalid(std::move(text));
  }
}

Result<RgbImage> decode_by_textkit(int32_t format, std::span<const uint8_t> bytes,
                                   const ImageLimits& limits) {
  uint32_t width = 0, height = 0;
  tk_buffer message{};
  if (int32_t status = tk_image_size(format, bytes.data(), bytes.size(), &width, &height, &message);
      status != TK_OK) {
    return textkit_error(status, message);
  }
  JEWEL_TRY(check_size(width, height, limits));
  RgbImage image = blank(width, height);
  if (int32_t status =
          tk_image_decode(format, bytes.data(), bytes.size(), image.rgb.data(), image.rgb.size(), &message);
      status != TK_OK) {
    return textkit_error(status, message);
  }
  return image;
}

Result<RgbImage> decode_stored(ImageFormat format, std::span<const uint8_t> bytes,
                               const ImageLimits& limits) {
  switch (format) {
    case ImageFormat::kJpeg:
      return decode_jpeg(bytes, limits);
    case ImageFormat::kPng:
      return decode_by_textkit(TK_IMAGE_PNG, bytes, limits);
    case ImageFormat::kWebp:
      return decode_by_textkit(TK_IMAGE_WEBP, bytes, limits);
    case ImageFormat::kGif:
      return decode_by_textkit(TK_IMAGE_GIF, bytes, limits);
    case ImageFormat::kBmp:
      return decode_by_textkit(TK_IMAGE_BMP, bytes, limits);
    case ImageFormat::kUnknown:
      break;
  }
  return unsupported(fmt::format("not an image Jewel reads: this looks like {}, expected {}",
                                 describe_unknown(bytes), kAcceptedFormats));
}

}  // namespace

Result<RgbImage> decode_image(std::span<const uint8_t> bytes, const ImageLimits& limits) {
  if (bytes.empty())
    return invalid(fmt::format("the image file is empty (0 bytes), expected {}", kAcceptedFormats));
  if (bytes.size() > limits.max_bytes) {
    return too_large(
        fmt::format("the image file has {} bytes, at most {} are taken; scale it down or compress it more",
                    bytes.size(), limits.max_bytes));
  }
  const ImageFormat format = sniff_format(bytes);
  JEWEL_ASSIGN(RgbImage stored, decode_stored(format, bytes, limits));
  return apply_orientation(std::move(stored), find_orientation(format, bytes));
}

}  // namespace jewel

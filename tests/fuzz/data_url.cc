// A picture's URL as a client sends it: an address taken apart, or a data URL to its bytes and on to pixels.
// Base64 is strict, so what was decoded encodes to the very same text; the host of an address is one that can
// stand in a list.
#include <algorithm>
#include <string>

#include "base/check.h"
#include "client/data_url.h"
#include "image/decode.h"
#include "server/images/image_url.h"
#include "server/openai/base64.h"

namespace {

using namespace jewel;

void take_address(std::string_view url) {
  const Result<ImageUrl> parsed = parse_image_url(url);
  if (!parsed.ok()) {
    JEWEL_CHECK(!parsed.error().message.empty(), "an error without a message");
    return;
  }
  if (parsed->kind == ImageUrl::Kind::kFile) {
    JEWEL_CHECK(parsed->path.starts_with('/') && parsed->path.find('\0') == std::string::npos, "path '{}'",
                parsed->path);
    return;
  }
  const auto is_bad = [](char c) {
    return c <= 0x20 || c >= 0x7f || c == '@' || c == '/' || c == '\\' || c == '%' || (c >= 'A' && c <= 'Z');
  };
  JEWEL_CHECK(!parsed->host.empty() && std::ranges::none_of(parsed->host, is_bad), "host '{}'", parsed->host);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view url(reinterpret_cast<const char*>(data), size);
  if (looks_like_image_url(url)) {
    take_address(url);
    return 0;
  }
  const Result<std::string> bytes = decode_data_url(url, "url");
  if (!bytes.ok()) {
    JEWEL_CHECK(!bytes.error().message.empty(), "an error without a message");
    return 0;
  }
  JEWEL_CHECK(url.ends_with(base64(*bytes)), "{} bytes were not those of the text", bytes->size());
  const ImageLimits limits = {.max_bytes = 1 << 18, .max_pixels = 1 << 18, .max_edge = 2048};
  const Result<RgbImage> image =
      decode_image({reinterpret_cast<const uint8_t*>(bytes->data()), bytes->size()}, limits);
  if (image.ok()) {
    const int64_t pixels = int64_t{image->height} * image->width;
    JEWEL_CHECK(pixels > 0 && pixels <= limits.max_pixels, "{} pixels", pixels);
  }
  return 0;
}

// What kind of file the bytes are, by their first few: names and content types are not trusted.
// Pure functions, callable from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace jewel {

enum class ImageFormat { kUnknown, kJpeg, kPng, kWebp, kGif, kBmp };

inline constexpr const char* kAcceptedFormats = "JPEG, PNG, WebP, GIF or BMP";

ImageFormat sniff_format(std::span<const uint8_t> bytes);

// For files that are none of ours: what they look like ("a PDF file", "a HEIC image", "text"), or their first
// bytes in hex.
std::string describe_unknown(std::span<const uint8_t> bytes);

}  // namespace jewel

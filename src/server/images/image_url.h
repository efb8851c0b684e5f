// ImageUrl: the address of a picture, http(s):// or file://, taken apart strictly. Spellings that two parsers
// may read differently (a user name, a backslash, white space, a percent sign in the host) are refused, so
// that the host that is checked is the host that is asked. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

struct ImageUrl {
  enum class Kind : uint8_t { kHttp, kFile };
  Kind kind = Kind::kHttp;
  std::string host;  // in small letters, without port, brackets and a last dot
  std::string path;  // of a file: absolute, percent signs decoded
};

// Whether a text claims to be one, by its scheme in any case of letters.
bool looks_like_image_url(std::string_view text);

// Errors (kInvalid) are sentences about "the address".
Result<ImageUrl> parse_image_url(std::string_view url);

}  // namespace jewel

// Base64 as in RFC 4648: the standard alphabet, padded, nothing else, no bits left over. And data URLs.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

std::optional<std::string> decode_base64(std::string_view text);

// The bytes of "data:image/png;base64,iVBOR…". `field` names it in errors. What the picture really is, its
// own first bytes say; a media type other than image/* is refused.
Result<std::string> decode_data_url(std::string_view url, const std::string& field);

}  // namespace jewel

// A picture as it travels inside a chat request: "data:image/png;base64,iVBOR…". Pure functions, any thread.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <string_view>

namespace jewel {

std::string base64(std::string_view bytes);

// The media type is what the first bytes say; image/octet-stream for what is no picture that we know.
std::string data_url(std::string_view picture);

// {"type": "image_url", "image_url": {"url": "data:…"}}
boost::json::object image_part(std::string_view picture);

}  // namespace jewel

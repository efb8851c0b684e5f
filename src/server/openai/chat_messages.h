// Messages of a chat request as the engine takes them: pictures out of their URLs, everything else as it
// came. Pure functions, any thread.
#pragma once

#include <boost/json/array.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

struct ChatMessages {
  std::string json;  // the messages with {"type": "image"} where a picture stood
  std::vector<std::shared_ptr<const std::string>> images;  // files, in order
};

// Checks roles and content, and names what cannot be served: audio, video, images by address (for now).
Result<ChatMessages> read_chat_messages(const boost::json::array& messages);

}  // namespace jewel

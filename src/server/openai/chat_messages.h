// Messages of a chat request as the engine takes them: pictures out of their data URLs, everything else as it
// came. Pictures that are elsewhere are named, to be brought by with_images(). Pure functions, any thread.
#pragma once

#include <boost/json/array.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/images/image_loader.h"

namespace jewel {

struct ChatMessages {
  std::string json;  // the messages with {"type": "image"} where a picture stood
  std::vector<std::shared_ptr<const std::string>> images;  // files, in order
  std::vector<WantedImage>
      wanted;  // whose files in `images` are empty until they were brought; no address twice
};

// The picture that a data URL holds, or one that is to be brought: the address joins `out.wanted`, unless it
// is there already. `field` names it in errors.
Result<void> add_image(std::string_view url, const std::string& field, ChatMessages& out);

// Checks roles and content, and names what cannot be served: audio, video.
Result<ChatMessages> read_chat_messages(const boost::json::array& messages);

}  // namespace jewel

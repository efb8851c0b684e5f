// The few functions of the public plain data.
#include <iterator>
#include <utility>

#include "jewel/output.h"
#include "jewel/request.h"

namespace jewel {

Message text_message(std::string role, std::string text) {
  Message message{.role = std::move(role)};
  message.content.push_back({.text = std::move(text)});
  return message;
}

Message image_message(std::vector<std::string> images, std::string text) {
  Message message{.role = "user"};
  for (std::string& image : images)
    message.content.push_back({.image = std::make_shared<const std::string>(std::move(image))});
  message.content.push_back({.text = std::move(text)});
  return message;
}

const char* name_of(EndReason reason) {
  constexpr const char* kNames[] = {"stop",      "length",   "tool_calls", "repetition",
                                    "cancelled", "deadline", "error"};
  static_assert(std::size(kNames) == static_cast<size_t>(EndReason::kError) + 1);
  return kNames[static_cast<size_t>(reason)];
}

std::string Update::content() const {
  std::string text;
  for (const OutputPiece& piece : pieces) {
    if (piece.kind == OutputPiece::Kind::kContent) text += piece.text;
  }
  return text;
}

}  // namespace jewel

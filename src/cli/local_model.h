// What commands that need no server share: a conversation with files for its pictures becomes a request, and
// its updates one answer. One thread.
#pragma once

#include <boost/json/array.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "jewel/engine.h"
#include "text/tool_call.h"

namespace jewel {

// What to answer, in the terms of a chat; or a raw text.
struct ChatInput {
  boost::json::array messages;
  boost::json::array tools;
  bool think = false;
  std::optional<std::string> raw;   // completes this text instead; control tokens in it count
  std::vector<std::string> images;  // files, in the order of the image parts (of <|image|> in raw text)
  int image_tokens = 0;             // soft-token budget of each image, 0 = the checkpoint's
};

struct Answer {
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
  std::vector<int32_t> token_ids;
  Finish finish;
};

// An engine for one request at a time, with nothing kept between them.
EngineOptions one_by_one();

// Reads the picture files. Errors name the file.
Result<Request> request_of(const ChatInput& input, const Sampling& sampling, int max_tokens);

// `on_piece` sees reasoning, content and tool calls as they come; may be empty.
Result<Answer> answer(Engine& engine, const ChatInput& input, const Sampling& sampling, int max_tokens,
                      const std::function<void(const OutputPiece&)>& on_piece);

}  // namespace jewel

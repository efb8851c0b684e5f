// SpecialIds: the ids of the tokens that mean something to Jewel, found by name in the checkpoint's own
// tokenizer.
//
// The names are Gemma 4's; where tokenizer_config.json gives a name of its own ("boi_token": "<|image>"),
// that one counts. An id is -1 when the vocabulary lacks the token: whoever needs it says so. Plain data, any
// thread.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>

#include "text/tokenizer.h"

namespace jewel {

struct SpecialIds {
  int32_t bos = -1;
  int32_t eos = -1;
  int32_t pad = -1;
  int32_t turn_open = -1;           // <|turn>
  int32_t turn_close = -1;          // <turn|>
  int32_t channel_open = -1;        // <|channel>
  int32_t channel_close = -1;       // <channel|>
  int32_t tool_call_open = -1;      // <|tool_call>
  int32_t tool_call_close = -1;     // <tool_call|>
  int32_t tool_response_open = -1;  // <|tool_response>: also what the model emits after its last call, a stop
  int32_t tool_response_close = -1;  // <tool_response|>
  int32_t quote = -1;                // <|"|>
  int32_t boi = -1;                  // <|image>
  int32_t image = -1;  // <|image|>: the template's placeholder, then the place of each soft token
  int32_t eoi = -1;    // <image|>
  int32_t boa = -1;    // <|audio>
  int32_t audio = -1;  // <|audio|>
  int32_t eoa = -1;    // <audio|>
  int32_t video = -1;  // <|video|>
};

SpecialIds find_special_ids(const Tokenizer& tokenizer, const boost::json::object& tokenizer_config);

// A token name as tokenizer_config.json has it: "<bos>" or {"content": "<bos>", …}. Empty when absent.
std::string configured_token(const boost::json::object& tokenizer_config, std::string_view key);

}  // namespace jewel

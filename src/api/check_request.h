// Whether a request makes sense by itself: ranges, and what excludes what. Pure functions, any thread. Errors
// name the field as the OpenAI API spells it.
#pragma once

#include "jewel/engine.h"

namespace jewel {

struct RequestLimits {
  int vocab_size = 0;
  int max_model_len = 0;
  int max_images = 0;
  int max_logprobs = 20;
  std::string backend = "the backend";
  bool has_vision = false;
  bool has_chat_template = false;
};

Result<void> check_request(const Request& request, const RequestLimits& limits);

// The Error for a prompt that does not fit, the same words everywhere.
Result<void> check_length(size_t prompt_tokens, int max_tokens, int max_model_len);

}  // namespace jewel

// What an Engine gives back: a series of Updates, the last of which has `finish`. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "jewel/result.h"

namespace jewel {

struct TokenChance {
  int32_t id = 0;
  std::string bytes;  // what the token prints; may be part of a character
  float logprob = 0;  // natural logarithm, before penalties and temperature
  int rank = 0;       // 1 = most likely
};

struct OutputToken {
  int32_t id = 0;
  std::optional<TokenChance> chance;  // when logprobs were asked for
  std::vector<TokenChance> top;       // the best, descending
  bool in_content = false;            // printed as content: no thought, no call, no marker
  std::string bytes;                  // of a token of the prompt: what it prints
};

// A piece of the answer. Pieces of one kind, put together, are the whole; what was said never changes.
struct OutputPiece {
  enum class Kind : uint8_t {
    kReasoning,
    kContent,
    kCallStart,      // text: the function's name
    kCallArguments,  // text: the next piece of the arguments' JSON
    kCallEnd,        // text: the arguments' JSON as a whole; complete: the model closed the call itself
  };
  Kind kind = Kind::kContent;
  std::string text;
  int call = 0;  // index of the call, from 0
  bool complete = true;
};

enum class EndReason : uint8_t {
  kStop,        // a stop token or stop text
  kLength,      // max_tokens
  kToolCalls,   // a stop with at least one call
  kRepetition,  // the same few tokens over and over
  kCancelled,
  kDeadline,
  kError,
};
const char* name_of(EndReason reason);  // "stop", "length", "tool_calls", …

struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  // of the prompt: not computed again
  int image_tokens = 0;   // of the prompt
  int completion_tokens = 0;
  int reasoning_tokens = 0;  // of the completion
};

struct Timings {
  double load_s = 0;     // that the engine took to load its model, before any request
  double queue_s = 0;    // from submit() to the first step with this request
  double image_s = 0;    // decoding and resizing pictures, part of the time before the queue
  double ttft_s = 0;     // from submit() to the first token
  double prefill_s = 0;  // first step to first token
  double decode_s = 0;   // first token to last
};

// What the answer drew, by the device's own counter (docs/energy.md).
struct Energy {
  double joules = 0;  // image + prefill + decode
  double image_joules = 0;
  double prefill_joules = 0;
  double decode_joules = 0;
  double reasoning_joules = 0;   // a part of decode
  double idle_share_joules = 0;  // of the rest since the last answer; beside `joules`, not in it
  std::string method;            // "nvml", "rapl"
};

struct Finish {
  EndReason reason = EndReason::kStop;
  std::string stop_text;       // the text of Request::stop that ended it
  int32_t stop_token_id = -1;  // the token that ended it
  Usage usage;
  Timings timings;
  std::optional<Energy> energy;  // where a meter is; never an estimate without one
  std::optional<Error> error;    // when kError or kDeadline
};

// The prompt as the model reads it.
struct PromptInfo {
  int prompt_tokens = 0;
  int image_tokens = 0;
  std::vector<int32_t> ids;  // when return_prompt_ids
};

// Everything that happened since the last Update, in order.
struct Update {
  std::optional<PromptInfo> prompt;          // in the first one: the request is valid and waits for its turn
  std::vector<OutputToken> prompt_logprobs;  // entry i is the prompt's token i; the first has no chance
  std::vector<OutputPiece> pieces;
  std::vector<OutputToken> tokens;  // sampled, stop tokens included
  std::optional<Finish> finish;     // in the last one

  std::string content() const;  // the pieces of content, put together
};

}  // namespace jewel

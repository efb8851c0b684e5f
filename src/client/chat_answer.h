// ChatAnswer: what a server said to one chat request, and when. Plain data.
//
// Times are of the machine that asks: an event counts from when its last byte was read. A server may put
// several tokens into one event (vLLM's --stream-interval, drafts that were accepted, a reader that fell
// behind), so events are not tokens; how many tokens there were, `usage` says.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace jewel {

// usage.energy, as Jewel's servers send it where they have a meter. Joules.
struct ServerEnergy {
  std::string method;
  double joules = 0;  // image + prefill + decode
  double image_joules = 0;
  double prefill_joules = 0;
  double decode_joules = 0;
  double reasoning_joules = 0;   // a part of decode
  double idle_share_joules = 0;  // beside `joules`, not in it
};

struct ServerUsage {
  int prompt_tokens = 0;
  int completion_tokens = 0;
  std::optional<int> cached_tokens;  // of the prompt, where the server says so
  std::optional<int> image_tokens;
  std::optional<int> reasoning_tokens;  // of the completion
  std::optional<ServerEnergy> energy;
};

struct ServerToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text, as the server sent it
};

struct ChatAnswer {
  using Clock = std::chrono::steady_clock;

  std::string content;
  std::string reasoning;  // `reasoning` or `reasoning_content`
  std::vector<ServerToolCall> tool_calls;
  std::string finish_reason;  // stop, length, tool_calls, …
  std::string model;          // the name that the server gives
  std::optional<ServerUsage> usage;

  Clock::time_point begun;                // the request was started; connecting comes after it
  std::vector<Clock::time_point> pieces;  // each event that brought text, reasoning or a call
  Clock::time_point ended;                // the stream's end was read
};

}  // namespace jewel

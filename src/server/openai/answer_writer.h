// AnswerWriter: an answer in the JSON of one of the API's routes, whole or as a stream of events. One per
// request, one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "jewel/output.h"
#include "server/openai/asked.h"

namespace jewel {

// What every answer of a request has in common.
struct AnswerHead {
  std::string id;  // "chatcmpl-…"
  int64_t created = 0;
  std::string model;
  int n = 1;  // choices per prompt
  bool include_usage = false;
  bool continuous_usage = false;
  bool include_reasoning = true;
  bool return_token_ids = false;
  std::vector<std::string> echo;
  bool echo_logprobs = false;  // Asked::echo_logprobs
  std::string repeated;        // Asked::repeated
};

class AnswerWriter {
 public:
  AnswerWriter() = default;
  virtual ~AnswerWriter() = default;
  AnswerWriter(const AnswerWriter&) = delete;
  AnswerWriter& operator=(const AnswerWriter&) = delete;

  // The whole response; answers[i] is everything that came for choice i.
  virtual std::string whole(const std::vector<Update>& answers) = 0;

  // Events ("data: …\n\n") for what came for one choice.
  virtual void add_events(std::string& out, size_t choice, const Update& update) = 0;
  // Behind the last of them: usage, if asked for.
  virtual void add_last_events(std::string& out) = 0;
  // In place of them, when the stream cannot go on.
  virtual void add_error(std::string& out, int status, std::string_view message, std::string_view param);
  // What stands behind everything: [DONE], unless said otherwise.
  virtual std::string_view end_mark() const;
};

std::unique_ptr<AnswerWriter> make_chat_writer(AnswerHead head);
std::unique_ptr<AnswerWriter> make_completion_writer(AnswerHead head, size_t answers);
std::unique_ptr<AnswerWriter> make_responses_writer(AnswerHead head);
std::unique_ptr<AnswerWriter> make_anthropic_writer(AnswerHead head);

}  // namespace jewel

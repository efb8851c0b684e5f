// ChatReader: the answer to a chat request out of what the server sends: the events of a stream, or one whole
// JSON (what servers without streaming send whatever was asked). Takes the dialects of vLLM, llama.cpp and
// Jewel: reasoning under either name, null or absent fields, usage in an event of its own or with the last
// choice. Only the first choice is read. One answer, one thread.
#pragma once

#include <boost/json/object.hpp>
#include <string_view>

#include "base/result.h"
#include "client/chat_answer.h"

namespace jewel {

class ChatReader {
 public:
  explicit ChatReader(ChatAnswer::Clock::time_point begun) { answer_.begun = begun; }

  // Errors: what the server reports in the stream (kInternal, its words), what is not JSON or not a chat
  // answer (kInvalid, its beginning).
  Result<void> event(std::string_view name, std::string_view data, ChatAnswer::Clock::time_point at);
  Result<void> whole(std::string_view body, ChatAnswer::Clock::time_point at);

  // The body's end. An answer that has neither a finish reason nor [DONE] was cut off: kUnavailable.
  Result<ChatAnswer> finish(ChatAnswer::Clock::time_point at);
  bool done() const { return done_; }  // [DONE] was read

 private:
  Result<void> read(const boost::json::object& chunk, ChatAnswer::Clock::time_point at);
  bool add_delta(const boost::json::object& delta);
  bool add_tool_calls(const boost::json::value& calls);

  ChatAnswer answer_;
  bool done_ = false;
  bool seen_ = false;  // anything that is an answer
};

// `usage` of an answer; nullopt unless it has the two counts.
std::optional<ServerUsage> read_usage(const boost::json::value& usage);

// What a server says in an error's body: {"error": {"message"}}, {"error": "…"}, {"message"}, {"detail"};
// else the body's beginning, in one line.
std::string server_message(std::string_view body);

// For messages: at most `most` bytes, control characters as spaces, "…" where it goes on.
std::string beginning_of(std::string_view text, size_t most = 200);

}  // namespace jewel

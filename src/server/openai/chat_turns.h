// ChatTurns: a conversation as the Responses and the Messages API write it, in items and blocks, put together
// as the chat messages that the engine's template reads. One conversation, one thread.
//
//   ChatTurns turns(asked.names);
//   turns.begin("user");
//   turns.text("What is this?");
//   JEWEL_TRY(turns.image("data:image/png;base64,…", "input[0].content[1].image_url"));
//   turns.finish(asked, request);
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/openai/asked.h"
#include "server/openai/chat_messages.h"

namespace jewel {

class ChatTurns {
 public:
  // What the engine will call the pieces goes to `names`, which outlives this.
  explicit ChatTurns(FieldNames& names) : names_(names) {}

  // Those in front of everything else are one message, an empty line between them: the template knows one
  // system turn. Later ones stand where they came.
  void system(std::string_view text);

  void begin(std::string_view role);
  // What an assistant's turn is made of, in the order that it says it. A piece that cannot follow what the
  // turn has already begins another.
  enum class Stage : uint8_t { kReasoning, kContent, kCalls };
  void begin_assistant(Stage stage);

  // Into the message that was begun.
  void text(std::string_view text);
  // Errors name `at`, the URL's field.
  Result<void> image(std::string_view url, const std::string& at);
  void reasoning(std::string_view text);
  // `arguments`: an object, or its JSON text; `at`: their field.
  void call(std::string_view id, std::string_view name, boost::json::value arguments, std::string at);

  // A tool's answer, whose text and pictures follow. An error when no call has the id.
  Result<void> begin_answer(std::string_view call_id, const std::string& at);

  bool empty() const { return messages_.empty() && role_.empty() && system_.empty(); }
  // The last message is an assistant's that says something and calls nothing: it may be continued.
  bool ends_with_assistant_text() const { return role_ == "assistant" && !parts_.empty() && calls_.empty(); }

  // The messages and pictures into `request`, the pictures that are to be brought into `asked`.
  void finish(Asked& asked, Request& request);

 private:
  void end_message();

  FieldNames& names_;
  boost::json::array messages_;
  ChatMessages pictures_;
  size_t n_pictures_ = 0;
  std::set<std::string, std::less<>> call_ids_;

  std::string system_;  // while nothing else has come
  // The message that was begun; no role: none.
  std::string role_;
  boost::json::array parts_;
  std::string reasoning_;
  boost::json::array calls_;
  std::vector<std::string> argument_fields_;
  std::string answers_;  // the id of the call
  Stage stage_ = Stage::kReasoning;
};

}  // namespace jewel

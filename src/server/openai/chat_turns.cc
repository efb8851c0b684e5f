#include "server/openai/chat_turns.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <utility>

#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

void ChatTurns::system(std::string_view text) {
  if (messages_.empty() && role_.empty()) {
    if (!system_.empty()) system_ += "\n\n";
    system_ += text;
  } else {
    begin("system");
    this->text(text);
  }
}

void ChatTurns::begin(std::string_view role) {
  end_message();
  role_ = role;
}

void ChatTurns::begin_assistant(Stage stage) {
  const bool goes_on =
      role_ == "assistant" && (stage > stage_ || (stage == stage_ && stage == Stage::kCalls));
  if (!goes_on) begin("assistant");
  stage_ = stage;
}

void ChatTurns::text(std::string_view text) {
  parts_.push_back(json::object{{"type", "text"}, {"text", text}});
}

Result<void> ChatTurns::image(std::string_view url, const std::string& at) {
  JEWEL_TRY(add_image(url, at, pictures_));
  names_.add(fmt::format("images[{}]", n_pictures_++), at);
  parts_.push_back(json::object{{"type", "image"}});
  return {};
}

void ChatTurns::reasoning(std::string_view text) {
  reasoning_ += text;
}

void ChatTurns::call(std::string_view id, std::string_view name, json::value arguments, std::string at) {
  call_ids_.emplace(id);
  json::object function{{"name", name}};
  function["arguments"] = std::move(arguments);
  json::object made{{"id", id}, {"type", "function"}};
  made["function"] = std::move(function);
  calls_.push_back(std::move(made));
  argument_fields_.push_back(std::move(at));
}

Result<void> ChatTurns::begin_answer(std::string_view call_id, const std::string& at) {
  if (!call_ids_.contains(call_id)) {
    return invalid(
        fmt::format("{}: no call with the id '{}' came before; send the call that this answers, too", at,
                    call_id.substr(0, 64)),
        at);
  }
  begin("tool");
  answers_ = call_id;
  return {};
}

void ChatTurns::end_message() {
  if (!system_.empty()) {
    messages_.push_back(json::object{{"role", "system"}, {"content", std::exchange(system_, {})}});
  }
  if (role_.empty()) return;
  json::object message;
  message["role"] = std::exchange(role_, {});
  // One text alone is given to the template as a string, as chat clients send it.
  if (parts_.size() == 1 && parts_.front().get_object().contains("text"))
    message["content"] = std::move(parts_.front().get_object()["text"]);
  else if (parts_.empty())
    message["content"] = "";
  else
    message["content"] = std::move(parts_);
  parts_ = {};
  if (!reasoning_.empty()) message["reasoning"] = std::exchange(reasoning_, {});
  for (size_t i = 0; i < argument_fields_.size(); ++i) {
    names_.add(fmt::format("messages[{}].tool_calls[{}].function.arguments", messages_.size(), i),
               std::move(argument_fields_[i]));
  }
  argument_fields_.clear();
  if (!calls_.empty()) message["tool_calls"] = std::exchange(calls_, {});
  if (!answers_.empty()) message["tool_call_id"] = std::exchange(answers_, {});
  stage_ = Stage::kReasoning;
  messages_.push_back(std::move(message));
}

void ChatTurns::finish(Asked& asked, Request& request) {
  end_message();
  request.messages_json = json_line(messages_);
  request.images = std::move(pictures_.images);
  asked.wanted = std::move(pictures_.wanted);
}

}  // namespace jewel

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <iterator>

#include "model/json_reader.h"
#include "model/json_text.h"
#include "server/openai/asked.h"
#include "server/openai/chat_messages.h"
#include "server/openai/common_fields.h"

namespace jewel {

namespace json = boost::json;

namespace {

void read_messages(FieldReader& fields, Request& request, std::vector<WantedImage>& wanted) {
  const json::array* messages = fields.array("messages");
  if (fields.failed()) return;
  if (messages == nullptr)
    return fields.fail(invalid("messages: missing; expected a list of messages", "messages"));
  auto read = read_chat_messages(*messages);
  if (!read.ok()) return fields.fail(std::move(read).error());
  request.messages_json = std::move(read->json);
  request.images = std::move(read->images);
  wanted = std::move(read->wanted);
}

void read_tool_choice(FieldReader& fields, Request& request) {
  const json::value* choice = fields.any("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_string()) {
    const std::string_view word(choice->get_string());
    if (word == "auto") return;
    if (word == "none") {
      request.tool_choice = ToolChoice::kNone;
      return;
    }
    if (word == "required") {
      request.tool_choice = ToolChoice::kRequired;
      return;
    }
  } else if (choice->is_object()) {
    boost::system::error_code missing;
    const json::value* name = choice->find_pointer("/function/name", missing);
    if (name != nullptr && name->is_string()) {
      request.tool_choice = ToolChoice::kNamed;
      request.tool_name = name->get_string();
      return;
    }
  }
  fields.fail(invalid(
      R"(tool_choice: expected auto, none, required or {"type": "function", "function": {"name": …}})",
      "tool_choice"));
}

// The shape of a function's declaration; whether its schema can be kept is seen where its calls are written.
Result<void> check_tool(const json::value& value, const std::string& at) {
  const json::object* object = value.if_object();
  if (object == nullptr)
    return invalid(fmt::format("{}: found {}, expected an object with a function", at, describe(value)), at);
  FieldReader tool(*object, at);
  const std::string type = tool.text("type").value_or("function");
  const json::object* declared = tool.object("function");
  if (tool.failed()) return tool.error();
  if (type != "function")
    return unsupported(fmt::format("{}.type: '{}' is not served, tools of type function are", at, type),
                       at + ".type");
  if (declared == nullptr)
    return invalid(fmt::format("{}.function: missing; expected its name and parameters", at),
                   at + ".function");
  FieldReader function(*declared, at + ".function");
  const bool has_name = function.text("name").has_value();
  function.text("description");
  if (!function.failed() && !has_name) {
    function.fail(invalid(fmt::format("{}: missing; expected the function's name", function.at("name")),
                          function.at("name")));
  }
  if (function.failed()) return function.error();
  return {};
}

void read_tools(FieldReader& fields, Request& request) {
  const json::array* tools = fields.array("tools");
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    if (const auto good = check_tool((*tools)[i], fmt::format("tools[{}]", i)); !good.ok())
      return fields.fail(good.error());
  }
  if (tools != nullptr && !tools->empty()) request.tools = json_line(*tools);
  read_tool_choice(fields, request);
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
}

// enable_thinking of chat_template_kwargs is the client's own word; else the effort decides, as in vLLM.
void read_template_options(FieldReader& fields, const AskDefaults& defaults, Request& request) {
  read_template_kwargs(fields, defaults, request);
  if (fields.any("chat_template") != nullptr) {
    fields.fail(
        unsupported("chat_template: templates of requests are not run; start the server with --chat-template",
                    "chat_template"));
  }
  if (const json::array* documents = fields.array("documents"); documents != nullptr && !documents->empty()) {
    fields.fail(unsupported("documents: the model's template has no place for them; put them into a message",
                            "documents"));
  }
  fields.accept("add_special_tokens");  // the template writes <bos> itself
  read_effort(fields, "reasoning_effort", request);
  request.continue_final_message = fields.boolean("continue_final_message").value_or(false);
  request.add_generation_prompt =
      fields.boolean("add_generation_prompt").value_or(!request.continue_final_message);
}

void read_logprobs(FieldReader& fields, const AskDefaults& defaults, Request& request) {
  const bool wanted = fields.boolean("logprobs").value_or(false);
  const std::optional<int> top = fields.count("top_logprobs", 0, defaults.max_logprobs);
  if (top.value_or(0) > 0 && !wanted)
    return fields.fail(invalid("top_logprobs: only with logprobs: true", "top_logprobs"));
  if (wanted) request.logprobs = top.value_or(0);
}

void refuse_what_is_for_completions(FieldReader& fields, const Asked& asked, const Request& request) {
  if (fields.boolean("echo").value_or(false))
    fields.fail(unsupported("echo: /v1/completions does that", "echo"));
  if (asked.stream && request.prompt_logprobs)
    fields.fail(invalid("prompt_logprobs: not in a stream; leave stream out", "prompt_logprobs"));
}

void refuse_audio(FieldReader& fields) {
  const json::array* modalities = fields.array("modalities");
  if (modalities == nullptr) return;
  for (const json::value& modality : *modalities) {
    if (!modality.is_string() || modality.get_string() != "text") {
      return fields.fail(unsupported("modalities: answers are text; audio is not served", "modalities"));
    }
  }
}

}  // namespace

Result<Request> read_chat_prompt(const json::object& body, const AskDefaults& defaults,
                                 std::vector<WantedImage>& wanted) {
  FieldReader fields(body);
  Request request;
  read_messages(fields, request, wanted);
  read_tools(fields, request);
  read_template_options(fields, defaults, request);
  request.max_soft_tokens = defaults.max_soft_tokens;
  if (fields.failed()) return fields.error();
  return request;
}

Result<Asked> read_chat(const json::object& body, const AskDefaults& defaults) {
  FieldReader fields(body);
  Asked asked;
  Request request;
  read_common(fields, defaults, asked, request);
  read_messages(fields, request, asked.wanted);
  read_tools(fields, request);
  read_template_options(fields, defaults, request);
  read_logprobs(fields, defaults, request);
  refuse_audio(fields);
  refuse_what_is_for_completions(fields, asked, request);
  // Special tokens can be seen where nothing is told apart, and tools' calls have to be.
  if (!request.skip_special_tokens && request.tools.empty()) request.parse_output = false;
  asked.include_reasoning = fields.boolean("include_reasoning").value_or(true);
  if (fields.failed()) return fields.error();
  asked.ignored = fields.unknown();
  add_choices(asked, request);
  return asked;
}

}  // namespace jewel

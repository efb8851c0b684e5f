#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>

#include "model/json_text.h"
#include "server/openai/anthropic_content.h"
#include "server/openai/asked.h"
#include "server/openai/common_fields.h"

namespace jewel {

namespace json = boost::json;

namespace {

// An assistant's message at the end is what the answer begins with.
void read_conversation(FieldReader& fields, Asked& asked, Request& request) {
  ChatTurns turns(asked.names);
  if (const json::value* system = fields.any("system")) {
    const auto read = read_anthropic_system(*system, turns);
    if (!read.ok()) fields.fail(read.error());
  }
  const json::array* messages = fields.array("messages");
  if (fields.failed()) return;
  if (messages == nullptr)
    return fields.fail(invalid("messages: missing; expected a list of messages", "messages"));
  const auto read = read_anthropic_messages(*messages, turns);
  if (!read.ok()) return fields.fail(read.error());
  request.continue_final_message = turns.ends_with_assistant_text();
  request.add_generation_prompt = !request.continue_final_message;
  turns.finish(asked, request);
}

void read_tool(const json::value& value, const std::string& at, FieldReader& fields, Asked& asked,
               json::array& tools) {
  const json::object* object = value.if_object();
  if (object == nullptr) return fields.fail(at, value, "an object with name and input_schema");
  FieldReader tool(*object, at);
  const std::string type = tool.text("type").value_or("custom");
  if (!tool.failed() && type != "custom") {
    return fields.fail(unsupported(
        fmt::format("{}.type: '{}' is Anthropic's own and not served; tools with an input_schema are", at,
                    type),
        at + ".type"));
  }
  json::object function;
  if (const auto name = tool.text("name"))
    function["name"] = *name;
  else
    tool.fail(invalid(fmt::format("{}.name: missing; expected the tool's name", at), at + ".name"));
  if (const auto description = tool.text("description")) function["description"] = *description;
  if (const json::object* schema = tool.object("input_schema"))
    function["parameters"] = *schema;
  else
    tool.fail(
        invalid(fmt::format("{}.input_schema: missing; expected a JSON schema", at), at + ".input_schema"));
  if (const auto strict = tool.boolean("strict")) function["strict"] = *strict;
  if (tool.failed()) return fields.fail(tool.error());
  asked.names.add(fmt::format("tools[{}].function.parameters", tools.size()), at + ".input_schema");
  asked.names.add(fmt::format("tools[{}].function", tools.size()), at);
  json::object wrapped{{"type", "function"}};
  wrapped["function"] = std::move(function);
  tools.push_back(std::move(wrapped));
}

void read_tool_choice(FieldReader& fields, Request& request) {
  const json::object* object = fields.object("tool_choice");
  if (object == nullptr) return;
  FieldReader choice(*object, "tool_choice");
  const std::string type = choice.text("type").value_or("");
  if (type == "any") {
    request.tool_choice = ToolChoice::kRequired;
  } else if (type == "none") {
    request.tool_choice = ToolChoice::kNone;
  } else if (type == "tool") {
    request.tool_choice = ToolChoice::kNamed;
    request.tool_name = choice.text("name").value_or("");
    if (request.tool_name.empty())
      choice.fail(invalid("tool_choice.name: missing; expected a tool's name", "tool_choice.name"));
  } else if (type != "auto") {
    choice.fail(invalid(fmt::format("tool_choice.type: found '{}', expected auto, any, tool or none", type),
                        "tool_choice.type"));
  }
  request.parallel_tool_calls = !choice.boolean("disable_parallel_tool_use").value_or(false);
  if (choice.failed()) fields.fail(choice.error());
}

void read_tools(FieldReader& fields, Asked& asked, Request& request) {
  json::array tools;
  if (const json::array* list = fields.array("tools")) {
    for (size_t i = 0; i < list->size(); ++i)
      read_tool((*list)[i], fmt::format("tools[{}]", i), fields, asked, tools);
  }
  if (!tools.empty()) request.tools = json_line(tools);
  read_tool_choice(fields, request);
}

void read_thinking(FieldReader& fields, Asked& asked, Request& request) {
  const json::object* object = fields.object("thinking");
  if (object == nullptr) return;
  FieldReader thinking(*object, "thinking");
  const std::string type = thinking.text("type").value_or("");
  if (type == "enabled" || type == "adaptive") {
    request.thinking = true;
    if (const auto budget = thinking.count("budget_tokens", 0)) request.thinking_budget = budget;
    if (thinking.text("display").value_or("") == "omitted") asked.include_reasoning = false;
  } else if (type == "disabled") {
    request.thinking = false;
  } else {
    thinking.fail(
        invalid(fmt::format("thinking.type: found '{}', expected enabled, adaptive or disabled", type),
                "thinking.type"));
  }
  if (thinking.failed()) fields.fail(thinking.error());
  asked.names.add("thinking_token_budget", "thinking.budget_tokens");
}

// {"effort": …, "format": {"type": "json_schema", "schema": …}}. Effort is how much to think, if at all;
// whether to is said by `thinking`.
void read_output_config(FieldReader& fields, Asked& asked, Request& request) {
  const json::object* object = fields.object("output_config");
  if (object == nullptr) return;
  FieldReader config(*object, "output_config");
  config.accept("effort");
  if (const json::object* holder = config.object("format")) {
    FieldReader format(*holder, "output_config.format");
    const std::string type = format.text("type").value_or("");
    const json::object* schema = format.object("schema");
    if (type != "json_schema") {
      format.fail(invalid(fmt::format("output_config.format.type: found '{}', expected json_schema", type),
                          "output_config.format.type"));
    } else if (schema == nullptr) {
      format.fail(invalid("output_config.format.schema: missing; expected a JSON schema",
                          "output_config.format.schema"));
    } else {
      request.grammar = {.kind = Grammar::Kind::kJsonSchema, .text = json_line(*schema)};
    }
    if (format.failed()) fields.fail(format.error());
  }
  if (config.failed()) fields.fail(config.error());
  asked.names.add("response_format.json_schema.schema", "output_config.format.schema");
  asked.names.add("response_format", "output_config.format");
}

void read_limits(FieldReader& fields, bool count_only, Asked& asked, Request& request) {
  const std::optional<int> most = fields.count("max_tokens", 1);
  if (!most && !count_only)
    fields.fail(invalid("max_tokens: missing; expected how many tokens the answer may have", "max_tokens"));
  request.max_tokens = most.value_or(0);
  if (auto stops = fields.texts("stop_sequences")) request.stop = *std::move(stops);
  asked.names.add("stop", "stop_sequences");
}

}  // namespace

Result<Asked> read_anthropic(const json::object& body, const AskDefaults& defaults, bool count_only) {
  FieldReader fields(body);
  Asked asked{.shape = AnswerShape::kMessages};
  Request request;
  read_model(fields, defaults, asked);
  asked.stream = fields.boolean("stream").value_or(false);
  read_output_config(fields, asked, request);
  read_serving(fields, defaults, request);
  read_limits(fields, count_only, asked, request);
  read_template_kwargs(fields, defaults, request);
  read_thinking(fields, asked, request);
  read_tools(fields, asked, request);
  read_conversation(fields, asked, request);
  // Of Anthropic's own service: prefixes are found again without being marked, nothing is kept.
  for (const char* name : {"cache_control", "container", "context_management", "diagnostics", "inference_geo",
                           "speed", "betas"}) {
    fields.accept(name);
  }
  if (fields.failed()) return asked.names.apply(fields.error());
  asked.ignored = fields.unknown();
  asked.requests.push_back(std::move(request));
  return asked;
}

}  // namespace jewel

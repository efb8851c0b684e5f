#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <set>

#include "model/json_reader.h"
#include "model/json_text.h"
#include "server/openai/asked.h"
#include "server/openai/chat_turns.h"
#include "server/openai/common_fields.h"
#include "server/openai/json_out.h"
#include "server/openai/responses_input.h"

namespace jewel {

namespace json = boost::json;

namespace {

// What would need a memory of earlier requests.
void refuse_state(FieldReader& fields) {
  static constexpr std::string_view kStateless =
      "this server keeps no responses (it is stateless); send the whole conversation as items of input";
  for (const char* name : {"previous_response_id", "conversation"}) {
    if (fields.any(name) != nullptr) fields.fail(unsupported(fmt::format("{}: {}", name, kStateless), name));
  }
  if (fields.boolean("background").value_or(false)) {
    fields.fail(unsupported(
        "background: this server keeps no responses (it is stateless); leave it out and read the answer, or "
        "stream it",
        "background"));
  }
  if (fields.any("prompt") != nullptr) {
    fields.fail(
        unsupported("prompt: this server keeps no prompt templates; send instructions and input", "prompt"));
  }
  fields.boolean("store");  // true is taken: the answer says that nothing was stored
}

void read_conversation(FieldReader& fields, Asked& asked, Request& request) {
  ChatTurns turns(asked.names);
  if (const auto instructions = fields.text("instructions"); instructions && !instructions->empty())
    turns.system(*instructions);
  const json::value* input = fields.any("input");
  if (fields.failed()) return;
  if (input == nullptr)
    return fields.fail(invalid("input: missing; expected text or a list of items", "input"));
  const auto cut_off = read_responses_input(*input, turns);
  if (!cut_off.ok()) return fields.fail(cut_off.error());
  if (turns.empty()) return fields.fail(invalid("input: holds nothing to answer", "input"));
  request.continue_final_message = *cut_off;
  request.add_generation_prompt = !*cut_off;
  turns.finish(asked, request);
}

// {"type": "function", "name": …, "parameters": …}, which the chat API wraps once more.
void read_tool(const json::value& value, const std::string& at, FieldReader& fields, Asked& asked,
               json::array& tools) {
  const json::object* object = value.if_object();
  if (object == nullptr) return fields.fail(at, value, "an object with a type");
  FieldReader tool(*object, at);
  const std::string type = tool.text("type").value_or("");
  if (!tool.failed() && type != "function") {
    return fields.fail(unsupported(
        fmt::format("{}.type: '{}' is not served, tools of type function are", at, type), at + ".type"));
  }
  json::object function;
  if (const auto name = tool.text("name"))
    function["name"] = *name;
  else
    tool.fail(invalid(fmt::format("{}.name: missing; expected the function's name", at), at + ".name"));
  if (const auto description = tool.text("description")) function["description"] = *description;
  if (const json::object* parameters = tool.object("parameters")) function["parameters"] = *parameters;
  if (const auto strict = tool.boolean("strict")) function["strict"] = *strict;
  if (tool.failed()) return fields.fail(tool.error());
  asked.names.add(fmt::format("tools[{}].function", tools.size()), at);
  json::object wrapped{{"type", "function"}};
  wrapped["function"] = std::move(function);
  tools.push_back(std::move(wrapped));
}

std::string name_of_function(const json::object& choice) {
  const json::value* name = choice.if_contains("name");
  return name != nullptr && name->is_string() ? std::string(name->get_string()) : "";
}

// {"type": "allowed_tools", "mode": …, "tools": […]}: the others are not shown to the model.
void allow_tools(FieldReader& choice, FieldReader& fields, Request& request, json::array& tools) {
  const std::string mode = choice.text("mode").value_or("nothing");
  std::set<std::string> allowed;
  const json::array* list = choice.array("tools");
  if (choice.failed()) return fields.fail(choice.error());
  if (list == nullptr)
    return fields.fail(
        invalid("tool_choice.tools: missing; expected the tools that are allowed", "tool_choice.tools"));
  for (const json::value& tool : *list) {
    if (tool.is_object()) allowed.insert(name_of_function(tool.get_object()));
  }
  if (mode != "auto" && mode != "required") {
    return fields.fail(invalid(fmt::format("tool_choice.mode: found '{}', expected auto or required", mode),
                               "tool_choice.mode"));
  }
  const auto is_hidden = [&](const json::value& tool) {
    return !allowed.contains(std::string(tool.at("function").at("name").get_string()));
  };
  tools.erase(std::ranges::remove_if(tools, is_hidden).begin(), tools.end());
  if (mode == "required") request.tool_choice = ToolChoice::kRequired;
}

void read_tool_choice(FieldReader& fields, Request& request, json::array& tools) {
  const json::value* choice = fields.any("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_string()) {
    const std::string_view word(choice->get_string());
    if (word == "auto") return;
    if (word == "none") request.tool_choice = ToolChoice::kNone;
    if (word == "required") request.tool_choice = ToolChoice::kRequired;
    if (request.tool_choice != ToolChoice::kAuto) return;
  } else if (const json::object* object = choice->if_object()) {
    FieldReader named(*object, "tool_choice");
    const std::string type = named.text("type").value_or("");
    if (type == "allowed_tools") return allow_tools(named, fields, request, tools);
    request.tool_name = name_of_function(*object);
    request.tool_choice = ToolChoice::kNamed;
    if (type == "function" && !request.tool_name.empty()) return;
  }
  fields.fail(invalid(R"(tool_choice: expected auto, none, required, {"type": "function", "name": …} or )"
                      R"({"type": "allowed_tools", "mode": …, "tools": […]})",
                      "tool_choice"));
}

void read_tools(FieldReader& fields, Asked& asked, Request& request) {
  json::array tools;
  if (const json::array* list = fields.array("tools")) {
    for (size_t i = 0; i < list->size(); ++i)
      read_tool((*list)[i], fmt::format("tools[{}]", i), fields, asked, tools);
  }
  read_tool_choice(fields, request, tools);
  if (!tools.empty()) request.tools = json_line(tools);
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
  fields.accept("max_tool_calls");  // of tools that OpenAI runs
}

void read_text(FieldReader& fields, Asked& asked, Request& request) {
  const json::object* object = fields.object("text");
  if (object == nullptr) return;
  FieldReader text(*object, "text");
  text.accept("verbosity");
  if (const json::object* holder = text.object("format")) {
    FieldReader format(*holder, "text.format");
    const std::string type = format.text("type").value_or("");
    if (type == "json_object") {
      request.grammar.kind = Grammar::Kind::kJsonObject;
    } else if (type == "json_schema") {
      format.text("name");
      const json::value* schema = format.any("schema");
      if (schema != nullptr && (schema->is_object() || schema->is_bool()))
        request.grammar = {.kind = Grammar::Kind::kJsonSchema, .text = json_line(*schema)};
      else
        format.fail(invalid("text.format.schema: missing; expected a JSON schema", "text.format.schema"));
    } else if (type != "text") {
      format.fail(invalid(
          fmt::format("text.format.type: found '{}', expected text, json_object or json_schema", type),
          "text.format.type"));
    }
    if (format.failed()) fields.fail(format.error());
  }
  if (text.failed()) fields.fail(text.error());
  asked.names.add("response_format.json_schema.schema", "text.format.schema");
  asked.names.add("response_format", "text.format");
}

void read_reasoning(FieldReader& fields, Request& request) {
  const json::object* object = fields.object("reasoning");
  if (object == nullptr) return;
  FieldReader reasoning(*object, "reasoning");
  read_effort(reasoning, "effort", request);
  if (reasoning.failed()) fields.fail(reasoning.error());
}

void read_logprobs(FieldReader& fields, const AskDefaults& defaults, Request& request) {
  const std::optional<int> top = fields.count("top_logprobs", 0, defaults.max_logprobs);
  bool wanted = top.value_or(0) > 0;
  if (const auto include = fields.texts("include"))
    wanted = wanted || std::ranges::find(*include, "message.output_text.logprobs") != include->end();
  if (wanted) request.logprobs = top.value_or(0);
}

void repeat(JsonOut& out, const json::object& body, const char* name, std::string_view otherwise) {
  const json::value* value = body.if_contains(name);
  out.key(name).raw(value == nullptr || value->is_null() ? std::string(otherwise) : json_line(*value));
}

void repeat(JsonOut& out, const char* name, const std::optional<double>& asked,
            const std::optional<double>& otherwise) {
  if (asked || otherwise)
    out.field(name, asked ? *asked : *otherwise);
  else
    out.null_field(name);
}

// Everything of the request that a Response says again, as JSON members.
std::string repeated_fields(const json::object& body, const Request& request, const Sampling& model) {
  JsonOut out;
  out.open('{').field("background", false);
  repeat(out, body, "instructions", "null");
  repeat(out, body, "max_output_tokens", "null");
  out.null_field("max_tool_calls");
  repeat(out, body, "metadata", "{}");
  out.field("parallel_tool_calls", request.parallel_tool_calls).null_field("previous_response_id");
  repeat(out, body, "prompt_cache_key", "null");
  const json::value* effort = nullptr;
  if (const json::value* reasoning = body.if_contains("reasoning"); reasoning && reasoning->is_object())
    effort = reasoning->get_object().if_contains("effort");
  out.key("reasoning").open('{').key("effort").raw(effort == nullptr ? "null" : json_line(*effort));
  out.null_field("summary").close('}');
  repeat(out, body, "safety_identifier", "null");
  out.field("service_tier", "default").field("store", false);
  repeat(out, "temperature", request.sampling.temperature, model.temperature);
  repeat(out, body, "text", R"({"format":{"type":"text"}})");
  repeat(out, body, "tool_choice", R"("auto")");
  repeat(out, body, "tools", "[]");
  out.field("top_logprobs", request.logprobs.value_or(0));
  repeat(out, "top_p", request.sampling.top_p, model.top_p);
  out.field("truncation", "disabled");
  repeat(out, body, "user", "null");
  const std::string whole = out.close('}').take();
  return whole.substr(1, whole.size() - 2);
}

}  // namespace

Result<Asked> read_responses(const json::object& body, const AskDefaults& defaults, const Sampling& model) {
  FieldReader fields(body);
  Asked asked{.shape = AnswerShape::kResponses};
  Request request;
  asked.names.add("max_tokens", "max_output_tokens");
  asked.names.add("logprobs", "top_logprobs");
  read_model(fields, defaults, asked);
  asked.stream = fields.boolean("stream").value_or(false);
  refuse_state(fields);
  read_text(fields, asked, request);
  read_serving(fields, defaults, request);
  request.max_tokens = fields.count("max_output_tokens", 1).value_or(defaults.max_tokens.value_or(0));
  read_stop(fields, request);
  read_template_kwargs(fields, defaults, request);
  read_reasoning(fields, request);
  read_logprobs(fields, defaults, request);
  read_tools(fields, asked, request);
  read_conversation(fields, asked, request);
  // Of OpenAI's own service: how a stream is padded, what becomes of conversations that are too long (here
  // they are refused), how long prefixes are kept.
  for (const char* name : {"stream_options", "truncation", "prompt_cache_retention", "prompt_cache_options"})
    fields.accept(name);
  if (fields.failed()) return asked.names.apply(fields.error());
  asked.ignored = fields.unknown();
  asked.repeated = repeated_fields(body, request, model);
  asked.requests.push_back(std::move(request));
  return asked;
}

}  // namespace jewel

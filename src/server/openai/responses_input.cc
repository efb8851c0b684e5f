#include "server/openai/responses_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "model/json_reader.h"
#include "server/openai/field_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr auto kTextParts = std::to_array<std::string_view>({"input_text", "output_text", "text", "refusal"});

Result<void> read_image(FieldReader& part, const std::string& at, ChatTurns& turns) {
  if (part.any("file_id") != nullptr) {
    return unsupported(
        fmt::format("{}.file_id: this server keeps no files; send the picture as image_url", at),
        at + ".file_id");
  }
  const json::value* url = part.any("image_url");
  if (url != nullptr && url->is_object()) url = url->get_object().if_contains("url");  // as chat has it
  const std::string field = at + ".image_url";
  if (url == nullptr || !url->is_string()) return invalid(fmt::format("{}: expected a URL", field), field);
  return turns.image(url->get_string(), field);
}

// Text alone is also collected in `all`, where it is not to go to a message of its own.
Result<void> read_part(const json::value& value, const std::string& at, bool takes_images, ChatTurns* turns,
                       std::string& all) {
  JEWEL_ASSIGN(const json::object* object, object_with_type(value, at));
  FieldReader part(*object, at);
  const std::string type = part.text("type").value_or("");
  if (part.failed()) return part.error();
  if (std::ranges::find(kTextParts, type) != kTextParts.end()) {
    JEWEL_ASSIGN(const std::string text, required_text(part, type == "refusal" ? "refusal" : "text"));
    if (turns != nullptr) turns->text(text);
    all += text;
    return {};
  }
  if (type == "input_image") {
    if (takes_images && turns != nullptr) return read_image(part, at, *turns);
    return invalid(fmt::format("{}: pictures stand in messages of the user and in outputs of functions", at),
                   at);
  }
  return unsupported(
      fmt::format("{}.type: found '{}'; text (input_text, output_text) and input_image are served", at, type),
      at + ".type");
}

// A text or a list of parts. `turns` nullptr: text only, which comes back.
Result<std::string> read_content(FieldReader& item, std::string_view name, bool takes_images,
                                 ChatTurns* turns) {
  const json::value* content = item.any(name);
  const std::string at = item.at(name);
  if (content == nullptr) return invalid(fmt::format("{}: missing; expected text or parts", at), at);
  std::string all;
  if (content->is_string()) {
    all = content->get_string();
    if (turns != nullptr) turns->text(all);
    return all;
  }
  if (!content->is_array())
    return invalid(fmt::format("{}: found {}, expected text or a list of parts", at, describe(*content)), at);
  const json::array& parts = content->get_array();
  for (size_t i = 0; i < parts.size(); ++i)
    JEWEL_TRY(read_part(parts[i], fmt::format("{}[{}]", at, i), takes_images, turns, all));
  return all;
}

Result<void> read_message(FieldReader& item, ChatTurns& turns) {
  JEWEL_ASSIGN(const std::string role, required_text(item, "role"));
  if (role == "system" || role == "developer") {
    JEWEL_ASSIGN(const std::string text, read_content(item, "content", false, nullptr));
    turns.system(text);
  } else if (role == "user") {
    turns.begin("user");
    JEWEL_TRY(read_content(item, "content", true, &turns));
  } else if (role == "assistant") {
    turns.begin_assistant(ChatTurns::Stage::kContent);
    JEWEL_TRY(read_content(item, "content", false, &turns));
  } else {
    return invalid(
        fmt::format("{}: found '{}', expected user, assistant, system or developer", item.at("role"), role),
        item.at("role"));
  }
  return {};
}

Result<void> read_call(FieldReader& item, ChatTurns& turns) {
  JEWEL_ASSIGN(const std::string id, required_text(item, "call_id"));
  JEWEL_ASSIGN(const std::string name, required_text(item, "name"));
  JEWEL_ASSIGN(const std::string arguments, required_text(item, "arguments"));
  turns.begin_assistant(ChatTurns::Stage::kCalls);
  turns.call(id, name, json::value(arguments), item.at("arguments"));
  return {};
}

Result<void> read_output(FieldReader& item, ChatTurns& turns) {
  JEWEL_ASSIGN(const std::string id, required_text(item, "call_id"));
  JEWEL_TRY(turns.begin_answer(id, item.at("call_id")));
  JEWEL_TRY(read_content(item, "output", true, &turns));
  return {};
}

// The thoughts themselves, as this server gave them; else their summary. Encrypted ones are somebody else's.
Result<void> read_reasoning(FieldReader& item, ChatTurns& turns) {
  std::string thoughts;
  for (const char* name : {"content", "summary"}) {
    const json::array* parts = item.array(name);
    if (item.failed()) return item.error();
    for (size_t i = 0; parts != nullptr && i < parts->size(); ++i) {
      const std::string at = fmt::format("{}[{}]", item.at(name), i);
      JEWEL_ASSIGN(const json::object* object, object_with_type((*parts)[i], at));
      FieldReader part(*object, at);
      JEWEL_ASSIGN(const std::string text, required_text(part, "text"));
      thoughts += text;
    }
    if (!thoughts.empty()) break;
  }
  if (thoughts.empty()) return {};
  turns.begin_assistant(ChatTurns::Stage::kReasoning);
  turns.reasoning(thoughts);
  return {};
}

Result<void> read_item(FieldReader& item, ChatTurns& turns) {
  const std::string type = item.text("type").value_or("message");
  if (item.failed()) return item.error();
  if (type == "message") return read_message(item, turns);
  if (type == "function_call") return read_call(item, turns);
  if (type == "function_call_output") return read_output(item, turns);
  if (type == "reasoning") return read_reasoning(item, turns);
  if (type == "item_reference") {
    return unsupported(fmt::format("{}: this server keeps no items; send the item itself", item.at("type")),
                       item.at("type"));
  }
  return unsupported(fmt::format("{}: '{}' is not served; message, function_call, function_call_output and "
                                 "reasoning are",
                                 item.at("type"), type),
                     item.at("type"));
}

}  // namespace

Result<bool> read_responses_input(const json::value& input, ChatTurns& turns) {
  if (input.is_string()) {
    turns.begin("user");
    turns.text(input.get_string());
    return false;
  }
  const json::array* items = input.if_array();
  if (items == nullptr)
    return invalid(fmt::format("input: found {}, expected text or a list of items", describe(input)),
                   "input");
  if (items->empty()) return invalid("input: found an empty list, expected an item", "input");
  std::string status;
  for (size_t i = 0; i < items->size(); ++i) {
    const std::string at = fmt::format("input[{}]", i);
    JEWEL_ASSIGN(const json::object* object, object_with_type((*items)[i], at));
    FieldReader item(*object, at);
    JEWEL_TRY(read_item(item, turns));
    status = item.text("status").value_or("");
    if (item.failed()) return item.error();
  }
  return turns.ends_with_assistant_text() && (status == "incomplete" || status == "in_progress");
}

}  // namespace jewel

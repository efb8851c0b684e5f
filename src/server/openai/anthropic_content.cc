#include "server/openai/anthropic_content.h"

#include <fmt/format.h>

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "model/json_reader.h"
#include "server/openai/field_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

// Claude Code's first system block is a hash of each request: no instruction, and no prefix would ever be
// found again behind it.
constexpr std::string_view kBillingMark = "x-anthropic-billing-header";

Error no_such_block(FieldReader& block, std::string_view type, std::string_view served) {
  return unsupported(fmt::format("{}: '{}' is not served here; {}", block.at("type"), type, served),
                     block.at("type"));
}

// {"type": "base64", "media_type": …, "data": …}, {"type": "url", "url": …}.
Result<void> read_image(FieldReader& block, ChatTurns& turns) {
  const json::object* object = block.object("source");
  if (block.failed()) return block.error();
  const std::string at = block.at("source");
  if (object == nullptr) return invalid(fmt::format("{}: missing; expected the picture", at), at);
  FieldReader source(*object, at);
  JEWEL_ASSIGN(const std::string type, required_text(source, "type"));
  if (type == "url") {
    JEWEL_ASSIGN(const std::string url, required_text(source, "url"));
    return turns.image(url, at + ".url");
  }
  if (type == "base64") {
    JEWEL_ASSIGN(const std::string media_type, required_text(source, "media_type"));
    JEWEL_ASSIGN(const std::string data, required_text(source, "data"));
    return turns.image(fmt::format("data:{};base64,{}", media_type, data), at + ".data");
  }
  return no_such_block(source, type, "base64 and url are");
}

// Documents of plain text are text; what is inside a PDF nobody here can see.
Result<void> read_document(FieldReader& block, ChatTurns& turns) {
  const json::object* object = block.object("source");
  if (block.failed()) return block.error();
  if (object != nullptr) {
    FieldReader source(*object, block.at("source"));
    if (source.text("type").value_or("") == "text") {
      JEWEL_ASSIGN(const std::string text, required_text(source, "data"));
      turns.text(text);
      return {};
    }
  }
  return no_such_block(block, "document", "documents of plain text are (source.type: text)");
}

// What may stand in a user's message and in a tool's result alike.
Result<void> read_shown(FieldReader& block, const std::string& type, std::string_view served,
                        ChatTurns& turns) {
  if (type == "text") {
    JEWEL_ASSIGN(const std::string text, required_text(block, "text"));
    turns.text(text);
    return {};
  }
  if (type == "image") return read_image(block, turns);
  if (type == "document") return read_document(block, turns);
  return no_such_block(block, type, served);
}

// Whoever reads a list of blocks: called with each, its type and its reader.
template <typename Read>
Result<void> for_each_block(const json::array& blocks, const std::string& at, const Read& read) {
  for (size_t i = 0; i < blocks.size(); ++i) {
    const std::string field = fmt::format("{}[{}]", at, i);
    JEWEL_ASSIGN(const json::object* object, object_with_type(blocks[i], field));
    FieldReader block(*object, field);
    JEWEL_ASSIGN(const std::string type, required_text(block, "type"));
    JEWEL_TRY(read(block, type));
  }
  return {};
}

Result<void> read_tool_result(FieldReader& block, ChatTurns& turns) {
  JEWEL_ASSIGN(const std::string id, required_text(block, "tool_use_id"));
  JEWEL_TRY(turns.begin_answer(id, block.at("tool_use_id")));
  // The model knows no failed results but by their words.
  if (block.boolean("is_error").value_or(false)) turns.text("Error: ");
  const json::value* content = block.any("content");
  if (block.failed()) return block.error();
  if (content == nullptr) return {};
  if (content->is_string()) {
    turns.text(content->get_string());
    return {};
  }
  const std::string at = block.at("content");
  if (!content->is_array())
    return invalid(fmt::format("{}: found {}, expected text or blocks", at, describe(*content)), at);
  return for_each_block(content->get_array(), at, [&](FieldReader& part, const std::string& type) {
    return read_shown(part, type, "text and image are", turns);
  });
}

// Results of tools come before whatever else the user says, as the template wants them behind their calls.
Result<void> read_user_blocks(const json::array& blocks, const std::string& at, ChatTurns& turns) {
  bool says_more = blocks.empty();
  JEWEL_TRY(for_each_block(blocks, at, [&](FieldReader& block, const std::string& type) -> Result<void> {
    if (type == "tool_result") return read_tool_result(block, turns);
    says_more = true;
    return {};
  }));
  if (!says_more) return {};
  turns.begin("user");
  return for_each_block(blocks, at, [&](FieldReader& block, const std::string& type) -> Result<void> {
    if (type == "tool_result") return {};
    return read_shown(block, type, "text, image and tool_result are", turns);
  });
}

Result<void> read_assistant_blocks(const json::array& blocks, const std::string& at, ChatTurns& turns) {
  turns.begin("assistant");
  return for_each_block(blocks, at, [&](FieldReader& block, const std::string& type) -> Result<void> {
    if (type == "text") {
      JEWEL_ASSIGN(const std::string text, required_text(block, "text"));
      if (!text.empty()) turns.text(text);
      return {};
    }
    if (type == "thinking") {
      JEWEL_ASSIGN(const std::string thoughts, required_text(block, "thinking"));
      turns.reasoning(thoughts);
      return {};
    }
    if (type == "redacted_thinking") return {};  // nobody but Anthropic can read it
    if (type == "tool_use") {
      JEWEL_ASSIGN(const std::string id, required_text(block, "id"));
      JEWEL_ASSIGN(const std::string name, required_text(block, "name"));
      const json::object* input = block.object("input");
      if (block.failed()) return block.error();
      turns.call(id, name, input == nullptr ? json::object() : *input, block.at("input"));
      return {};
    }
    return no_such_block(block, type, "text, thinking and tool_use are");
  });
}

Result<void> read_message(const json::value& value, const std::string& at, ChatTurns& turns) {
  JEWEL_ASSIGN(const json::object* object, object_with_type(value, at));
  FieldReader message(*object, at);
  JEWEL_ASSIGN(const std::string role, required_text(message, "role"));
  const json::value* content = message.any("content");
  const std::string field = message.at("content");
  if (role != "user" && role != "assistant" && role != "system") {
    return invalid(fmt::format("{}: found '{}', expected user or assistant", message.at("role"), role),
                   message.at("role"));
  }
  if (content == nullptr || !(content->is_string() || content->is_array())) {
    return invalid(fmt::format("{}: found {}, expected text or blocks", field,
                               content == nullptr ? "nothing" : describe(*content)),
                   field);
  }
  if (role == "system") {
    auto read = read_anthropic_system(*content, turns);
    // "system[0].text" is "messages[2].content[0].text" here.
    if (!read.ok()) {
      FieldNames names;
      names.add("system", field);
      return names.apply(std::move(read).error());
    }
    return {};
  }
  if (content->is_string()) {
    turns.begin(role);
    turns.text(content->get_string());
    return {};
  }
  return role == "user" ? read_user_blocks(content->get_array(), field, turns)
                        : read_assistant_blocks(content->get_array(), field, turns);
}

}  // namespace

Result<void> read_anthropic_system(const json::value& system, ChatTurns& turns) {
  if (system.is_string()) {
    turns.system(system.get_string());
    return {};
  }
  if (!system.is_array())
    return invalid(fmt::format("system: found {}, expected text or text blocks", describe(system)), "system");
  std::string all;
  JEWEL_TRY(for_each_block(system.get_array(), "system",
                           [&](FieldReader& block, const std::string& type) -> Result<void> {
                             if (type != "text") return no_such_block(block, type, "text is");
                             JEWEL_ASSIGN(const std::string text, required_text(block, "text"));
                             if (text.empty() || text.starts_with(kBillingMark)) return {};
                             if (!all.empty()) all += "\n\n";
                             all += text;
                             return {};
                           }));
  if (!all.empty()) turns.system(all);
  return {};
}

Result<void> read_anthropic_messages(const json::array& messages, ChatTurns& turns) {
  if (messages.empty()) return invalid("messages: found an empty list, expected a message", "messages");
  for (size_t i = 0; i < messages.size(); ++i)
    JEWEL_TRY(read_message(messages[i], fmt::format("messages[{}]", i), turns));
  return {};
}

}  // namespace jewel

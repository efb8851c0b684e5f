#include "text/messages.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <string>

#include "text/utf8.h"

namespace jewel {
namespace {

namespace json = boost::json;

// Jinja macros and textkit both recurse over arguments; 100 levels are far more than any tool takes.
constexpr size_t kMaxArgumentDepth = 100;

// A message takes at least five tokens, so this is far above what a context of 131,072 tokens holds;
// templates that look for the next message of a kind take quadratic time.
constexpr size_t kMaxMessages = 20000;

Result<json::value> parse_arguments(std::string_view text, const std::string& field) {
  const Trimmed core = trim_like_python(text);
  if (core.begin == core.end) return json::value(json::object());
  json::parse_options options;
  options.max_depth = kMaxArgumentDepth;
  boost::system::error_code ec;
  json::value value = json::parse(text, ec, {}, options);
  if (ec) return invalid(fmt::format("{}: not JSON: {}", field, ec.message()), field);
  if (value.is_null() || value.is_object()) return value;
  return invalid(fmt::format("{}: found JSON of another kind, expected an object", field), field);
}

Result<json::value> calls_for_template(const json::value& calls, const UserText& user_text,
                                       const std::string& field) {
  if (calls.is_null()) return json::value(nullptr);
  if (!calls.is_array()) return invalid(fmt::format("{}: expected a list", field), field);
  json::array out;
  for (size_t i = 0; i < calls.get_array().size(); ++i) {
    const std::string at = fmt::format("{}[{}].function", field, i);
    json::value call = calls.get_array()[i];
    json::value* function = call.is_object() ? call.get_object().if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object())
      return invalid(fmt::format("{}: expected an object", at), at);
    const json::value* name = function->get_object().if_contains("name");
    if (name == nullptr || !name->is_string())
      return invalid(fmt::format("{}.name: expected a string", at), at + ".name");
    json::value* arguments = function->get_object().if_contains("arguments");
    if (arguments != nullptr && arguments->is_string()) {
      const std::string text(arguments->get_string());
      JEWEL_ASSIGN(*arguments, parse_arguments(text, at + ".arguments"));
    } else if (arguments != nullptr && !arguments->is_object() && !arguments->is_null()) {
      return invalid(fmt::format("{}.arguments: expected an object, null or JSON text of an object", at),
                     at + ".arguments");
    }
    out.push_back(user_text.protect_all(call));
  }
  return json::value(std::move(out));
}

Result<json::value> content_for_template(const json::value& content, bool by_assistant,
                                         const UserText& user_text, ChannelMarkers channel,
                                         const std::string& field) {
  const auto protect = [&](std::string_view text) {
    return json::value(by_assistant ? user_text.protect_assistant(text, channel.open, channel.close)
                                    : user_text.protect(text));
  };
  if (content.is_null()) return content;
  if (content.is_string()) return protect(content.get_string());
  if (!content.is_array())
    return invalid(fmt::format("{}: expected text, a list of parts or null", field), field);
  json::array parts;
  for (size_t i = 0; i < content.get_array().size(); ++i) {
    const std::string at = fmt::format("{}[{}]", field, i);
    const json::object* part = content.get_array()[i].if_object();
    const json::value* type = part == nullptr ? nullptr : part->if_contains("type");
    if (type == nullptr || !type->is_string())
      return invalid(fmt::format("{}.type: expected a string", at), at + ".type");
    json::object out;
    out["type"] = user_text.protect(type->get_string());
    if (type->get_string() == "text") {
      const json::value* text = part->if_contains("text");
      if (text == nullptr || !text->is_string())
        return invalid(fmt::format("{}.text: expected a string", at), at + ".text");
      out["text"] = protect(text->get_string());
    }
    parts.push_back(std::move(out));
  }
  return json::value(std::move(parts));
}

}  // namespace

Result<json::array> messages_for_template(const json::array& messages, const UserText& user_text,
                                          ChannelMarkers channel) {
  if (messages.size() > kMaxMessages)
    return too_large(fmt::format("{} messages, the limit is {}", messages.size(), kMaxMessages), "messages");
  json::array out;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string at = fmt::format("messages[{}]", i);
    const json::object* message = messages[i].if_object();
    if (message == nullptr) return invalid(fmt::format("{}: expected an object", at), at);
    const json::value* role = message->if_contains("role");
    if (role == nullptr || !role->is_string())
      return invalid(fmt::format("{}.role: expected a string", at), at + ".role");
    json::object converted;
    for (const auto& [key, value] : *message) {
      json::value& target = converted[user_text.protect(key)];
      const std::string field = fmt::format("{}.{}", at, std::string_view(key));
      if (key == "content") {
        JEWEL_ASSIGN(target, content_for_template(value, role->get_string() == "assistant", user_text,
                                                  channel, field));
      } else if (key == "tool_calls") {
        JEWEL_ASSIGN(target, calls_for_template(value, user_text, field));
      } else {
        target = user_text.protect_all(value);
      }
    }
    out.push_back(std::move(converted));
  }
  return out;
}

}  // namespace jewel

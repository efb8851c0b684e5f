#include "server/openai/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string_view>

#include "model/json_reader.h"
#include "model/json_text.h"
#include "server/images/image_url.h"
#include "server/openai/base64.h"
#include "server/openai/field_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr auto kRoles = std::to_array<std::string_view>({"system", "developer", "user", "assistant", "tool"});
constexpr auto kSoundAndVideo =
    std::to_array<std::string_view>({"audio_url", "input_audio", "audio", "video_url", "video", "file"});

constexpr size_t kMaxAddresses = 1024;  // looked through for each: far above what any request may have

// {"url": …} as OpenAI writes it, or the URL itself.
Result<void> read_image(FieldReader& part, std::string_view name, ChatMessages& out) {
  const json::value* image = part.any(name);
  std::string field = part.at(name);
  const json::value* url = image;
  if (image != nullptr && image->is_object()) {
    url = image->get_object().if_contains("url");
    field += ".url";
  }
  if (url == nullptr || !url->is_string()) return invalid(fmt::format("{}: expected a URL", field), field);
  return add_image(url->get_string(), field, out);
}

// A part of a message's content, changed where the template wants it different.
Result<json::value> read_part(const json::value& value, const std::string& at, ChatMessages& out) {
  if (value.is_string()) return json::value{{"type", "text"}, {"text", value.get_string()}};
  const json::object* object = value.if_object();
  if (object == nullptr)
    return invalid(fmt::format("{}: found {}, expected an object with a type", at, describe(value)), at);
  FieldReader part(*object, at);
  const std::string type = part.text("type").value_or("");
  if (type == "image_url" || type == "input_image" || type == "image") {
    const char* name = type == "image" ? "image" : "image_url";
    JEWEL_TRY(read_image(part, name, out));
    return json::value{{"type", "image"}};
  }
  if (type == "text" || type == "input_text" || type == "output_text" || type == "refusal") {
    const std::string_view name = type == "refusal" ? "refusal" : "text";
    const std::optional<std::string> text = part.text(name);
    if (part.failed()) return part.error();
    if (!text) return invalid(fmt::format("{}: missing", part.at(name)), part.at(name));
    return json::value{{"type", "text"}, {"text", *text}};
  }
  if (part.failed()) return part.error();
  if (std::ranges::find(kSoundAndVideo, type) != kSoundAndVideo.end())
    return unsupported(fmt::format("{}.type: '{}' is not served, text and images are", at, type),
                       at + ".type");
  return invalid(fmt::format("{}.type: found '{}', expected text or image_url", at, type), at + ".type");
}

// The shape of a turn's calls; what their names and arguments say is seen where the template gets them.
Result<void> check_calls(FieldReader& message) {
  const json::array* calls = message.array("tool_calls");
  message.text("tool_call_id");
  if (message.failed()) return message.error();
  for (size_t i = 0; calls != nullptr && i < calls->size(); ++i) {
    const std::string at = fmt::format("{}[{}]", message.at("tool_calls"), i);
    const json::object* object = (*calls)[i].if_object();
    if (object == nullptr)
      return invalid(fmt::format("{}: found {}, expected a call", at, describe((*calls)[i])), at);
    FieldReader call(*object, at);
    call.text("id");
    const std::string type = call.text("type").value_or("function");
    const json::object* function = call.object("function");
    if (!call.failed() && type != "function")
      call.fail(
          invalid(fmt::format("{}: found '{}', expected function", call.at("type"), type), call.at("type")));
    if (call.failed()) return call.error();
    const json::value* arguments = function != nullptr ? function->if_contains("arguments") : nullptr;
    if (arguments != nullptr && !arguments->is_string() && !arguments->is_object() && !arguments->is_null()) {
      const std::string field = at + ".function.arguments";
      return invalid(fmt::format("{}: found {}, expected a JSON object as text", field, describe(*arguments)),
                     field);
    }
  }
  return {};
}

Result<json::value> read_message(const json::value& value, const std::string& at, ChatMessages& out) {
  const json::object* object = value.if_object();
  if (object == nullptr)
    return invalid(fmt::format("{}: found {}, expected an object", at, describe(value)), at);
  FieldReader fields(*object, at);
  const std::optional<std::string> role = fields.text("role");
  if (fields.failed()) return fields.error();
  if (!role || std::ranges::find(kRoles, std::string_view(*role)) == kRoles.end()) {
    return invalid(fmt::format("{}.role: found {}, expected system, developer, user, assistant or tool", at,
                               role ? fmt::format("'{}'", *role) : "none"),
                   at + ".role");
  }
  JEWEL_TRY(check_calls(fields));
  json::object message;
  for (const auto& [key, item] : *object) {
    if (key != "content" || !item.is_array()) {
      message[key] = item;
      continue;
    }
    json::array parts;
    for (size_t i = 0; i < item.get_array().size(); ++i) {
      JEWEL_ASSIGN(json::value part,
                   read_part(item.get_array()[i], fmt::format("{}.content[{}]", at, i), out));
      parts.push_back(std::move(part));
    }
    message[key] = std::move(parts);
  }
  return json::value(std::move(message));
}

}  // namespace

Result<void> add_image(std::string_view url, const std::string& field, ChatMessages& out) {
  if (!looks_like_image_url(url)) {
    JEWEL_ASSIGN(std::string bytes, decode_data_url(url, field));
    out.images.push_back(std::make_shared<const std::string>(std::move(bytes)));
    return {};
  }
  auto known = std::ranges::find(out.wanted, url, &WantedImage::url);
  if (known == out.wanted.end()) {
    if (out.wanted.size() >= kMaxAddresses) {
      return invalid(fmt::format("{}: more than {} pictures by address in one request", field, kMaxAddresses),
                     field);
    }
    out.wanted.emplace_back(std::string(url), field);
    known = out.wanted.end() - 1;
  }
  out.images.push_back(known->file());
  return {};
}

Result<ChatMessages> read_chat_messages(const json::array& messages) {
  if (messages.empty()) return invalid("messages: found an empty list, expected a message", "messages");
  ChatMessages out;
  json::array changed;
  for (size_t i = 0; i < messages.size(); ++i) {
    JEWEL_ASSIGN(json::value message, read_message(messages[i], fmt::format("messages[{}]", i), out));
    changed.push_back(std::move(message));
  }
  out.json = json_line(changed);
  return out;
}

}  // namespace jewel

#include "text/chat_template.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <ctime>

#include "text/special_ids.h"
#include "text/text_file.h"
#include "text/textkit_call.h"

namespace jewel {
namespace {

constexpr size_t kMaxFileBytes = size_t{4} << 20;  // Gemma 4's template has 19 kB, tokenizer_config.json 2 kB

// Every entry "…_token" of tokenizer_config.json, as Transformers hands them to the template.
boost::json::object special_tokens_of(const boost::json::object& tokenizer_config) {
  boost::json::object tokens;
  for (const auto& [key, value] : tokenizer_config) {
    if (!key.ends_with("_token")) continue;
    if (const std::string text = configured_token(tokenizer_config, key); !text.empty()) tokens[key] = text;
  }
  return tokens;
}

Result<std::string> template_in_config(const boost::json::object& tokenizer_config, const std::string& dir) {
  const boost::json::value* found = tokenizer_config.if_contains("chat_template");
  if (found != nullptr && found->is_string()) return std::string(found->get_string());
  if (found != nullptr && found->is_array()) {
    for (const boost::json::value& item : found->get_array()) {
      const boost::json::object* entry = item.if_object();
      if (entry == nullptr) continue;
      const boost::json::value* name = entry->if_contains("name");
      const boost::json::value* source = entry->if_contains("template");
      if (name != nullptr && name->is_string() && name->get_string() == "default" && source != nullptr &&
          source->is_string())
        return std::string(source->get_string());
    }
  }
  return not_found(
      fmt::format("{}: no chat template; expected chat_template.jinja or \"chat_template\" in "
                  "tokenizer_config.json. A model without "
                  "one takes raw prompts only",
                  dir));
}

}  // namespace

Result<boost::json::object> read_tokenizer_config(const std::string& dir) {
  const std::string path = dir + "/tokenizer_config.json";
  if (!file_exists(path)) return boost::json::object();
  JEWEL_ASSIGN(const std::string text, read_text_file(path, kMaxFileBytes));
  boost::system::error_code ec;
  boost::json::value value = boost::json::parse(text, ec);
  if (ec) return invalid(fmt::format("{}: not JSON: {}", path, ec.message()));
  if (!value.is_object()) return invalid(fmt::format("{}: expected a JSON object", path));
  return std::move(value.get_object());
}

void ChatTemplate::Close::operator()(tk_template* handle) const {
  tk_template_free(handle);
}

Result<ChatTemplate> ChatTemplate::load(const std::string& dir) {
  JEWEL_ASSIGN(const boost::json::object config, read_tokenizer_config(dir));
  std::string source;
  const std::string path = dir + "/chat_template.jinja";
  if (file_exists(path)) {
    JEWEL_ASSIGN(source, read_text_file(path, kMaxFileBytes));
  } else {
    JEWEL_ASSIGN(source, template_in_config(config, dir));
  }
  auto loaded = from_source(source, special_tokens_of(config));
  if (!loaded.ok()) {
    Error error = std::move(loaded).error();
    error.message = fmt::format("{}: {}", dir, error.message);
    return error;
  }
  return loaded;
}

Result<ChatTemplate> ChatTemplate::load(const std::string& dir, std::string_view source) {
  JEWEL_ASSIGN(const boost::json::object config, read_tokenizer_config(dir));
  return from_source(source, special_tokens_of(config));
}

Result<ChatTemplate> ChatTemplate::from_source(std::string_view source, boost::json::object special_tokens) {
  ChatTemplate result;
  tk_template* handle = nullptr;
  TextkitBuffer error;
  if (const int32_t status = tk_template_new(textkit_bytes(source), source.size(), &handle, error.out());
      status != TK_OK)
    return textkit_error(status, error);
  result.handle_.reset(handle);
  result.special_tokens_ = std::move(special_tokens);
  return result;
}

Result<std::string> ChatTemplate::render(const boost::json::array& messages, const boost::json::array& tools,
                                         const RenderOptions& options) const {
  boost::json::object variables = special_tokens_;
  variables["messages"] = messages;
  variables["tools"] = tools.empty() ? boost::json::value(nullptr) : boost::json::value(tools);
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = options.add_generation_prompt;
  if (options.enable_thinking) variables["enable_thinking"] = *options.enable_thinking;
  for (const auto& [key, value] : options.extra) variables[key] = value;

  const std::string context = boost::json::serialize(variables);
  TextkitBuffer text, error;
  const int32_t status =
      tk_template_render(handle_.get(), textkit_bytes(context), context.size(),
                         options.now.value_or(std::time(nullptr)), text.out(), error.out());
  if (status != TK_OK) return textkit_error(status, error);
  return text.str();
}

}  // namespace jewel

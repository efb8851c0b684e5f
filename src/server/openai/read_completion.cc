#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>

#include "model/json_reader.h"
#include "server/openai/asked.h"
#include "server/openai/common_fields.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kMaxPrompts = 256;

struct RawPrompt {
  std::optional<std::string> text;
  std::optional<std::vector<int32_t>> ids;
};

RawPrompt read_one(FieldReader& fields, const json::value& value, std::string_view field) {
  RawPrompt prompt;
  if (value.is_string()) {
    prompt.text = std::string(value.get_string());
  } else if (value.is_array()) {
    json::object holder;  // for the reader's path and checks
    holder[field] = value;
    FieldReader list(holder);
    prompt.ids = list.ids(field);
    if (list.failed()) fields.fail(list.error());
  } else {
    fields.fail(field, value, "a text or a list of token ids");
  }
  return prompt;
}

// A text, a list of texts, a list of ids, or a list of lists of ids.
std::vector<RawPrompt> read_prompts(FieldReader& fields) {
  const json::value* value = fields.any("prompt");
  if (value == nullptr) {
    fields.fail(invalid("prompt: missing; expected a text or a list of token ids", "prompt"));
    return {};
  }
  const json::array* list = value->if_array();
  const bool several =
      list != nullptr && !list->empty() && (list->front().is_string() || list->front().is_array());
  if (!several) return {read_one(fields, *value, "prompt")};
  if (list->size() > kMaxPrompts) {
    fields.fail(invalid(
        fmt::format("prompt: found {} prompts, at most {} are taken", list->size(), kMaxPrompts), "prompt"));
    return {};
  }
  std::vector<RawPrompt> prompts;
  prompts.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i)
    prompts.push_back(read_one(fields, (*list)[i], fmt::format("prompt[{}]", i)));
  return prompts;
}

}  // namespace

Result<Asked> read_completion(const json::object& body, const AskDefaults& defaults) {
  FieldReader fields(body);
  const json::value* most = body.if_contains("max_tokens");
  Asked asked{.shape = AnswerShape::kCompletion, .prompt_only = most != nullptr && as_integer(*most) == 0};
  Request request;
  read_common(fields, defaults, asked, request);
  // A completion is text as it comes: nothing is told apart.
  request.parse_output = false;
  request.logprobs = fields.count("logprobs", 0, defaults.max_logprobs);
  if (request.max_tokens == 0) request.max_tokens = 16;  // the API's default
  const bool echo = fields.boolean("echo").value_or(false);
  if (asked.prompt_only && !echo)
    fields.fail(invalid("max_tokens: found 0, expected at least 1, or echo: true", "max_tokens"));
  if (echo && request.logprobs) {
    asked.echo_logprobs = true;
    request.prompt_logprobs = std::max(request.prompt_logprobs.value_or(0), *request.logprobs);
  }
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  if (!fields.text("suffix").value_or("").empty())
    fields.fail(unsupported("suffix: the model does not fill in the middle", "suffix"));
  const std::vector<RawPrompt> prompts = read_prompts(fields);
  if (fields.failed()) return fields.error();
  asked.ignored = fields.unknown();
  for (const RawPrompt& prompt : prompts) {
    request.prompt = prompt.text;
    request.prompt_ids = prompt.ids;
    add_choices(asked, request);
    if (echo) asked.echo.push_back(prompt.text.value_or(""));
  }
  return asked;
}

}  // namespace jewel

#include "server/openai/common_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <charconv>
#include <chrono>
#include <iterator>

#include "model/json_reader.h"
#include "model/json_text.h"
#include "server/openai/extra_fields.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxChoices = 128;

void read_seed(FieldReader& fields, Sampling& sampling) {
  const json::value* seed = fields.any("seed");
  if (seed == nullptr) return;
  if (seed->is_uint64())
    sampling.seed = seed->get_uint64();
  else if (const std::optional<int64_t> number = as_integer(*seed))
    sampling.seed = static_cast<uint64_t>(*number);
  else
    fields.fail("seed", *seed, "an integer");
}

void read_logit_bias(FieldReader& fields, Sampling& sampling) {
  const json::object* biases = fields.object("logit_bias");
  if (biases == nullptr) return;
  for (const auto& [key, value] : *biases) {
    int32_t id = 0;
    const auto read = std::from_chars(key.data(), key.data() + key.size(), id);
    const std::string field = fmt::format("logit_bias.{}", std::string_view(key));
    if (read.ec != std::errc() || read.ptr != key.data() + key.size())
      return fields.fail(invalid(fmt::format("{}: expected a token id as the key", field), "logit_bias"));
    if (!value.is_number()) return fields.fail(field, value, "a number");
    sampling.logit_bias[id] = value.to_number<float>();
  }
}

void read_response_format(FieldReader& fields, Grammar& grammar) {
  const json::object* object = fields.object("response_format");
  if (object == nullptr) return;
  FieldReader format(*object, "response_format");
  const std::string type = format.text("type").value_or("");
  if (type == "json_object") {
    grammar.kind = Grammar::Kind::kJsonObject;
  } else if (type == "json_schema") {
    const json::object* holder = format.object("json_schema");
    const json::value* schema = holder == nullptr ? nullptr : holder->if_contains("schema");
    if (schema == nullptr || !(schema->is_object() || schema->is_bool())) {
      return fields.fail(invalid("response_format.json_schema.schema: missing; expected a JSON schema",
                                 "response_format.json_schema.schema"));
    }
    grammar = {.kind = Grammar::Kind::kJsonSchema, .text = json_line(*schema)};
  } else if (type == "structural_tag") {
    grammar = {.kind = Grammar::Kind::kStructuralTag, .text = json_line(*object)};
  } else if (type != "text" && !format.failed()) {
    format.fail(invalid(fmt::format("response_format.type: found '{}', expected text, json_object, "
                                    "json_schema or structural_tag",
                                    type),
                        "response_format.type"));
  }
  if (format.failed()) fields.fail(format.error());
}

// vLLM's: exactly one of json, regex, choice, grammar, json_object, structural_tag.
void read_structured_outputs(FieldReader& fields, Grammar& grammar) {
  const json::object* object = fields.object("structured_outputs");
  if (object == nullptr) return;
  FieldReader outputs(*object, "structured_outputs");
  int found = 0;
  if (const json::value* schema = outputs.any("json")) {
    ++found;
    grammar = {.kind = Grammar::Kind::kJsonSchema,
               .text = schema->is_string() ? std::string(schema->get_string()) : json_line(*schema)};
  }
  if (auto regex = outputs.text("regex")) {
    ++found;
    grammar = {.kind = Grammar::Kind::kRegex, .text = *std::move(regex)};
  }
  if (auto choices = outputs.texts("choice")) {
    ++found;
    grammar = {.kind = Grammar::Kind::kChoice, .choices = *std::move(choices)};
  }
  if (auto lark = outputs.text("grammar")) {
    ++found;
    grammar = {.kind = Grammar::Kind::kLark, .text = *std::move(lark)};
  }
  if (outputs.boolean("json_object").value_or(false)) {
    ++found;
    grammar = {.kind = Grammar::Kind::kJsonObject};
  }
  if (const json::value* tag = outputs.any("structural_tag")) {
    ++found;
    grammar = {.kind = Grammar::Kind::kStructuralTag,
               .text = tag->is_string() ? std::string(tag->get_string()) : json_line(*tag)};
  }
  read_white_space(outputs, grammar);
  if (outputs.failed()) return fields.fail(outputs.error());
  if (found != 1) {
    fields.fail(invalid(fmt::format("structured_outputs: found {} of json, regex, choice, grammar, "
                                    "json_object and structural_tag, expected one",
                                    found),
                        "structured_outputs"));
  }
  fields.take_unknown(outputs);
}

void read_image_budget(FieldReader& fields, Request& request) {
  const json::object* object = fields.object("mm_processor_kwargs");
  if (object == nullptr) return;
  FieldReader kwargs(*object, "mm_processor_kwargs");
  const json::value* budget = kwargs.any("max_soft_tokens");
  if (budget == nullptr) return;
  if (budget->is_string() && budget->get_string() == "auto")
    request.max_soft_tokens = kAutoSoftTokens;
  else if (const auto number = kwargs.count("max_soft_tokens", 1, 1 << 20))
    request.max_soft_tokens = number;
  if (kwargs.failed()) fields.fail(kwargs.error());
}

void read_stream_options(FieldReader& fields, const AskDefaults& defaults, Asked& asked) {
  asked.stream = fields.boolean("stream").value_or(false);
  asked.include_usage = asked.stream && defaults.force_include_usage;
  const json::object* object = fields.object("stream_options");
  if (object == nullptr) return;
  if (!asked.stream) return fields.fail(invalid("stream_options: only with stream: true", "stream_options"));
  FieldReader options(*object, "stream_options");
  asked.include_usage = options.boolean("include_usage").value_or(false) || asked.include_usage;
  asked.continuous_usage = options.boolean("continuous_usage_stats").value_or(false) && asked.include_usage;
  if (options.failed()) fields.fail(options.error());
}

}  // namespace

Result<void> check_model(const std::string& model, const AskDefaults& defaults) {
  if (model.empty() || std::ranges::find(defaults.model_names, model) != defaults.model_names.end())
    return {};
  return not_found(fmt::format("The model `{}` does not exist; this server has `{}`.", model,
                               defaults.model_names.front()),
                   "model");
}

void read_sampling(FieldReader& fields, Sampling& sampling) {
  const auto take = [](auto found, auto& target) {
    if (found) target = found;
  };
  take(fields.number("temperature"), sampling.temperature);
  take(fields.count("top_k", -1), sampling.top_k);
  take(fields.number("top_p"), sampling.top_p);
  take(fields.number("min_p"), sampling.min_p);
  take(fields.number("repetition_penalty"), sampling.repetition_penalty);
  take(fields.number("presence_penalty"), sampling.presence_penalty);
  take(fields.number("frequency_penalty"), sampling.frequency_penalty);
}

void read_model(FieldReader& fields, const AskDefaults& defaults, Asked& asked) {
  const std::string model = fields.text("model").value_or("");
  if (const auto known = check_model(model, defaults); !known.ok()) fields.fail(known.error());
  asked.model = model.empty() ? defaults.model_names.front() : model;
}

void read_stop(FieldReader& fields, Request& request) {
  const json::value* stop = fields.any("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    request.stop = {std::string(stop->get_string())};
  } else if (auto texts = fields.texts("stop")) {
    request.stop = *std::move(texts);
  }
}

void read_template_kwargs(FieldReader& fields, const AskDefaults& defaults, Request& request) {
  json::object kwargs = defaults.template_kwargs;
  if (const json::object* asked = fields.object("chat_template_kwargs")) {
    for (const auto& [key, value] : *asked) kwargs[key] = value;
  }
  if (!kwargs.empty()) request.template_kwargs = json_line(kwargs);
}

void read_effort(FieldReader& fields, std::string_view name, Request& request) {
  static constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
  const auto effort = fields.text(name);
  if (!effort) return;
  if (std::ranges::find(kEfforts, *effort) == std::end(kEfforts)) {
    fields.fail(invalid(fmt::format("{}: found '{}', expected none, minimal, low, medium, high, xhigh or max",
                                    fields.at(name), *effort),
                        fields.at(name)));
  }
  request.thinking = *effort != "none";
}

void read_serving(FieldReader& fields, const AskDefaults& defaults, Request& request) {
  request.sampling = defaults.sampling;
  request.sampling.seed = defaults.seed;
  read_sampling(fields, request.sampling);
  read_seed(fields, request.sampling);
  read_logit_bias(fields, request.sampling);
  request.min_tokens = fields.count("min_tokens", 0).value_or(0);
  request.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  request.thinking_budget = fields.count("thinking_token_budget", 0);
  if (auto ids = fields.ids("stop_token_ids")) request.stop_token_ids = *std::move(ids);
  request.include_stop_in_output = fields.boolean("include_stop_str_in_output").value_or(false);
  read_structured_outputs(fields, request.grammar);
  request.max_soft_tokens = defaults.max_soft_tokens;
  read_image_budget(fields, request);
  read_narrowing(fields, request);
  refuse_impossible(fields);
  request.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  request.priority = static_cast<int>(fields.integer("priority", -1'000'000, 1'000'000).value_or(0));
  request.cache_salt = fields.text("cache_salt").value_or("");
  if (defaults.request_timeout_s > 0) {
    request.deadline = std::chrono::steady_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(defaults.request_timeout_s * 1000));
  }
  accept_harmless(fields);
}

void read_common(FieldReader& fields, const AskDefaults& defaults, Asked& asked, Request& request) {
  read_model(fields, defaults, asked);
  asked.n = fields.count("n", 1, kMaxChoices).value_or(1);
  read_stream_options(fields, defaults, asked);
  read_response_format(fields, request.grammar);
  read_serving(fields, defaults, request);  // structured_outputs win over a response_format
  const std::optional<int> older = fields.count("max_tokens", asked.prompt_only ? 0 : 1);
  const std::optional<int> newer = fields.count("max_completion_tokens", 1);
  request.max_tokens = newer ? *newer : older ? std::max(*older, 1) : defaults.max_tokens.value_or(0);
  read_stop(fields, request);
  request.prompt_logprobs = fields.count("prompt_logprobs", 0);
  asked.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  request.return_prompt_ids = asked.return_token_ids;
  asked.tokens_as_ids = fields.boolean("return_tokens_as_token_ids").value_or(defaults.tokens_as_ids);
}

void accept_harmless(FieldReader& fields) {
  for (const char* name :
       {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id",
        "spaces_between_special_tokens", "length_penalty" /* of beam search */}) {
    fields.accept(name);
  }
}

void add_choices(Asked& asked, const Request& request) {
  for (int i = 0; i < asked.n; ++i) {
    asked.requests.push_back(request);
    if (request.sampling.seed)
      asked.requests.back().sampling.seed = *request.sampling.seed + static_cast<uint64_t>(i);
  }
}

}  // namespace jewel

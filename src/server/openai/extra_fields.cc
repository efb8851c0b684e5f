#include "server/openai/extra_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <limits>
#include <string>
#include <utility>

#include "model/json_reader.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

void read_truncation(FieldReader& fields, Request& request) {
  if (const auto keep = fields.integer("truncate_prompt_tokens", -1, std::numeric_limits<int>::max()))
    request.truncate_prompt_tokens = static_cast<int>(*keep);
  const std::string side = fields.text("truncation_side").value_or("left");
  if (side != "left" && side != "right") {
    fields.fail(
        invalid(fmt::format("truncation_side: found '{}', expected left or right", side), "truncation_side"));
  }
  request.truncate_end = side == "right";
}

// Patterns of min_pattern_size to max_pattern_size tokens, min_count times; a largest size of 0 is off.
void read_repetition(FieldReader& fields, Request& request) {
  const json::object* object = fields.object("repetition_detection");
  if (object == nullptr) return;
  FieldReader limits(*object, "repetition_detection");
  const int longest = limits.count("max_pattern_size", 0).value_or(0);
  const int shortest = limits.count("min_pattern_size", 0).value_or(0);
  const int repeats = limits.count("min_count", 0).value_or(0);
  if (limits.failed()) return fields.fail(limits.error());
  fields.take_unknown(limits);
  if (longest == 0) return;
  request.stop_repetition = RepetitionLimit{
      .min_period = std::max(shortest, 1), .max_period = longest, .repeats = repeats, .min_tokens = 0};
}

bool is_asked(const json::value* value) {
  return value != nullptr && !(value->is_bool() && !value->get_bool()) &&
         !(value->is_array() && value->get_array().empty());
}

}  // namespace

void read_narrowing(FieldReader& fields, Request& request) {
  if (auto words = fields.texts("bad_words")) request.bad_words = *std::move(words);
  request.allowed_token_ids = fields.ids("allowed_token_ids");
  read_truncation(fields, request);
  read_repetition(fields, request);
}

void refuse_impossible(FieldReader& fields) {
  static constexpr std::pair<const char*, const char*> kImpossible[] = {
      {"use_beam_search", "answers are sampled; ask for several with n"},
      {"logprob_token_ids", "ask for the likeliest with logprobs instead"},
      {"prompt_embeds", "prompts are taken as text or token ids"},
      {"audio", "answers are text; audio is not served"},
      {"functions", "send tools instead"},
      {"function_call", "send tool_choice instead"},
  };
  for (const auto& [name, instead] : kImpossible) {
    if (is_asked(fields.any(name))) fields.fail(unsupported(fmt::format("{}: {}", name, instead), name));
  }
  if (const auto best = fields.count("best_of", 1); best && *best > fields.count("n", 1).value_or(1))
    fields.fail(unsupported("best_of: every choice is returned; ask for as many with n", "best_of"));
}

void read_white_space(FieldReader& outputs, Grammar& grammar) {
  const bool none = outputs.boolean("disable_any_whitespace").value_or(false);
  const std::optional<std::string> pattern = outputs.text("whitespace_pattern");
  if (!none && !pattern) return;
  if (grammar.kind == Grammar::Kind::kJsonObject)
    grammar = {.kind = Grammar::Kind::kJsonSchema, .text = R"({"type":"object"})"};
  if (grammar.kind != Grammar::Kind::kJsonSchema) return;
  const std::string field = outputs.at("json");
  auto schema = parse_json_object(grammar.text, field);
  if (!schema.ok()) {
    Error error = std::move(schema).error();
    error.param = field;
    return outputs.fail(std::move(error));
  }
  json::object& guidance = (*schema)["x-guidance"].emplace_object();  // where llguidance looks
  if (pattern)
    guidance["whitespace_pattern"] = *pattern;
  else
    guidance["whitespace_flexible"] = false;
  grammar.text = json_line(*schema);
}

}  // namespace jewel

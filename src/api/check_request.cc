#include "api/check_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "base/result.h"
#include "image/budget.h"

namespace jewel {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxBiases = 1024;
constexpr size_t kMaxBadWords = 1024;
constexpr size_t kMaxBadWordBytes = 256;
constexpr int kMaxPeriod = 1024;  // the guard's work and memory for every token
constexpr size_t kMaxChoices = 10'000;
constexpr int64_t kMaxGrammarLines = 1000;  // what the worst of so many costs to refuse: a second

// "temperature: found 3, expected 0 to 2", as a Result that is an error when `good` is false.
template <typename T>
Result<void> expect(bool good, std::string_view field, const T& found, std::string_view expected) {
  if (good) return {};
  return invalid(fmt::format("{}: found {}, expected {}", field, found, expected), std::string(field));
}

// Ranges hold for finite numbers only: a NaN is never inside.
Result<void> check_sampling(const Sampling& s) {
  const auto between = [](double x, double low, double high) { return x >= low && x <= high; };
  if (s.temperature)
    JEWEL_TRY(expect(between(*s.temperature, 0, 100), "temperature", *s.temperature, "0 to 100"));
  if (s.top_k) JEWEL_TRY(expect(*s.top_k >= -1, "top_k", *s.top_k, "-1 or 0 (off), or a count"));
  if (s.top_p)
    JEWEL_TRY(expect(*s.top_p > 0 && *s.top_p <= 1, "top_p", *s.top_p, "a number above 0, at most 1"));
  if (s.min_p) JEWEL_TRY(expect(between(*s.min_p, 0, 1), "min_p", *s.min_p, "0 to 1"));
  if (s.repetition_penalty) {
    JEWEL_TRY(expect(between(*s.repetition_penalty, 0.01, 100), "repetition_penalty", *s.repetition_penalty,
                     "0.01 to 100"));
  }
  if (s.presence_penalty)
    JEWEL_TRY(
        expect(between(*s.presence_penalty, -2, 2), "presence_penalty", *s.presence_penalty, "-2 to 2"));
  if (s.frequency_penalty)
    JEWEL_TRY(
        expect(between(*s.frequency_penalty, -2, 2), "frequency_penalty", *s.frequency_penalty, "-2 to 2"));
  return {};
}

Result<void> check_biases(const Request& request, int vocab_size) {
  if (request.sampling.logit_bias.size() > kMaxBiases) {
    return too_large(fmt::format("logit_bias: found {} entries, at most {} are taken",
                                 request.sampling.logit_bias.size(), kMaxBiases),
                     "logit_bias");
  }
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    JEWEL_TRY(
        expect(id >= 0 && id < vocab_size, "logit_bias", id, fmt::format("token ids below {}", vocab_size)));
    JEWEL_TRY(expect(bias >= -100 && bias <= 100, "logit_bias", bias, "biases from -100 to 100"));
  }
  for (const int32_t id : request.stop_token_ids) {
    JEWEL_TRY(expect(id >= 0 && id < vocab_size, "stop_token_ids", id,
                     fmt::format("token ids below {}", vocab_size)));
  }
  return {};
}

Result<void> check_limits(const Request& request, int vocab_size) {
  if (request.allowed_token_ids) {
    JEWEL_TRY(expect(!request.allowed_token_ids->empty(), "allowed_token_ids", "an empty list",
                     "at least one token id"));
    for (const int32_t id : *request.allowed_token_ids) {
      JEWEL_TRY(expect(id >= 0 && id < vocab_size, "allowed_token_ids", id,
                       fmt::format("token ids below {}", vocab_size)));
    }
  }
  JEWEL_TRY(expect(request.bad_words.size() <= kMaxBadWords, "bad_words",
                   fmt::format("{} words", request.bad_words.size()),
                   fmt::format("at most {}", kMaxBadWords)));
  for (const std::string& word : request.bad_words) {
    JEWEL_TRY(
        expect(word.find_first_not_of(' ') != std::string::npos, "bad_words", "an empty word", "words"));
    JEWEL_TRY(expect(word.size() <= kMaxBadWordBytes, "bad_words",
                     fmt::format("a word of {} bytes", word.size()),
                     fmt::format("at most {} bytes", kMaxBadWordBytes)));
  }
  if (request.truncate_prompt_tokens) {
    JEWEL_TRY(expect(*request.truncate_prompt_tokens == -1 || *request.truncate_prompt_tokens >= 1,
                     "truncate_prompt_tokens", *request.truncate_prompt_tokens,
                     "-1 or a count of at least 1"));
  }
  if (const auto& limit = request.stop_repetition) {
    JEWEL_TRY(expect(limit->min_period >= 1 && limit->min_period <= limit->max_period &&
                         limit->max_period <= kMaxPeriod && limit->repeats >= 2 && limit->repeats <= 1 << 20,
                     "repetition_detection",
                     fmt::format("patterns of {} to {} tokens, {} times", limit->min_period,
                                 limit->max_period, limit->repeats),
                     fmt::format("patterns of 1 to {} tokens, at least twice", kMaxPeriod)));
  }
  return {};
}

Result<void> check_stops(const Request& request) {
  JEWEL_TRY(expect(request.stop.size() <= kMaxStops, "stop", fmt::format("{} texts", request.stop.size()),
                   fmt::format("at most {}", kMaxStops)));
  for (const std::string& text : request.stop) {
    JEWEL_TRY(expect(!text.empty(), "stop", "an empty text", "texts of at least one character"));
    JEWEL_TRY(expect(text.size() <= kMaxStopBytes, "stop", fmt::format("a text of {} bytes", text.size()),
                     fmt::format("at most {} bytes", kMaxStopBytes)));
  }
  return {};
}

Result<void> check_source(const Request& request, const RequestLimits& limits) {
  const int sources = (request.messages.empty() ? 0 : 1) + (request.messages_json.empty() ? 0 : 1) +
                      (request.prompt ? 1 : 0) + (request.prompt_ids ? 1 : 0);
  if (sources == 0) return invalid("messages: missing; a request needs messages or a prompt", "messages");
  if (sources > 1) return invalid("prompt: given beside messages or in two forms; send one", "prompt");
  const bool is_chat = !request.prompt && !request.prompt_ids;
  if (is_chat && !limits.has_chat_template) {
    return invalid("messages: this model has no chat template (chat_template.jinja); send a prompt instead",
                   "messages");
  }
  if (!is_chat && !request.tools.empty())
    return invalid("tools: a prompt is taken as it is, tools belong to messages", "tools");
  if (request.prompt_ids) {
    if (request.prompt_ids->empty()) return invalid("prompt: holds no token", "prompt");
    for (const int32_t id : *request.prompt_ids) {
      if (id < 0 || id >= limits.vocab_size) {
        return invalid(
            fmt::format("prompt: token id {} is outside the model's vocabulary of {}", id, limits.vocab_size),
            "prompt");
      }
    }
  }
  if (request.continue_final_message) {
    if (!is_chat)
      return invalid("continue_final_message: a prompt is continued anyway", "continue_final_message");
    if (request.add_generation_prompt)
      return invalid("continue_final_message: excludes add_generation_prompt; set that to false",
                     "continue_final_message");
    if (!request.messages.empty() && request.messages.back().role != "assistant") {
      return invalid("continue_final_message: the last message is not an assistant's",
                     "continue_final_message");
    }
  }
  return {};
}

Result<void> check_images(const Request& request, const RequestLimits& limits) {
  size_t images = request.images.size();
  for (const Message& message : request.messages) {
    images += static_cast<size_t>(std::ranges::count_if(
        message.content, [](const ContentPart& part) { return part.image != nullptr; }));
  }
  if (!request.messages.empty() && !request.images.empty()) {
    return invalid("images: given beside messages, whose pictures stand in their content", "images");
  }
  if (images > 0 && !limits.has_vision)
    return unsupported("images: this checkpoint has no vision tower; send text alone", "images");
  if (images > static_cast<size_t>(limits.max_images)) {
    return invalid(fmt::format("images: found {}; at most {} image(s) may be provided in one request", images,
                               limits.max_images),
                   "images");
  }
  if (request.max_soft_tokens && *request.max_soft_tokens != kAutoSoftTokens)
    JEWEL_TRY(check_budget({.max_soft_tokens = *request.max_soft_tokens}));
  return {};
}

Result<void> check_grammar(const Request& request) {
  const Grammar& grammar = request.grammar;
  const bool by_tool =
      request.tool_choice == ToolChoice::kRequired || request.tool_choice == ToolChoice::kNamed;
  if (by_tool && request.tools.empty())
    return invalid("tool_choice: asks for a call, but no tools are declared", "tool_choice");
  if (request.tool_choice == ToolChoice::kNamed && request.tool_name.empty())
    return invalid("tool_choice: names no function", "tool_choice");
  if (by_tool && grammar.kind != Grammar::Kind::kNone) {
    return invalid("response_format: an answer cannot be a call (tool_choice) and follow a format; drop one",
                   "response_format");
  }
  if (grammar.kind == Grammar::Kind::kChoice) {
    JEWEL_TRY(expect(!grammar.choices.empty() && grammar.choices.size() <= kMaxChoices,
                     "structured_outputs.choice", fmt::format("{} choices", grammar.choices.size()),
                     fmt::format("1 to {}", kMaxChoices)));
    for (const std::string& choice : grammar.choices) {
      JEWEL_TRY(expect(!choice.empty(), "structured_outputs.choice", "an empty choice", "texts"));
    }
  }
  if (grammar.kind == Grammar::Kind::kLark) {
    const int64_t lines = 1 + std::ranges::count(grammar.text, '\n');
    JEWEL_TRY(expect(lines <= kMaxGrammarLines, "structured_outputs.grammar", fmt::format("{} lines", lines),
                     fmt::format("at most {}", kMaxGrammarLines)));
  }
  const bool constrained = by_tool || grammar.kind != Grammar::Kind::kNone;
  if (constrained && request.min_tokens > 0) {
    return invalid("min_tokens: a format decides where its answer ends; leave min_tokens out", "min_tokens");
  }
  if (constrained && request.ignore_eos)
    return invalid("ignore_eos: a format decides where its answer ends; leave ignore_eos out", "ignore_eos");
  return {};
}

}  // namespace

Result<void> check_length(size_t prompt_tokens, int max_tokens, int max_model_len) {
  const size_t total = prompt_tokens + static_cast<size_t>(max_tokens);
  if (total <= static_cast<size_t>(max_model_len)) return {};
  return too_large(
      fmt::format(
          "the prompt has {} tokens and {} are asked for, {} in all, but the limit is {}; shorten the "
          "prompt or lower max_tokens",
          prompt_tokens, max_tokens, total, max_model_len),
      "max_tokens");
}

Result<void> check_request(const Request& request, const RequestLimits& limits) {
  JEWEL_TRY(check_source(request, limits));
  JEWEL_TRY(check_images(request, limits));
  JEWEL_TRY(check_sampling(request.sampling));
  JEWEL_TRY(check_biases(request, limits.vocab_size));
  JEWEL_TRY(check_limits(request, limits.vocab_size));
  JEWEL_TRY(check_stops(request));
  JEWEL_TRY(expect(request.max_tokens >= 0, "max_tokens", request.max_tokens, "at least 1, or 0 for all"));
  JEWEL_TRY(expect(request.max_tokens <= limits.max_model_len, "max_tokens", request.max_tokens,
                   fmt::format("at most {}, the model's limit", limits.max_model_len)));
  JEWEL_TRY(expect(request.min_tokens >= 0, "min_tokens", request.min_tokens, "at least 0"));
  if (request.max_tokens > 0) {
    JEWEL_TRY(expect(request.min_tokens <= request.max_tokens, "min_tokens", request.min_tokens,
                     fmt::format("at most max_tokens, {}", request.max_tokens)));
  }
  const auto is_count = [&](const std::optional<int>& n) {
    return !n || (*n >= 0 && *n <= limits.max_logprobs);
  };
  const std::string range = fmt::format("0 to {}, what {} can give", limits.max_logprobs, limits.backend);
  JEWEL_TRY(expect(is_count(request.logprobs), "logprobs", request.logprobs.value_or(0), range));
  JEWEL_TRY(expect(is_count(request.prompt_logprobs), "prompt_logprobs", request.prompt_logprobs.value_or(0),
                   range));
  if (request.thinking_budget)
    JEWEL_TRY(expect(*request.thinking_budget >= 0, "thinking_token_budget", *request.thinking_budget,
                     "at least 0"));
  return check_grammar(request);
}

}  // namespace jewel

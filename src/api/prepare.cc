#include "api/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <random>
#include <utility>

#include "api/answer_mask.h"
#include "api/resume_points.h"
#include "api/word_mask.h"
#include "model/json_reader.h"
#include "text/grammar_gbnf.h"
#include "text/grammar_tags.h"
#include "text/grammar_tools.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kImageCacheBytes = size_t{128} << 20;  // 60 images of 280 soft tokens

// An array as JSON text. The reader wants objects, so it gets one; `field` names it in errors.
Result<json::array> parse_array(std::string_view text, const std::string& field) {
  if (text.empty()) return json::array();
  const auto with_field = [&](Error error) {
    error.param = field;
    return error;
  };
  auto object = parse_json_object(fmt::format("{{\"{}\":{}\n}}", field, text), "request");
  if (!object.ok()) return with_field(std::move(object).error());
  json::value& value = object->at(field);
  if (value.is_null()) return json::array();
  if (!value.is_array() || object->size() != 1)
    return invalid(fmt::format("{}: found {}, expected a list", field, describe(value)), field);
  return std::move(value.get_array());
}

json::value content_json(const Message& message) {
  if (message.content.empty()) return nullptr;
  const bool one_text = message.content.size() == 1 && message.content.front().image == nullptr;
  if (one_text && !message.content_is_list) return json::string(message.content.front().text);
  json::array parts;
  for (const ContentPart& part : message.content) {
    parts.push_back(part.image != nullptr ? json::object{{"type", "image"}}
                                          : json::object{{"type", "text"}, {"text", part.text}});
  }
  return parts;
}

json::object message_json(const Message& message) {
  json::object object{{"role", message.role}, {"content", content_json(message)}};
  if (!message.reasoning.empty()) object["reasoning"] = message.reasoning;
  if (!message.tool_call_id.empty()) object["tool_call_id"] = message.tool_call_id;
  if (!message.name.empty()) object["name"] = message.name;
  if (message.tool_calls.empty()) return object;
  json::array calls;
  for (const RequestedCall& call : message.tool_calls) {
    calls.push_back(json::object{{"id", call.id},
                                 {"type", "function"},
                                 {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  object["tool_calls"] = std::move(calls);
  return object;
}

Result<json::array> messages_of(const Request& request) {
  if (!request.messages_json.empty()) return parse_array(request.messages_json, "messages");
  json::array messages;
  for (const Message& message : request.messages) messages.push_back(message_json(message));
  return messages;
}

Result<RenderOptions> render_options(const Request& request) {
  RenderOptions options{.add_generation_prompt = request.add_generation_prompt,
                        .enable_thinking = request.thinking};
  if (request.template_kwargs.empty()) return options;
  auto extra = parse_json_object(request.template_kwargs, "chat_template_kwargs");
  if (!extra.ok()) {
    Error error = std::move(extra).error();
    error.param = "chat_template_kwargs";
    return error;
  }
  options.extra = std::move(*extra);
  return options;
}

bool thinks(const RenderOptions& options) {
  const json::value* extra = options.extra.if_contains("enable_thinking");
  if (extra != nullptr) return extra->is_bool() && extra->get_bool();
  return options.enable_thinking.value_or(false);
}

// The last message goes on: what the template wrote behind it is taken away.
void reopen_last_turn(Prompt& prompt, const PromptBuilder& prompts) {
  const int32_t newline = prompts.tokenizer().id_of("\n").value_or(-1);
  std::vector<int32_t>& ids = prompt.ids;
  if (ids.size() > 1 && ids.back() == newline && ids[ids.size() - 2] == prompts.special().turn_close)
    ids.pop_back();
  if (!ids.empty() && ids.back() == prompts.special().turn_close) ids.pop_back();
}

std::string choice_grammar(const std::vector<std::string>& choices) {
  std::string text = "start: CHOICE\nCHOICE: ";
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += " | ";
    text += lark_string(choices[i]);
  }
  return text + "\n";
}

bool any_strict(const json::array& tools) {
  return std::ranges::any_of(tools, [](const json::value& tool) {
    boost::system::error_code missing;
    const json::value* strict = tool.find_pointer("/function/strict", missing);
    return strict != nullptr && strict->is_bool() && strict->get_bool();
  });
}

Error with_param(Error error, const std::string& field) {
  error.message = fmt::format("{}: {}", field, error.message);
  error.param = field;
  return error;
}

const char* field_of(Grammar::Kind kind) {
  switch (kind) {
    case Grammar::Kind::kRegex:
      return "structured_outputs.regex";
    case Grammar::Kind::kChoice:
      return "structured_outputs.choice";
    case Grammar::Kind::kLark:
      return "structured_outputs.grammar";
    case Grammar::Kind::kStructuralTag:
      return "structural_tag";
    default:
      return "response_format";
  }
}

// GBNF and structural tags are written as Lark; the others stay as they are.
Result<Grammar> in_lark(const Grammar& grammar) {
  const bool tags = grammar.kind == Grammar::Kind::kStructuralTag;
  if (!tags && !(grammar.kind == Grammar::Kind::kLark && is_gbnf(grammar.text))) return grammar;
  auto lark = tags ? lark_from_structural_tag(grammar.text) : lark_from_gbnf(grammar.text);
  if (!lark.ok()) return with_param(std::move(lark).error(), field_of(grammar.kind));
  return Grammar{.kind = Grammar::Kind::kLark, .text = *std::move(lark)};
}

// The content beside tool calls, as a rule of Lark.
std::string content_rule(const Grammar& grammar) {
  switch (grammar.kind) {
    case Grammar::Kind::kNone:
    case Grammar::Kind::kStructuralTag:  // Lark by now
      break;
    case Grammar::Kind::kJsonObject:
      return "%json {\"type\": \"object\"}";
    case Grammar::Kind::kJsonSchema:
      return "%json " + grammar.text;
    case Grammar::Kind::kRegex:
      return fmt::format("CONTENT\nCONTENT: /{}/", lark_regex(grammar.text));
    case Grammar::Kind::kChoice: {
      std::string rule = "CONTENT\nCONTENT: ";
      for (size_t i = 0; i < grammar.choices.size(); ++i)
        rule += (i > 0 ? " | " : "") + lark_string(grammar.choices[i]);
      return rule;
    }
    case Grammar::Kind::kLark:
      return fmt::format("%lark {{\n{}\n}}", grammar.text);
  }
  return {};
}

}  // namespace

SamplingParams default_sampling(const ModelConfig& config, const GenerationConfig& generation) {
  SamplingParams params;
  params.temperature = generation.do_sample ? generation.temperature : 0;
  params.top_k = generation.top_k;
  params.top_p = generation.top_p;
  params.min_p = generation.min_p;
  params.repetition_penalty = generation.repetition_penalty;
  params.never = config.multimodal_token_ids;
  params.never.insert(params.never.end(), generation.suppress_tokens.begin(),
                      generation.suppress_tokens.end());
  return params;
}

Preparer::Preparer(const EngineParts& parts, const EngineOptions& options, int max_model_len)
    : parts_(parts),
      limits_{.vocab_size = parts.config.text.vocab_size,
              .max_model_len = max_model_len,
              .max_images = options.max_images,
              .max_logprobs = std::min(parts.backend->info().max_logprobs, parts.config.text.vocab_size),
              .backend = parts.backend->info().name,
              .has_vision = parts.config.vision.has_value(),
              .has_chat_template = parts.prompts->has_template()} {
  if (parts.config.vision) {
    images_ = std::make_unique<ImageCache>(
        *parts.config.vision, ImageLimits{.max_bytes = options.max_image_bytes}, kImageCacheBytes);
  }
}

Result<Preparer::Pictures> Preparer::read_pictures(const Request& request) {
  std::vector<std::shared_ptr<const std::string>> files = request.images;
  for (const Message& message : request.messages) {
    for (const ContentPart& part : message.content) {
      if (part.image != nullptr) files.push_back(part.image);
    }
  }
  Pictures pictures;
  if (files.empty()) return pictures;
  const auto start = std::chrono::steady_clock::now();
  const int budget = request.max_soft_tokens.value_or(parts_.processor.max_soft_tokens);
  for (size_t i = 0; i < files.size(); ++i) {
    auto image = images_->prepare(*files[i], budget);
    if (!image.ok()) {
      if (!image.error().param.empty()) return std::move(image).error();
      return with_param(std::move(image).error(), fmt::format("images[{}]", i));
    }
    pictures.soft_tokens.push_back(image->soft_tokens);
    pictures.images.push_back(std::move(*image));
  }
  pictures.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return pictures;
}

Result<Prompt> Preparer::build_prompt(const Request& request, const json::array& tools,
                                      const Pictures& pictures) const {
  const PromptBuilder& prompts = *parts_.prompts;
  Prompt prompt;
  if (request.prompt) {
    JEWEL_ASSIGN(prompt, prompts.raw(*request.prompt, pictures.soft_tokens, request.add_special_tokens));
    if (prompt.ids.empty()) return invalid("prompt: holds no token", "prompt");
  } else if (request.prompt_ids) {
    JEWEL_ASSIGN(prompt, prompts.from_ids(*request.prompt_ids, pictures.soft_tokens));
  } else {
    JEWEL_ASSIGN(const json::array messages, messages_of(request));
    JEWEL_ASSIGN(const RenderOptions render, render_options(request));
    JEWEL_ASSIGN(prompt, prompts.chat(messages, tools, render, pictures.soft_tokens));
    if (request.continue_final_message) reopen_last_turn(prompt, prompts);
  }
  JEWEL_TRY(truncate(prompt, request));
  return prompt;
}

// <bos> stays where it is: without it the model is lost.
Result<void> Preparer::truncate(Prompt& prompt, const Request& request) const {
  if (!request.truncate_prompt_tokens) return {};
  int keep = *request.truncate_prompt_tokens;
  if (keep < 0) keep = std::max(limits_.max_model_len - std::max(request.max_tokens, 1), 1);
  const int gone = static_cast<int>(prompt.ids.size()) - keep;
  if (gone <= 0) return {};
  const bool has_bos = prompt.ids.front() == parts_.prompts->special().bos;
  const int begin = request.truncate_end ? keep : (has_bos ? 1 : 0);
  const int end = begin + gone;
  if (end > static_cast<int>(prompt.ids.size()) || (begin == 1 && keep == 1)) {
    return invalid("truncate_prompt_tokens: leaves nothing but <bos>", "truncate_prompt_tokens");
  }
  std::vector<ImageSpan> left;
  for (ImageSpan span : prompt.images) {
    const int first = span.position - 1;  // with the marks around it
    const int last = span.position + span.count + 1;
    if (last <= begin) {
      left.push_back(span);
    } else if (first >= end) {
      span.position -= gone;
      left.push_back(span);
    } else if (first < begin || last > end) {
      return invalid("truncate_prompt_tokens: would cut through an image; keep more, or less",
                     "truncate_prompt_tokens");
    }
  }
  prompt.images = std::move(left);
  prompt.ids.erase(prompt.ids.begin() + begin, prompt.ids.begin() + end);
  return {};
}

Result<SamplingParams> Preparer::sampling_of(const Request& request) const {
  const Sampling& asked = request.sampling;
  SamplingParams params = default_sampling(parts_.config, parts_.generation);
  params.temperature = asked.temperature.value_or(params.temperature);
  params.top_k = std::max(asked.top_k.value_or(params.top_k), 0);
  params.top_p = asked.top_p.value_or(params.top_p);
  params.min_p = asked.min_p.value_or(params.min_p);
  params.repetition_penalty = asked.repetition_penalty.value_or(params.repetition_penalty);
  params.presence_penalty = asked.presence_penalty.value_or(params.presence_penalty);
  params.frequency_penalty = asked.frequency_penalty.value_or(params.frequency_penalty);
  params.seed = asked.seed ? *asked.seed : (uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  params.logit_bias.assign(asked.logit_bias.begin(), asked.logit_bias.end());
  params.n_logprobs = request.logprobs.value_or(-1);
  const TokenId call = parts_.prompts->special().tool_call_open;
  if (request.tool_choice == ToolChoice::kNone && call >= 0) params.never.push_back(call);
  return params;
}

// The vocabulary's trie takes a moment and some memory, so it is made when a grammar is first asked for.
Result<GrammarCompiler*> Preparer::grammars() {
  const std::scoped_lock lock(grammars_mutex_);
  if (grammars_ == nullptr) {
    JEWEL_ASSIGN(grammars_, GrammarCompiler::make(parts_.prompts->tokenizer(), parts_.config.text.vocab_size,
                                                  parts_.stop_token_ids));
  }
  return grammars_.get();
}

Result<GrammarMatcher> Preparer::compile(const Request& request, const json::array& tools) {
  JEWEL_ASSIGN(GrammarCompiler * compiler, grammars());
  JEWEL_ASSIGN(const Grammar grammar, in_lark(request.grammar));
  const bool plain = tools.empty() || request.tool_choice == ToolChoice::kNone;
  std::string field = field_of(request.grammar.kind);
  Result<GrammarMatcher> matcher = [&]() -> Result<GrammarMatcher> {
    if (!plain) {
      ToolGrammar options{.parallel = request.parallel_tool_calls};
      if (request.tool_choice == ToolChoice::kNamed) options.only = request.tool_name;
      if (request.tool_choice == ToolChoice::kAuto) {
        options.calls = ToolGrammar::Calls::kMay;
        options.strict_only = true;
        options.content = content_rule(grammar);
      }
      if (grammar.kind == Grammar::Kind::kNone) field = "tools";
      JEWEL_ASSIGN(const std::string text, tool_call_grammar(tools, options, parts_.prompts->special()));
      return compiler->compile(GrammarKind::kLark, text);
    }
    switch (grammar.kind) {
      case Grammar::Kind::kJsonObject:
        return compiler->compile(GrammarKind::kJsonSchema, R"({"type": "object"})");
      case Grammar::Kind::kJsonSchema:
        return compiler->compile(GrammarKind::kJsonSchema, grammar.text);
      case Grammar::Kind::kRegex:
        return compiler->compile(GrammarKind::kRegex, grammar.text);
      case Grammar::Kind::kChoice:
        return compiler->compile(GrammarKind::kLark, choice_grammar(grammar.choices));
      default:
        return compiler->compile(GrammarKind::kLark, grammar.text);
    }
  }();
  if (!matcher.ok() && matcher.error().param.empty()) return with_param(std::move(matcher).error(), field);
  return matcher;
}

Result<std::unique_ptr<TokenMask>> Preparer::mask_of(const Request& request, const json::array& tools,
                                                     const Prompt& prompt) {
  const bool calls_held = request.tool_choice == ToolChoice::kRequired ||
                          request.tool_choice == ToolChoice::kNamed ||
                          (request.tool_choice == ToolChoice::kAuto && any_strict(tools));
  if (request.grammar.kind == Grammar::Kind::kNone && !calls_held) return std::unique_ptr<TokenMask>();
  JEWEL_ASSIGN(GrammarMatcher matcher, compile(request, tools));
  const SpecialIds& special = parts_.prompts->special();
  auto start = AnswerMask::Start::kAnswer;
  if (OutputParser(parts_.prompts->tokenizer(), special, prompt.ids).in_reasoning()) {
    start = AnswerMask::Start::kThought;
  } else {
    JEWEL_ASSIGN(const RenderOptions render, render_options(request));
    if (thinks(render)) start = AnswerMask::Start::kMaybeThought;
  }
  return std::unique_ptr<TokenMask>(std::make_unique<AnswerMask>(std::move(matcher), start, special,
                                                                 parts_.stop_token_ids, limits_.vocab_size));
}

// bad_words and allowed_token_ids. A word of one token is just never sampled; longer ones need to be seen
// coming.
Result<void> Preparer::limit_words(const Request& request, SequenceRequest& sequence) const {
  std::vector<std::vector<TokenId>> phrases;
  for (const std::string& word : request.bad_words) {
    const std::string bare = word.substr(word.find_first_not_of(' '));
    for (const std::string& spelling : {bare, " " + bare}) {
      JEWEL_ASSIGN(std::vector<TokenId> ids,
                   parts_.prompts->tokenizer().encode(spelling, SpecialTokens::kAsText));
      if (ids.size() == 1) {
        sequence.sampling.never.push_back(ids.front());
      } else if (!ids.empty()) {
        phrases.push_back(std::move(ids));
      }
    }
  }
  if (phrases.empty() && !request.allowed_token_ids) return {};
  sequence.mask = std::make_unique<WordMask>(
      std::move(sequence.mask), request.allowed_token_ids ? &*request.allowed_token_ids : nullptr,
      std::move(phrases), limits_.vocab_size);
  return {};
}

Result<PreparedRequest> Preparer::prepare(const Request& request) {
  JEWEL_TRY(check(request));
  JEWEL_ASSIGN(const json::array tools, parse_array(request.tools, "tools"));
  JEWEL_ASSIGN(Pictures pictures, read_pictures(request));
  JEWEL_ASSIGN(Prompt prompt, build_prompt(request, tools, pictures));
  const int most = parts_.generation.max_new_tokens.value_or(limits_.max_model_len);
  JEWEL_TRY(check_length(prompt.ids.size(), std::clamp(request.max_tokens, 1, most), limits_.max_model_len));
  const PromptBuilder& prompts = *parts_.prompts;
  const SpecialIds& special = prompts.special();

  PreparedRequest ready;
  SequenceRequest& sequence = ready.sequence;
  JEWEL_ASSIGN(sequence.sampling, sampling_of(request));
  JEWEL_ASSIGN(sequence.mask, mask_of(request, tools, prompt));
  JEWEL_TRY(limit_words(request, sequence));
  if (!request.ignore_eos) sequence.stop_token_ids = parts_.stop_token_ids;
  sequence.stop_token_ids.insert(sequence.stop_token_ids.end(), request.stop_token_ids.begin(),
                                 request.stop_token_ids.end());
  if (!tools.empty() && !request.parallel_tool_calls && special.tool_call_close >= 0)
    sequence.stop_token_ids.push_back(special.tool_call_close);  // one call, and that is the answer
  const int room = limits_.max_model_len - static_cast<int>(prompt.ids.size());
  sequence.max_tokens = std::min(request.max_tokens > 0 ? request.max_tokens : room, most);
  sequence.min_tokens = std::min(request.min_tokens, sequence.max_tokens);
  sequence.priority = request.priority;
  if (request.deadline) sequence.deadline = request.deadline->time_since_epoch();
  sequence.cache_salt = request.cache_salt;
  sequence.n_prompt_logprobs = request.prompt_logprobs.value_or(-1);
  sequence.resume_points = resume_points(prompt, prompts);
  if (const auto& limit = request.stop_repetition) {
    sequence.repetition_guard = RepetitionGuard{.min_period = limit->min_period,
                                                .max_period = limit->max_period,
                                                .repeats = limit->repeats,
                                                .min_tokens = limit->min_tokens};
  }
  if (request.parse_output) {
    sequence.thought = {.open = special.channel_open,
                        .close = special.channel_close,
                        .call_open = special.tool_call_open,
                        .inside = OutputParser(prompts.tokenizer(), special, prompt.ids).in_reasoning()};
  }
  if (request.thinking_budget && special.channel_open >= 0 && special.channel_close >= 0) {
    ThinkingBudget budget{.start = special.channel_open,
                          .end = special.channel_close,
                          .max_tokens = *request.thinking_budget,
                          .open = OutputParser(prompts.tokenizer(), special, prompt.ids).in_reasoning()};
    if (!budget.open) {  // the channel's label is no thought
      JEWEL_ASSIGN(const auto label, prompts.tokenizer().encode("thought\n", SpecialTokens::kAsText));
      budget.max_tokens += static_cast<int>(label.size());
    }
    if (const auto newline = prompts.tokenizer().id_of("\n")) budget.forced.push_back(*newline);
    budget.forced.push_back(special.channel_close);
    sequence.thinking_budget = std::move(budget);
  }

  AnswerFormat& format = ready.format;
  for (const ImageSpan& span : prompt.images) {
    const ReadyImage& image = pictures.images[static_cast<size_t>(span.image)];
    sequence.images.push_back({.content = image.content,
                               .budget = image.budget,
                               .patches = image.patches,
                               .position = span.position,
                               .count = span.count});
    format.prompt.image_tokens += span.count;
  }
  format.prompt.prompt_tokens = static_cast<int>(prompt.ids.size());
  if (request.return_prompt_ids) format.prompt.ids = prompt.ids;
  format.prompt_ids = prompt.ids;
  sequence.prompt = std::move(prompt.ids);
  format.parse = request.parse_output;
  format.skip_special = request.skip_special_tokens;
  format.stop = request.stop;
  format.include_stop = request.include_stop_in_output;
  format.min_tokens = request.min_tokens;
  format.wants_logprobs = request.logprobs.has_value();
  format.image_s = pictures.seconds;
  return ready;
}

Result<PromptInfo> Preparer::prompt_of(const Request& request) {
  JEWEL_TRY(check(request));
  JEWEL_ASSIGN(const json::array tools, parse_array(request.tools, "tools"));
  JEWEL_ASSIGN(const Pictures pictures, read_pictures(request));
  JEWEL_ASSIGN(Prompt prompt, build_prompt(request, tools, pictures));
  PromptInfo info{.prompt_tokens = static_cast<int>(prompt.ids.size())};
  for (const ImageSpan& span : prompt.images) info.image_tokens += span.count;
  info.ids = std::move(prompt.ids);
  return info;
}

}  // namespace jewel

// Request: everything a client may ask of an Engine. Plain data, no thread rules; copies are cheap (images
// are shared), so n answers to one prompt are n requests that differ in their seed.
//
// What is left unset comes from the model's generation_config.json, else from the defaults below. Errors name
// the field by the OpenAI API's spelling: "temperature", "messages", "response_format".
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace jewel {

// A part of a message: a text, or an image as the bytes of its file (JPEG, PNG, WebP, GIF, BMP).
struct ContentPart {
  std::string text;
  std::shared_ptr<const std::string> image;  // set: this part is an image and `text` is not looked at
};

struct RequestedCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text of an object
};

struct Message {
  std::string role;  // system, developer, user, assistant, tool
  std::vector<ContentPart> content;
  // The template trims a list's texts one by one and a system turn's are followed by a space each. One text
  // alone is given to it as a string, as Transformers does, unless the client sent a list.
  bool content_is_list = false;
  std::string reasoning;                  // of an assistant's message
  std::vector<RequestedCall> tool_calls;  // of an assistant's message
  std::string tool_call_id;               // of a tool's answer
  std::string name;
};

// {role, text} and {"user", images then text}: the order the model was trained on.
Message text_message(std::string role, std::string text);
Message image_message(std::vector<std::string> images, std::string text);

// Unset: the model's. Order of use: penalties, logit_bias, temperature, top_k, top_p, min_p.
struct Sampling {
  std::optional<double> temperature;  // 0 to 2; 0 is greedy
  std::optional<int> top_k;           // 0 or -1: off
  std::optional<double> top_p;        // above 0, to 1
  std::optional<double> min_p;        // 0 to 1
  std::optional<double> repetition_penalty;
  std::optional<double> presence_penalty;   // -2 to 2
  std::optional<double> frequency_penalty;  // -2 to 2
  std::optional<uint64_t> seed;             // unset: a random one
  std::map<int32_t, float> logit_bias;      // token id to -100 … 100
};

// What the answer (behind any thinking) must be an instance of.
struct Grammar {
  enum class Kind : uint8_t {
    kNone,
    kJsonObject,
    kJsonSchema,  // text: the schema
    kRegex,       // text: matches the whole answer; Rust's syntax, without look-around and back-references
    kChoice,      // choices: the answer is one of them
    kLark,        // text: a grammar in llguidance's dialect of Lark, or in GBNF (rules with ::=)
    // text: JSON, {"structures": [{begin, schema, end}], "triggers": […]} or {"format": {…}}: free text in
    // which what a trigger opens must follow its schema.
    kStructuralTag,
  };
  Kind kind = Kind::kNone;
  std::string text;
  std::vector<std::string> choices;
};

// An answer that says the same few tokens again and again ends: `repeats` times in a row the same
// `min_period` to `max_period` tokens, when that makes at least `min_tokens`.
struct RepetitionLimit {
  int min_period = 1;
  int max_period = 64;
  int repeats = 4;
  int min_tokens = 64;
};

enum class ToolChoice : uint8_t {
  kAuto,      // the model decides; arguments are held to their schema for functions with "strict": true
  kNone,      // no calls, although the tools are shown
  kRequired,  // one call or more, arguments held to their schemas
  kNamed,     // calls of Request::tool_name
};

struct Request {
  // What to answer: exactly one of messages, messages_json, prompt and prompt_ids.
  std::vector<Message> messages;
  std::string
      messages_json;  // JSON text: an array of OpenAI's chat messages; their pictures stand in `images`
  std::optional<std::string>
      prompt;  // completed as it is; special tokens in it count, <|image|> is an image's place
  std::optional<std::vector<int32_t>> prompt_ids;  // the same, already tokens
  // Files of the pictures, in order, of all but `messages`.
  std::vector<std::shared_ptr<const std::string>> images;

  // How messages are rendered.
  std::string tools;            // JSON text: an array of OpenAI's tool declarations; empty: none
  std::string template_kwargs;  // JSON text: an object of further template variables; empty: none
  std::optional<bool> thinking;
  bool add_special_tokens = true;  // of a `prompt`: <bos> is put in front when it is not there
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the last message, an assistant's, is continued instead of answered
  std::optional<int>
      max_soft_tokens;  // per image: 70, 140, 280, 560, 1120; kAutoSoftTokens; unset: the model's
  // Keeps that many tokens of a longer prompt, its last ones unless `truncate_end`; -1: as many as fit.
  std::optional<int> truncate_prompt_tokens;
  bool truncate_end = false;

  // How it is answered.
  Sampling sampling;
  int max_tokens = 0;  // 0: as many as fit
  int min_tokens = 0;
  bool ignore_eos = false;
  std::vector<std::string> stop;  // at most 16 texts; found in content, not in reasoning or calls
  bool include_stop_in_output = false;
  std::vector<int32_t> stop_token_ids;  // beside the model's own
  std::optional<int> thinking_budget;   // most tokens of reasoning; what comes then is the answer
  Grammar grammar;
  ToolChoice tool_choice = ToolChoice::kAuto;
  std::string tool_name;
  bool parallel_tool_calls = true;
  std::optional<RepetitionLimit> stop_repetition;
  // None of these is said, as the tokenizer spells it at the beginning of a text or behind a space.
  std::vector<std::string> bad_words;
  std::optional<std::vector<int32_t>> allowed_token_ids;  // nothing else is sampled, stop tokens neither
  // True: the output is told apart into reasoning, content and calls. False: all of it is content.
  bool parse_output = true;
  bool skip_special_tokens = true;  // when !parse_output

  // What comes with it.
  std::optional<int>
      logprobs;  // 0: of the sampled token; k: also the k best, at most ModelInfo::max_logprobs
  std::optional<int> prompt_logprobs;  // the same for every token of the prompt; switches cached prefixes off
  bool return_prompt_ids = false;

  // How it is served.
  int priority = 0;        // lower goes first, as in vLLM
  std::string cache_salt;  // prefixes are shared between requests of equal salt only
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

// max_soft_tokens: the smallest budget that does not scale the image down, 1120 where all do.
inline constexpr int kAutoSoftTokens = -1;

}  // namespace jewel

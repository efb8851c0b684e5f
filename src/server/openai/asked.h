// Asked: what a client asked for over one of the API's routes, in the engine's terms and with what only the
// answer's shape needs. Made from a body by a read_…(); plain data.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "jewel/request.h"
#include "server/images/image_loader.h"
#include "server/openai/field_names.h"

namespace jewel {

enum class AnswerShape : uint8_t { kChat, kCompletion, kResponses, kMessages };

struct Asked {
  std::string model;              // the name to echo
  std::vector<Request> requests;  // one per choice, in the order of their indices
  int n = 1;                      // choices per prompt
  AnswerShape shape = AnswerShape::kChat;

  bool stream = false;
  bool include_usage = false;     // a last event with usage
  bool continuous_usage = false;  // usage in every event
  bool include_reasoning = true;
  bool return_token_ids = false;
  bool tokens_as_ids = false;        // log-probabilities name tokens as "token_id:N"
  bool echo_logprobs = false;        // those of the prompt stand before the answer's
  bool prompt_only = false;          // the answer is not wanted, nor its one token
  std::vector<std::string> echo;     // per prompt: the text that goes before the answer; empty: none
  std::string repeated;              // JSON members of the request that a Response repeats
  std::vector<std::string> ignored;  // fields that nobody here knows
  FieldNames names;                  // what this API calls the engine's fields
  // Pictures of `requests` that are elsewhere; with_images() brings them before the engine is asked.
  std::vector<WantedImage> wanted;
};

// What the server's settings mean for every request.
struct AskDefaults {
  std::vector<std::string> model_names;  // a request may use any; the first is echoed when it names none
  Sampling sampling;                     // --override-generation-config
  std::optional<int> max_tokens;         // its max_new_tokens: no answer is longer
  std::optional<uint64_t> seed;
  boost::json::object template_kwargs;  // --default-chat-template-kwargs
  std::optional<int> max_soft_tokens;
  int max_logprobs = 20;
  bool force_include_usage = false;
  bool tokens_as_ids = false;
  double request_timeout_s = 0;
};

Result<Asked> read_chat(const boost::json::object& body, const AskDefaults& defaults);
// Without `stream` and how it is answered: the prompt alone, for /tokenize.
Result<Request> read_chat_prompt(const boost::json::object& body, const AskDefaults& defaults,
                                 std::vector<WantedImage>& wanted);
Result<Asked> read_completion(const boost::json::object& body, const AskDefaults& defaults);
// OpenAI's Responses. `model` is what the model samples by when nobody says otherwise: the answer repeats it.
Result<Asked> read_responses(const boost::json::object& body, const AskDefaults& defaults,
                             const Sampling& model);
// Anthropic's Messages. `count_only`: the prompt alone, for /v1/messages/count_tokens.
Result<Asked> read_anthropic(const boost::json::object& body, const AskDefaults& defaults, bool count_only);

// kNotFound for a model that is not served here.
Result<void> check_model(const std::string& model, const AskDefaults& defaults);

// Sampling fields under their own names, as in generation_config.json too.
class FieldReader;
void read_sampling(FieldReader& fields, Sampling& sampling);

}  // namespace jewel

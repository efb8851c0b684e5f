// Asked: what a client asked for over the OpenAI API, in the engine's terms and with what only the answer's
// shape needs. Made from a body by read_chat() or read_completion(); plain data.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "jewel/request.h"
#include "server/images/image_loader.h"

namespace jewel {

struct Asked {
  std::string model;              // the name to echo
  std::vector<Request> requests;  // one per choice, in the order of their indices
  int n = 1;                      // choices per prompt
  bool is_chat = true;

  bool stream = false;
  bool include_usage = false;     // a last event with usage
  bool continuous_usage = false;  // usage in every event
  bool include_reasoning = true;
  bool return_token_ids = false;
  std::vector<std::string> echo;     // per prompt: the text that goes before the answer; empty: none
  std::vector<std::string> ignored;  // fields that nobody here knows
  // Pictures of `requests` that are elsewhere; with_images() brings them before the engine is asked.
  std::vector<WantedImage> wanted;
};

// What the server's settings mean for every request.
struct AskDefaults {
  std::vector<std::string> model_names;  // a request may use any; the first is echoed when it names none
  Sampling sampling;                     // --override-generation-config
  std::optional<int> max_tokens;         // the same, max_new_tokens
  std::optional<uint64_t> seed;
  boost::json::object template_kwargs;  // --default-chat-template-kwargs
  std::optional<int> max_soft_tokens;
  int max_logprobs = 20;
  bool force_include_usage = false;
  double request_timeout_s = 0;
};

Result<Asked> read_chat(const boost::json::object& body, const AskDefaults& defaults);
// Without `stream` and how it is answered: the prompt alone, for /tokenize.
Result<Request> read_chat_prompt(const boost::json::object& body, const AskDefaults& defaults,
                                 std::vector<WantedImage>& wanted);
Result<Asked> read_completion(const boost::json::object& body, const AskDefaults& defaults);

// kNotFound for a model that is not served here.
Result<void> check_model(const std::string& model, const AskDefaults& defaults);

// Sampling fields under their own names, as in generation_config.json too.
class FieldReader;
void read_sampling(FieldReader& fields, Sampling& sampling);

}  // namespace jewel

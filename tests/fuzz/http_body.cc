// The body of a request, through the readers of every route that computes, to what the engine is asked for
// and its prompt. The first byte chooses the route. What must hold: a refusal says something; what is
// accepted is what the API promises: n choices for each prompt, no picture missing.
#include <memory>

#include "api/engine_parts.h"
#include "api/prepare.h"
#include "base/check.h"
#include "server/openai/asked.h"
#include "server/openai/json_body.h"

namespace {

using namespace jewel;

struct Model {
  EngineOptions options;
  EngineParts parts;
  std::unique_ptr<Preparer> preparer;
};

const Model& model() {
  static const std::unique_ptr<Model> loaded = [] {
    auto model = std::make_unique<Model>();
    model->options.max_image_bytes = 1 << 16;  // large pictures are another target's
    model->options.n_threads = 1;
    auto parts = open_parts(JEWEL_SOURCE_DIR "/models/jewel-demo", model->options);
    JEWEL_CHECK(parts.ok(), "{}", parts.error().message);
    model->parts = std::move(parts).value();
    model->preparer = std::make_unique<Preparer>(model->parts, model->options, 2048);
    return model;
  }();
  return *loaded;
}

void check_error(const Error& error) {
  JEWEL_CHECK(!error.message.empty(), "an error without a message");
}

Result<Asked> read(int route, const boost::json::object& body, const AskDefaults& defaults) {
  switch (route) {
    case 0:
      return read_chat(body, defaults);
    case 1:
      return read_completion(body, defaults);
    case 2:
      return read_responses(body, defaults, {});
    default:
      return read_anthropic(body, defaults, route == 4);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto body = JsonBody::parse({reinterpret_cast<const char*>(data) + 1, size - 1});
  if (!body.ok()) {
    check_error(body.error());
    return 0;
  }
  static const AskDefaults defaults{.model_names = {"demo"}};
  if (data[0] % 6 == 5) {  // /tokenize
    std::vector<WantedImage> wanted;
    if (const auto asked = read_chat_prompt((*body)->object(), defaults, wanted); !asked.ok())
      check_error(asked.error());
    return 0;
  }
  const Result<Asked> asked = read(data[0] % 6, (*body)->object(), defaults);
  if (!asked.ok()) {
    check_error(asked.error());
    return 0;
  }
  JEWEL_CHECK(asked->n >= 1 && !asked->requests.empty() &&
                  asked->requests.size() % static_cast<size_t>(asked->n) == 0,
              "{} requests of {} choices", asked->requests.size(), asked->n);
  for (const Request& request : asked->requests) {
    for (const auto& image : request.images) JEWEL_CHECK(image != nullptr, "a picture is missing");
  }
  const Request& first = asked->requests.front();
  if (!asked->wanted.empty()) return 0;  // its pictures would have to be brought
  if (const auto good = model().preparer->check(first); !good.ok()) {
    check_error(asked->names.apply(good.error()));
    return 0;
  }
  const auto prompt = model().preparer->prompt_of(first);
  if (!prompt.ok())
    check_error(asked->names.apply(prompt.error()));
  else
    JEWEL_CHECK(prompt->prompt_tokens > 0, "an empty prompt");
  return 0;
}

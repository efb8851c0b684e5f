#include "server/openai/api_server.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <optional>
#include <utility>

#include "base/log.h"
#include "server/openai/answer_reply.h"
#include "server/openai/api_error.h"
#include "server/openai/field_reader.h"
#include "server/openai/json_body.h"
#include "server/openai/json_out.h"
#include "server/openai/openapi.h"
#include "server/openai/with_images.h"

namespace jewel {
namespace {

constexpr size_t kMaxWarnings = 256;  // names of fields that the log may see
constexpr size_t kMaxTextBody = size_t{16} << 20;
constexpr std::string_view kStopping = "the server is shutting down";
constexpr std::string_view kNoResponses =
    "this server keeps no responses (it is stateless): what POST /v1/responses answered is all there is";

int64_t unix_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

ErrorShape errors_of(AnswerShape shape) {
  return shape == AnswerShape::kMessages ? ErrorShape::kAnthropic : ErrorShape::kOpenAi;
}

// Errors of pictures, in the shape of the route.
ErrorReply image_errors(ErrorShape shape) {
  return [shape](int status, std::string_view message, std::string_view param) {
    return error_response(status, message, param, shape);
  };
}

// /health?deep=1 is another route, because it computes: it asks for a key.
bool asks_for_deep_health(const ServerRequest& head) {
  if (!head.path.ends_with("/health")) return false;
  const std::string query = "&" + head.query + "&";
  return query.find("&deep=1&") != std::string::npos || query.find("&deep=true&") != std::string::npos ||
         query.find("&deep&") != std::string::npos;
}

ServerResponse json_response(std::string body) {
  return {.body = std::move(body)};
}

}  // namespace

ApiServer::ApiServer(Engine& engine, ApiOptions options)
    : engine_(engine),
      options_(std::move(options)),
      created_(unix_seconds()),
      images_(options_.images),
      cors_(options_.cors),
      limit_(options_.max_requests_per_client, !options_.api_keys.empty()),
      golden_(engine),
      router_(with_document(make_routes()), options_.root_path, ApiKeys(options_.api_keys),
              options_.protect_all) {}

std::vector<Route> ApiServer::make_routes() {
  using enum RouteAccess;
  const size_t with_images = options_.max_body_bytes;
  const size_t text = std::min(options_.max_body_bytes, kMaxTextBody);
  const auto say = [](const ServerResponse& response) {
    return [response](ServerRequest&&) -> Reply { return response; };
  };
  return {
      {"POST", "/v1/chat/completions", kKey, with_images,
       [this](ServerRequest&& r) { return generate(std::move(r), AnswerShape::kChat); }},
      {"POST", "/v1/completions", kKey, text,
       [this](ServerRequest&& r) { return generate(std::move(r), AnswerShape::kCompletion); }},
      {"POST", "/v1/responses", kKey, with_images,
       [this](ServerRequest&& r) { return generate(std::move(r), AnswerShape::kResponses); }},
      {"POST", "/v1/responses/input_tokens", kKey, with_images,
       [this](ServerRequest&& r) { return count_tokens(std::move(r), AnswerShape::kResponses); }},
      {"GET", "/v1/responses/{id}", kKey, 0, say(error_response(404, kNoResponses))},
      {"DELETE", "/v1/responses/{id}", kKey, text, say(error_response(404, kNoResponses))},
      {"POST", "/v1/messages", kKey, with_images,
       [this](ServerRequest&& r) { return generate(std::move(r), AnswerShape::kMessages); },
       ErrorShape::kAnthropic},
      {"POST", "/v1/messages/count_tokens", kKey, with_images,
       [this](ServerRequest&& r) { return count_tokens(std::move(r), AnswerShape::kMessages); },
       ErrorShape::kAnthropic},
      {"GET", "/v1/models", kKey, 0, [this](ServerRequest&& r) { return models(r); }},
      {"POST", "/tokenize", kKey, with_images, [this](ServerRequest&& r) { return tokenize(r); }},
      {"POST", "/detokenize", kKey, text, [this](ServerRequest&& r) { return detokenize(r); }},
      {"GET", "/health", kAlways, 0, [this](ServerRequest&&) { return health(); }},
      {"GET", "/health/deep", kKey, 0, [this](ServerRequest&&) { return deep_health(); }},
      {"GET", "/ping", kProbe, 0, [this](ServerRequest&&) { return health(); }},
      {"POST", "/ping", kProbe, 1024, [this](ServerRequest&&) { return health(); }},
      {"GET", "/version", kProbe, 0, say(json_response(R"({"version":")" JEWEL_VERSION R"("})"))},
      {"GET", "/load", kProbe, 0,
       [this](ServerRequest&&) -> Reply {
         return json_response(fmt::format(R"({{"server_load":{}}})", engine_.stats().under_way));
       }},
      {"GET", "/metrics", kProbe, 0, [this](ServerRequest&&) { return metrics_page(); }},
  };
}

Admission ApiServer::admit(const ServerRequest& head) {
  if (auto answer = cors_.preflight(head))
    return {.refusal = std::make_unique<ServerResponse>(*std::move(answer))};
  if (asks_for_deep_health(head)) {
    ServerRequest deep = head;
    deep.path += "/deep";
    return router_.admit(deep);
  }
  Admission admission = router_.admit(head);
  if (admission.refusal != nullptr || head.method != "POST") return admission;
  admission.lease = limit_.enter(head);
  if (admission.lease == nullptr) {
    ServerResponse response = error_response(
        429,
        fmt::format("{} requests of this client are under way, which is its limit; send the next when one "
                    "has ended",
                    options_.max_requests_per_client));
    response.headers.push_back({.name = "Retry-After", .value = "1"});
    admission.refusal = std::make_unique<ServerResponse>(std::move(response));
  }
  return admission;
}

// A library that throws (memory, mostly) fails one request, not the server.
Reply ApiServer::handle(ServerRequest&& request) {
  if (asks_for_deep_health(request)) request.path += "/deep";
  try {
    return router_.handle(std::move(request));
  } catch (const std::bad_alloc&) {
    return error_response(503, "out of memory for this request; try a smaller one");
  } catch (const std::exception& error) {
    log().error("a request failed: {}", error.what());
    return error_response(500, "the request failed inside the server");
  }
}

// Nobody may know yet which API the client speaks: OpenAI's shape with the one member more that Anthropic's
// clients look for.
ServerResponse ApiServer::trouble(int status, std::string_view message) {
  ServerResponse response = error_response(status, message);
  response.body.insert(1, R"("type":"error",)");
  return response;
}

Result<Asked> ApiServer::read(AnswerShape shape, const boost::json::object& body) const {
  switch (shape) {
    case AnswerShape::kCompletion:
      return read_completion(body, options_.defaults);
    case AnswerShape::kResponses:
      return read_responses(body, options_.defaults, engine_.info().default_sampling);
    case AnswerShape::kMessages:
      return read_anthropic(body, options_.defaults, /*count_only=*/false);
    case AnswerShape::kChat:
      break;
  }
  return read_chat(body, options_.defaults);
}

Reply ApiServer::generate(ServerRequest&& request, AnswerShape shape) {
  const ErrorShape errors = errors_of(shape);
  if (draining_) return error_response(503, kStopping, {}, errors);
  auto body = JsonBody::parse(request.body);
  if (!body.ok()) return error_response(body.error(), errors);
  const std::string id = std::move(request.id);
  std::string().swap(request.body);  // a picture is here twice already
  auto asked = read(shape, (*body)->object());
  if (!asked.ok()) return error_response(asked.error(), errors);
  warn_of(asked->ignored);
  auto wanted = std::move(asked->wanted);
  return with_images(
      images_, std::move(wanted),
      [this, id, asked = std::make_shared<Asked>(*std::move(asked))]() -> Reply {
        return make_answer_reply(engine_, metrics_, std::move(*asked), id);
      },
      image_errors(errors));
}

// How long the prompt of a request is that nobody wants answered.
Reply ApiServer::count_tokens(ServerRequest&& request, AnswerShape shape) {
  const ErrorShape errors = errors_of(shape);
  auto body = JsonBody::parse(request.body);
  if (!body.ok()) return error_response(body.error(), errors);
  auto asked = shape == AnswerShape::kMessages
                   ? read_anthropic((*body)->object(), options_.defaults, /*count_only=*/true)
                   : read(shape, (*body)->object());
  if (!asked.ok()) return error_response(asked.error(), errors);
  auto wanted = std::move(asked->wanted);
  return with_images(
      images_, std::move(wanted),
      [this, shape, errors, asked = std::make_shared<Asked>(*std::move(asked))]() -> Reply {
        const auto prompt = engine_.prompt_of(asked->requests.front());
        if (!prompt.ok()) return error_response(asked->names.apply(prompt.error()), errors);
        JsonOut out;
        out.open('{');
        if (shape == AnswerShape::kResponses) out.field("object", "response.input_tokens");
        return json_response(out.field("input_tokens", prompt->prompt_tokens).close('}').take());
      },
      image_errors(errors));
}

void ApiServer::warn_of(const std::vector<std::string>& ignored) {
  if (ignored.empty()) return;
  const std::scoped_lock lock(warned_mutex_);
  for (const std::string& name : ignored) {
    if (warned_.size() >= kMaxWarnings || !warned_.insert(name.substr(0, 64)).second) continue;
    log().warn("requests carry the field '{}', which is ignored", name.substr(0, 64));
  }
}

Reply ApiServer::models(const ServerRequest& /*request*/) const {
  JsonOut out;
  out.open('{').field("object", "list").key("data").open('[');
  for (const std::string& name : options_.defaults.model_names) {
    out.open('{')
        .field("id", name)
        .field("object", "model")
        .field("created", created_)
        .field("owned_by", "jewel");
    out.field("root", options_.model_root)
        .null_field("parent")
        .field("max_model_len", engine_.info().max_model_len);
    out.key("permission").open('[').close(']').close('}');
  }
  return json_response(out.close(']').close('}').take());
}

Reply ApiServer::tokenize(const ServerRequest& request) {
  auto body = JsonBody::parse(request.body);
  if (!body.ok()) return error_response(body.error());
  const boost::json::object& object = (*body)->object();
  FieldReader fields(object);
  const std::string model = fields.text("model").value_or("");
  const std::optional<std::string> prompt = fields.text("prompt");
  const bool add_special = fields.boolean("add_special_tokens").value_or(true);
  const bool wants_strings = fields.boolean("return_token_strs").value_or(false);
  if (fields.failed()) return error_response(fields.error());
  if (const auto known = check_model(model, options_.defaults); !known.ok())
    return error_response(known.error());

  if (prompt && !add_special)
    return tokens_reply(engine_.tokenize(*prompt, /*parse_special=*/true), wants_strings);
  Result<Request> asked = Request{.prompt = prompt};
  std::vector<WantedImage> wanted;
  if (!prompt) asked = read_chat_prompt(object, options_.defaults, wanted);
  if (!asked.ok()) return error_response(asked.error());
  asked->return_prompt_ids = true;
  return with_images(images_, std::move(wanted), [this, wants_strings, asked = *std::move(asked)]() -> Reply {
    auto info = engine_.prompt_of(asked);
    if (!info.ok()) return error_response(info.error());
    return tokens_reply(std::move(info->ids), wants_strings);
  });
}

Reply ApiServer::tokens_reply(const Result<std::vector<int32_t>>& ids, bool wants_strings) const {
  if (!ids.ok()) return error_response(ids.error());
  JsonOut out;
  out.open('{').field("count", static_cast<uint64_t>(ids->size()));
  out.field("max_model_len", engine_.info().max_model_len).key("tokens").open('[');
  for (const int32_t id : *ids) out.value(int64_t{id});
  out.close(']').key("token_strs");
  if (wants_strings) {
    out.open('[');
    for (const int32_t id : *ids) {
      const auto text = engine_.detokenize({&id, 1});
      out.value(text.ok() ? *text : "");
    }
    out.close(']');
  } else {
    out.null();
  }
  return json_response(out.close('}').take());
}

Reply ApiServer::detokenize(const ServerRequest& request) const {
  auto body = JsonBody::parse(request.body);
  if (!body.ok()) return error_response(body.error());
  FieldReader fields((*body)->object());
  const std::string model = fields.text("model").value_or("");
  const auto ids = fields.ids("tokens");
  if (fields.failed()) return error_response(fields.error());
  if (!ids) return error_response(400, "tokens: missing; expected a list of token ids", "tokens");
  if (const auto known = check_model(model, options_.defaults); !known.ok())
    return error_response(known.error());
  const auto text = engine_.detokenize(*ids);
  if (!text.ok()) return error_response(text.error());
  JsonOut out;
  return json_response(out.open('{').field("prompt", *text).close('}').take());
}

// Never the query, which may hold what a client would rather not see in a log.
void ApiServer::finished(const FinishedRequest& request) {
  if (!options_.log_requests) return;
  log_event("request", {{"client", request.peer.empty() ? "unix" : request.peer},
                        {"method", request.method},
                        {"path", request.path.substr(0, 256)},
                        {"status", int64_t{request.status}},
                        {"bytes_in", static_cast<int64_t>(request.bytes_in)},
                        {"bytes_out", static_cast<int64_t>(request.bytes_out)},
                        {"seconds", request.seconds},
                        {"whole", request.whole},
                        {"id", request.id}});
}

Reply ApiServer::health() {
  if (draining_) return error_response(503, kStopping);
  if (const auto trouble = watch_.trouble(engine_.stats())) return error_response(503, *trouble);
  return ServerResponse{.content_type = "text/plain"};
}

Reply ApiServer::deep_health() {
  if (draining_) return error_response(503, kStopping);
  return golden_.check();
}

Reply ApiServer::metrics_page() const {
  return ServerResponse{
      .content_type = "text/plain; version=0.0.4; charset=utf-8",
      .body = metrics_->page(engine_.stats(), engine_.info(), options_.defaults.model_names.front())};
}

}  // namespace jewel

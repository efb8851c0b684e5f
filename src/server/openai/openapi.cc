#include "server/openai/openapi.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "server/openai/json_out.h"

namespace jewel {
namespace {

const ApiOperation* find_operation(const Route& route) {
  const auto operations = api_operations();
  const auto found = std::ranges::find_if(operations, [&](const ApiOperation& operation) {
    return operation.method == route.method && operation.path == route.path;
  });
  return found == operations.end() ? nullptr : &*found;
}

std::string reference(std::string_view schema) {
  return R"({"$ref":"#/components/schemas/)" + std::string(schema) + "\"}";
}

void write_content(JsonOut& out, std::string_view type, std::string_view schema) {
  out.key(type).open('{').key("schema").raw(schema).close('}');
}

void write_answers(JsonOut& out, const ApiOperation& operation) {
  out.key("responses").open('{').key("200").open('{').field("description", "the answer");
  if (!operation.answer.empty() || !operation.text_answer.empty()) {
    out.key("content").open('{');
    if (!operation.answer.empty()) write_content(out, "application/json", reference(operation.answer));
    if (operation.streams) out.key("text/event-stream").open('{').close('}');
    if (!operation.text_answer.empty()) write_content(out, operation.text_answer, R"({"type":"string"})");
    out.close('}');
  }
  out.close('}');
  const std::string errors =
      reference(operation.path.starts_with("/v1/messages") ? "AnthropicError" : "Error");
  const auto trouble = [&](std::string_view status, std::string_view what) {
    out.key(status).open('{').field("description", what).key("content").open('{');
    write_content(out, "application/json", errors);
    out.close('}').close('}');
  };
  trouble("4XX", "the request cannot be answered as it is; the error says what to change");
  trouble("503", "full, or shutting down: try again after Retry-After seconds");
  out.close('}');
}

void write_operation(JsonOut& out, const Route& route) {
  std::string method = route.method;
  std::ranges::transform(method, method.begin(), [](unsigned char c) { return std::tolower(c); });
  out.key(method).open('{');
  const ApiOperation* operation = find_operation(route);
  if (operation == nullptr) {
    out.key("responses").open('{').close('}').close('}');
    return;
  }
  out.field("operationId", operation->id).field("summary", operation->what);
  if (route.access != RouteAccess::kKey) out.key("security").open('[').close(']');
  if (route.path.ends_with("{id}"))
    out.key("parameters").raw(R"([{"name":"id","in":"path","required":true,"schema":{"type":"string"}}])");
  if (!operation->body.empty()) {
    out.key("requestBody").open('{').field("required", true).key("content").open('{');
    std::string body = reference(operation->body);
    if (!operation->other_body.empty())
      body = R"({"anyOf":[)" + body + ',' + reference(operation->other_body) + "]}";
    write_content(out, "application/json", body);
    out.close('}').close('}');
  }
  write_answers(out, *operation);
  out.close('}');
}

void write_body(JsonOut& out, const ApiBody& body) {
  out.key(body.name).open('{').field("type", "object").key("required").raw(body.required);
  out.key("properties").open('{');
  for (const auto& fields : body.fields) {
    for (const ApiField& field : fields) {
      const bool required = body.required.find('"' + std::string(field.name) + '"') != std::string_view::npos;
      out.key(field.name).open('{').field("description", field.what).key("anyOf").open('[').raw(field.schema);
      if (!required) out.raw(R"({"type":"null"})");
      out.close(']').close('}');
    }
  }
  out.close('}').key("examples").open('[').raw(body.example).close(']').close('}');
}

}  // namespace

std::string openapi_document(const std::vector<Route>& routes) {
  JsonOut out;
  out.open('{').field("openapi", "3.1.0").key("info").open('{');
  out.field("title", "Jewel").field("version", JEWEL_VERSION);
  out.field(
      "description",
      "Gemma 4 through OpenAI's and Anthropic's APIs, with vLLM's extensions. Fields that are not named "
      "here are ignored and listed in the header X-Ignored-Fields.");
  out.close('}').key("paths").open('{');
  std::map<std::string_view, std::vector<const Route*>> paths;
  for (const Route& route : routes) paths[route.path].push_back(&route);
  for (const auto& [path, methods] : paths) {
    out.key(path).open('{');
    for (const Route* route : methods) write_operation(out, *route);
    out.close('}');
  }
  out.close('}').key("security").raw(R"([{},{"bearer":[]},{"x-api-key":[]}])");
  out.key("components").open('{').key("securitySchemes");
  out.raw(R"({"bearer":{"type":"http","scheme":"bearer"},)"
          R"("x-api-key":{"type":"apiKey","in":"header","name":"x-api-key"}})");
  out.key("schemas").open('{');
  for (const ApiBody& body : api_bodies()) write_body(out, body);
  out.raw(api_schemas());
  return out.close('}').close('}').close('}').take();
}

std::vector<Route> with_document(std::vector<Route> routes) {
  routes.push_back({"GET", "/openapi.json", RouteAccess::kProbe, 0, nullptr});
  routes.back().answer = [document = openapi_document(routes)](ServerRequest&&) -> Reply {
    return ServerResponse{.body = document};
  };
  return routes;
}

}  // namespace jewel

// The OpenAPI 3.1 document at /openapi.json: every route, what it takes and what it answers.
//
// It is made of tables: ApiOperation says what a route does, ApiBody which fields a body has, in the order in
// which they are explained. That they agree with the routes of the server and with the fields that its
// readers ask for is a test's business (tests/server/openapi_test.cc), in both directions. Pure functions,
// any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/openai/router.h"

namespace jewel {

// A field of a body. `schema` is JSON; null is as good as absent for every field that is not required, and is
// not written into each schema.
struct ApiField {
  std::string_view name;
  std::string_view schema;
  std::string_view what;
};

struct ApiBody {
  std::string_view name;  // "ChatRequest"
  std::vector<std::span<const ApiField>> fields;
  std::string_view required;  // JSON, a list of names
  std::string_view example;   // JSON: small, and answered with 200
};

struct ApiOperation {
  std::string_view method;
  std::string_view path;
  std::string_view id;  // "createChatCompletion"
  std::string_view what;
  std::string_view body;         // ApiBody's name; empty: none
  std::string_view other_body;   // where a body has two forms
  std::string_view answer;       // a schema's name; empty: no JSON
  bool streams = false;          // with "stream": true, server-sent events
  std::string_view text_answer;  // content type where the answer is no JSON
};

std::span<const ApiBody> api_bodies();
std::span<const ApiOperation> api_operations();
// JSON members: "Error": {…}, … : what bodies and answers are made of.
std::string_view api_schemas();

// The document for these routes. One that no operation describes stands there with its path alone.
std::string openapi_document(const std::vector<Route>& routes);
// The routes and one more, which answers with the document of them all.
std::vector<Route> with_document(std::vector<Route> routes);

}  // namespace jewel

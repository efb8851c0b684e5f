// Router: which route a request is for, and whether it may come in before its body is read.
//
// A route's path is found as it is, under the server's root path, and, when it begins with /v1/, under
// /engines/v1/ and /engines/NAME/v1/ too, where Docker Model Runner's clients look for it. HEAD goes where
// GET goes, OPTIONS is answered here. Built once at start; any thread may ask.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "server/http/message.h"
#include "server/openai/api_error.h"
#include "server/openai/api_keys.h"

namespace jewel {

enum class RouteAccess : uint8_t {
  kAlways,  // nobody is asked for a key
  kProbe,   // a key only where everything is protected
  kKey,     // a key, if the server has any
};

struct Route {
  std::string method;
  std::string path;  // with {id} at its end: any one name
  RouteAccess access = RouteAccess::kKey;
  size_t max_body_bytes = 0;
  std::function<Reply(ServerRequest&&)> answer;
  ErrorShape errors = ErrorShape::kOpenAi;  // of what the router itself refuses
};

class Router {
 public:
  Router(std::vector<Route> routes, std::string root_path, ApiKeys keys, bool protect_all);

  Admission admit(const ServerRequest& head) const;
  // Only what admit() let in.
  Reply handle(ServerRequest&& request) const;

 private:
  std::string known_path(std::string_view path) const;
  std::vector<const Route*> routes_at(std::string_view path) const;
  const Route* find(std::string_view method, std::string_view path) const;
  ErrorShape errors_of(std::string_view path) const;
  std::string methods_of(std::string_view path) const;  // "GET, HEAD, OPTIONS"; empty: no such path

  const std::vector<Route> routes_;
  const std::string root_path_;
  const ApiKeys keys_;
  const bool protect_all_;
};

}  // namespace jewel

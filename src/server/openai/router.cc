#include "server/openai/router.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/openai/api_error.h"

namespace jewel {
namespace {

constexpr std::string_view kEngines = "/engines/";

std::string without_end_slash(std::string path) {
  while (path.ends_with('/')) path.pop_back();
  return path;
}

bool matches(std::string_view pattern, std::string_view path) {
  constexpr std::string_view kAnyName = "{id}";
  if (!pattern.ends_with(kAnyName)) return pattern == path;
  pattern.remove_suffix(kAnyName.size());
  if (!path.starts_with(pattern)) return false;
  const std::string_view name = path.substr(pattern.size());
  return !name.empty() && name.find('/') == std::string_view::npos;
}

Admission refuse(ServerResponse response) {
  return {.refusal = std::make_unique<ServerResponse>(std::move(response)), .max_body_bytes = 0};
}

}  // namespace

Router::Router(std::vector<Route> routes, std::string root_path, ApiKeys keys, bool protect_all)
    : routes_(std::move(routes)),
      root_path_(without_end_slash(std::move(root_path))),
      keys_(std::move(keys)),
      protect_all_(protect_all) {}

std::string Router::known_path(std::string_view path) const {
  // A proxy may or may not take the root path away.
  if (!root_path_.empty() && path.starts_with(root_path_) && path.substr(root_path_.size()).starts_with('/'))
    path.remove_prefix(root_path_.size());
  if (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  if (path.starts_with(kEngines)) {
    std::string_view rest = path.substr(kEngines.size());
    if (!rest.starts_with("v1/")) {
      const size_t slash = rest.find('/');
      rest = slash == std::string_view::npos ? std::string_view() : rest.substr(slash + 1);
    }
    if (rest.starts_with("v1/")) return "/" + std::string(rest);
  }
  return std::string(path);
}

// A route of that very path hides those with any name in its last place.
std::vector<const Route*> Router::routes_at(std::string_view path) const {
  std::vector<const Route*> found;
  for (const bool exact : {true, false}) {
    for (const Route& route : routes_) {
      if (exact ? route.path == path : matches(route.path, path)) found.push_back(&route);
    }
    if (!found.empty()) break;
  }
  return found;
}

const Route* Router::find(std::string_view method, std::string_view path) const {
  if (method == "HEAD") method = "GET";
  const auto routes = routes_at(path);
  const auto found = std::ranges::find(routes, method, &Route::method);
  return found == routes.end() ? nullptr : *found;
}

ErrorShape Router::errors_of(std::string_view path) const {
  const auto routes = routes_at(path);
  return routes.empty() ? ErrorShape::kOpenAi : routes.front()->errors;
}

std::string Router::methods_of(std::string_view path) const {
  std::string methods;
  for (const Route* route : routes_at(path)) {
    methods += route->method + ", ";
    if (route->method == "GET") methods += "HEAD, ";
  }
  return methods.empty() ? methods : methods + "OPTIONS";
}

Admission Router::admit(const ServerRequest& head) const {
  const std::string path = known_path(head.path);
  const std::string methods = methods_of(path);
  const Route* route = find(head.method, path);
  const ErrorShape shape = errors_of(path);
  // Without a key nobody learns which routes there are.
  const RouteAccess access = route == nullptr ? RouteAccess::kKey : route->access;
  const bool asks_key = access == RouteAccess::kKey || (access == RouteAccess::kProbe && protect_all_);
  // A browser asks by OPTIONS, without a key, whether it may send one.
  if (keys_.required() && asks_key && head.method != "OPTIONS" && !keys_.allows(head)) {
    ServerResponse response =
        error_response(401, "a valid API key is needed; send it as 'Authorization: Bearer KEY'", {}, shape);
    response.headers.push_back({.name = "WWW-Authenticate", .value = "Bearer"});
    return refuse(std::move(response));
  }
  if (methods.empty()) return refuse(error_response(404, fmt::format("there is no route {}", head.path)));
  if (head.method == "OPTIONS")
    return refuse({.status = 204, .headers = {{.name = "Allow", .value = methods}}});
  if (route == nullptr) {
    ServerResponse response =
        error_response(405, fmt::format("{} takes {}, not {}", head.path, methods, head.method), {}, shape);
    response.headers.push_back({.name = "Allow", .value = methods});
    return refuse(std::move(response));
  }
  return {.refusal = nullptr, .max_body_bytes = route->max_body_bytes};
}

Reply Router::handle(ServerRequest&& request) const {
  const Route* route = find(request.method, known_path(request.path));
  if (route == nullptr) return error_response(404, "there is no such route");
  return route->answer(std::move(request));
}

}  // namespace jewel

#include "server/http/cors.h"

#include <algorithm>
#include <utility>

namespace jewel {
namespace {

constexpr size_t kMaxOriginChars = 512;
constexpr size_t kMaxHeaderChars = 4096;
// Of ours, beside those that pages may read anyway.
constexpr std::string_view kReadable = "X-Request-Id, X-Ignored-Fields, Retry-After";
constexpr std::string_view kSeconds = "600";  // that an answer to OPTIONS may be kept

bool is_any(const std::vector<std::string>& list) {
  return std::ranges::find(list, "*") != list.end();
}

std::string joined(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& item : list) out += (out.empty() ? "" : ", ") + item;
  return out;
}

// Names of headers with commas and blanks between them.
bool is_list_of_names(std::string_view text) {
  return text.size() <= kMaxHeaderChars && std::ranges::all_of(text, [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  std::string_view("-_, ").find(c) != std::string_view::npos;
         });
}

}  // namespace

Cors::Cors(CorsRules rules) : rules_(std::move(rules)), any_origin_(is_any(rules_.origins)) {
  for (std::string& origin : rules_.origins) {
    if (origin.ends_with('/')) origin.pop_back();  // as people copy it; an Origin header has none
  }
}

bool Cors::allows(std::string_view origin) const {
  if (origin.empty() || origin.size() > kMaxOriginChars) return false;
  return any_origin_ || std::ranges::any_of(rules_.origins, [&](const std::string& listed) {
           return equal_without_case(listed, origin);
         });
}

std::vector<HttpHeader> Cors::headers_for(const ServerRequest& head) const {
  std::vector<HttpHeader> headers;
  if (!on()) return headers;
  const bool by_name = !any_origin_ || rules_.credentials;
  if (by_name) headers.push_back({.name = "Vary", .value = "Origin"});
  const std::string* origin = head.header("Origin");
  if (origin == nullptr || !allows(*origin)) return headers;
  headers.push_back({.name = "Access-Control-Allow-Origin", .value = by_name ? *origin : "*"});
  if (rules_.credentials) headers.push_back({.name = "Access-Control-Allow-Credentials", .value = "true"});
  headers.push_back({.name = "Access-Control-Expose-Headers", .value = std::string(kReadable)});
  return headers;
}

std::optional<ServerResponse> Cors::preflight(const ServerRequest& head) const {
  const std::string* origin = head.header("Origin");
  const std::string* method = head.header("Access-Control-Request-Method");
  if (!on() || head.method != "OPTIONS" || origin == nullptr || method == nullptr) return std::nullopt;
  if (!allows(*origin)) {
    return ServerResponse{
        .status = 403, .content_type = "text/plain", .body = "this origin is not one of --allowed-origins\n"};
  }
  ServerResponse response{.status = 204};
  const auto add = [&](std::string_view name, std::string value) {
    response.headers.push_back({.name = std::string(name), .value = std::move(value)});
  };
  add("Access-Control-Allow-Methods",
      is_any(rules_.methods) ? "GET, HEAD, POST, OPTIONS" : joined(rules_.methods));
  const std::string* wanted = head.header("Access-Control-Request-Headers");
  if (!is_any(rules_.headers)) {
    add("Access-Control-Allow-Headers", joined(rules_.headers));
  } else if (wanted != nullptr && is_list_of_names(*wanted)) {
    add("Access-Control-Allow-Headers", *wanted);
    add("Vary", "Access-Control-Request-Headers");
  }
  add("Access-Control-Max-Age", std::string(kSeconds));
  return response;
}

}  // namespace jewel

#include "client/server_url.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace jewel {
namespace {

Error bad_url(std::string_view text, std::string_view what) {
  return invalid(
      fmt::format("--url: found '{}', {}; expected http://host:port/v1, https://… or unix:/path", text, what),
      "url");
}

}  // namespace

std::string ServerUrl::authority() const {
  const std::string name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return port == (tls ? 443 : 80) ? name : fmt::format("{}:{}", name, port);
}

std::string ServerUrl::text() const {
  if (!unix_path.empty()) return "unix:" + unix_path;
  return fmt::format("{}://{}{}", tls ? "https" : "http", authority(), path);
}

Result<ServerUrl> parse_server_url(std::string_view text) {
  ServerUrl url;
  url.path = "/v1";
  // What goes into a request's head must not be able to end it.
  if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) <= 0x20; }))
    return bad_url(text, "which has a space or a control character");
  if (text.starts_with("unix:")) {
    url.unix_path = text.substr(5);
    while (url.unix_path.starts_with("//")) url.unix_path.erase(0, 1);
    url.host = "localhost";
    url.port = 80;
    if (url.unix_path.empty()) return bad_url(text, "which has no path");
    return url;
  }
  std::string_view rest = text;
  const size_t scheme = text.find("://");
  if (scheme != std::string_view::npos) {
    const std::string_view name = text.substr(0, scheme);
    if (name != "http" && name != "https") return bad_url(text, fmt::format("whose scheme is '{}'", name));
    url.tls = name == "https";
    rest = text.substr(scheme + 3);
  }
  const size_t slash = rest.find('/');
  std::string_view authority = rest.substr(0, slash);
  if (slash != std::string_view::npos) {
    std::string_view path = rest.substr(slash);
    if (path.find_first_of("?#") != std::string_view::npos)
      return bad_url(text, "which has a query or a fragment");
    while (path.ends_with('/')) path.remove_suffix(1);
    if (!path.empty()) url.path = path;
  }
  if (authority.find('@') != std::string_view::npos)
    return bad_url(text, "which has a user in it; give the key with --api-key");
  std::string_view port;
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad_url(text, "whose '[' is not closed");
    url.host = authority.substr(1, close - 1);
    port = authority.substr(close + 1);
    if (!port.empty() && !port.starts_with(':')) return bad_url(text, "with words behind ']'");
    if (!port.empty()) port.remove_prefix(1);
  } else {
    const size_t colon = authority.find(':');
    url.host = authority.substr(0, colon);
    if (colon != std::string_view::npos) port = authority.substr(colon + 1);
  }
  if (url.host.empty()) return bad_url(text, "which names no host");
  url.port = url.tls ? 443 : 80;
  if (!port.empty()) {
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
    if (error != std::errc() || end != port.data() + port.size() || url.port < 1 || url.port > 65535)
      return bad_url(text, fmt::format("whose port is '{}'", port));
  }
  return url;
}

}  // namespace jewel

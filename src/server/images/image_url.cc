#include "server/images/image_url.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace jewel {
namespace {

constexpr size_t kMaxChars = 8192;

char small(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool starts_with(std::string_view text, std::string_view scheme) {
  return text.size() >= scheme.size() &&
         std::ranges::equal(text.substr(0, scheme.size()), scheme, {}, [](char c) { return small(c); });
}

int hex(char c) {
  if (is_digit(c)) return c - '0';
  const char s = small(c);
  return s >= 'a' && s <= 'f' ? s - 'a' + 10 : -1;
}

Error strange(std::string_view what) {
  return invalid(fmt::format("the address has {}; write it as https://host/path", what));
}

// "host", "host:8080", "[::1]:8080" without the port.
Result<std::string> host_of(std::string_view authority) {
  std::string_view host = authority;
  std::string_view port;
  const bool v6 = authority.starts_with('[');
  if (v6) {
    const size_t end = authority.find(']');
    if (end == std::string_view::npos) return strange("a bracket that does not close");
    host = authority.substr(1, end - 1);
    port = authority.substr(end + 1);
  } else if (const size_t colon = authority.find(':'); colon != std::string_view::npos) {
    host = authority.substr(0, colon);
    port = authority.substr(colon);
  }
  unsigned number = 0;
  const bool digits =
      port.empty() || (port.size() <= 6 && port[0] == ':' && std::ranges::all_of(port.substr(1), is_digit));
  if (digits && port.size() > 1) std::from_chars(port.data() + 1, port.data() + port.size(), number);
  if (!digits || number > 65535) return strange("a port that is none");
  if (host.ends_with('.')) host.remove_suffix(1);
  const auto fits = [v6](char c) {
    if (v6) return hex(c) >= 0 || c == ':' || c == '.';
    const char s = small(c);
    return is_digit(c) || (s >= 'a' && s <= 'z') || c == '-' || c == '.' || c == '_';
  };
  if (host.empty() || host.size() > 253) return strange("no host");
  if (!std::ranges::all_of(host, fits))
    return strange("a host with other characters than letters and digits");
  std::string out(host);
  std::ranges::transform(out, out.begin(), small);
  return out;
}

std::optional<std::string> percent_decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = hex(text[i + 1]);
    const int low = hex(text[i + 2]);
    if (high < 0 || low < 0 || high + low == 0) return std::nullopt;  // not a NUL either
    out += static_cast<char>(high << 4 | low);
    i += 2;
  }
  return out;
}

}  // namespace

bool looks_like_image_url(std::string_view text) {
  constexpr auto kSchemes = std::to_array<std::string_view>({"http:", "https:", "file:"});
  return std::ranges::any_of(kSchemes, [&](std::string_view scheme) { return starts_with(text, scheme); });
}

Result<ImageUrl> parse_image_url(std::string_view url) {
  if (url.size() > kMaxChars)
    return invalid(fmt::format("the address has {} characters, the limit is {}", url.size(), kMaxChars));
  if (std::ranges::any_of(url, [](char c) { return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f; }))
    return strange("white space or control characters");
  ImageUrl out;
  size_t after_scheme = 0;
  for (const std::string_view scheme : {"http://", "https://", "file://"}) {
    if (!starts_with(url, scheme)) continue;
    after_scheme = scheme.size();
    out.kind = scheme == "file://" ? ImageUrl::Kind::kFile : ImageUrl::Kind::kHttp;
  }
  if (after_scheme == 0) return invalid("the address is none of http://, https:// and file://");
  const std::string_view rest = url.substr(after_scheme);
  if (rest.find('\\') != std::string_view::npos) return strange("a backslash");
  const std::string_view authority = rest.substr(0, rest.find_first_of("/?#"));
  if (out.kind == ImageUrl::Kind::kFile) {
    if (!authority.empty() && authority != "localhost")
      return invalid("a file's address has three slashes: file:///directory/picture.png");
    const auto path = percent_decoded(rest.substr(authority.size()));
    if (!path || !path->starts_with('/'))
      return invalid("the file's path is malformed; write file:///directory/picture.png");
    out.path = *path;
    return out;
  }
  if (authority.find('@') != std::string_view::npos) return strange("a user name");
  JEWEL_ASSIGN(out.host, host_of(authority));
  return out;
}

}  // namespace jewel

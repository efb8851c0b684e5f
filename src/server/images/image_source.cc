#include "server/images/image_source.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>

#include "hub/http.h"
#include "image/sniff.h"
#include "server/http/message.h"
#include "server/images/image_url.h"
#include "server/images/public_address.h"

namespace jewel {
namespace {

constexpr size_t kSniffBytes = 64;  // more than any format needs to be told

Error no_picture(const std::string& where, std::string_view why) {
  return not_found(fmt::format("{}: {}", where, why));
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string no_image_text(std::string_view begin) {
  return fmt::format("gave {}, expected {}", describe_unknown(bytes_of(begin)), kAcceptedFormats);
}

// One fetch: what was seen on the way, so that its end can be told in our own words.
class Fetch {
 public:
  explicit Fetch(size_t max_bytes) : max_bytes_(max_bytes) {}

  bool on_headers(const HttpResponse& response) {
    if (response.status != 200) {
      problem_ = fmt::format("answered {} {}", response.status, reason_phrase(response.status));
    } else if (const std::string coding = response.header("content-encoding");
               !coding.empty() && !equal_without_case(coding, "identity")) {
      problem_ = "sent the picture compressed, which was not asked for";
    } else {
      const std::string length = response.header("content-length");
      uint64_t bytes = 0;
      const auto read = std::from_chars(length.data(), length.data() + length.size(), bytes);
      if (read.ec == std::errc() && bytes > max_bytes_) problem_ = too_large_text();
    }
    return problem_.empty();
  }

  bool on_body(std::span<const char> piece) {
    body_.append(piece.data(), piece.size());
    if (body_.size() > max_bytes_) {
      problem_ = too_large_text();
    } else if (!sniffed_ && body_.size() >= kSniffBytes) {
      sniff();
    }
    return problem_.empty();
  }

  // The end of the body was seen.
  void end() {
    if (problem_.empty() && !sniffed_) sniff();
  }

  const std::string& problem() const { return problem_; }
  std::string take() { return std::move(body_); }

 private:
  void sniff() {
    sniffed_ = true;
    if (body_.empty()) {
      problem_ = "sent an empty body, expected a picture";
    } else if (sniff_format(bytes_of(body_)) == ImageFormat::kUnknown) {
      problem_ = no_image_text(body_);
    }
  }
  std::string too_large_text() const {
    return fmt::format("the picture is larger than the limit of {} bytes", max_bytes_);
  }

  const size_t max_bytes_;
  std::string body_;
  std::string problem_;
  bool sniffed_ = false;
};

// What an open file really is, whatever became of its name meanwhile; empty when the kernel does not say.
std::string path_of(int fd) {
  char buffer[4096];
  const ssize_t n = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), buffer, sizeof(buffer));
  return n > 0 && static_cast<size_t>(n) < sizeof(buffer) ? std::string(buffer, static_cast<size_t>(n)) : "";
}

bool is_inside(const std::string& path, const std::string& directory) {
  if (directory == "/") return path.starts_with('/');
  return path.starts_with(directory + "/");
}

struct CloseFile {
  int fd;
  ~CloseFile() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

ImageSource::ImageSource(ImageRules rules)
    : rules_([&] {
        if (!rules.public_address) rules.public_address = is_public_address;
        if (rules.hosts) {
          for (std::string& host : *rules.hosts) {
            std::ranges::transform(host, host.begin(), [](unsigned char c) { return std::tolower(c); });
            if (host.starts_with("*.")) host.erase(0, 1);
            if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
          }
        }
        return std::move(rules);
      }()) {}

ImageSource::Listing ImageSource::listing(const std::string& host) const {
  Listing found = Listing::kNo;
  for (const std::string& listed : rules_.hosts.value_or(std::vector<std::string>())) {
    if (listed == host) return Listing::kNamed;
    if (listed.starts_with('.') && host.ends_with(listed)) found = Listing::kBelow;
  }
  return found;
}

bool ImageSource::may_ask(const std::string& host) const {
  return !rules_.hosts || listing(host) != Listing::kNo;
}

Result<void> ImageSource::check(std::string_view url) const {
  JEWEL_ASSIGN(const ImageUrl parsed, parse_image_url(url));
  if (parsed.kind == ImageUrl::Kind::kFile) {
    if (rules_.local_directory.empty()) {
      return invalid(
          "files of the server are not served; start it with --allowed-local-media-path, or send a data URL");
    }
    const std::string path = std::filesystem::path(parsed.path).lexically_normal().string();
    if (!is_inside(path, rules_.local_directory))
      return invalid("the file is not under the directory that --allowed-local-media-path names");
    return {};
  }
  if (rules_.hosts && rules_.hosts->empty())
    return invalid("pictures are not fetched by this server; send a data URL (data:image/png;base64,…)");
  if (!may_ask(parsed.host)) {
    return invalid(fmt::format("{}: not one of the hosts that --allowed-media-domains names", parsed.host));
  }
  if (!rules_.can_fetch) {
    return unsupported(
        "fetching pictures needs libcurl, which the server does not have (Debian: libcurl4); send a data URL "
        "(data:image/png;base64,…)");
  }
  return {};
}

Result<std::string> ImageSource::load(const std::string& url, const std::atomic<bool>& cancelled) const {
  JEWEL_TRY(check(url));
  JEWEL_ASSIGN(const ImageUrl parsed, parse_image_url(url));
  if (parsed.kind == ImageUrl::Kind::kFile) return read(parsed.path);
  return fetch(url, parsed.host, cancelled);
}

Result<std::string> ImageSource::fetch(const std::string& url, const std::string& first_host,
                                       const std::atomic<bool>& cancelled) const {
  Fetch fetch(rules_.max_bytes);
  std::string host = first_host;  // that is asked now
  std::string refusal;
  int redirects = 0;
  HttpRequest request;
  request.url = url;
  request.headers = {"Accept: image/*", "Accept-Encoding: identity"};
  request.allow_http = true;
  request.connect_timeout_s = rules_.connect_timeout_s;
  request.total_timeout_s = rules_.timeout_s;
  request.stall_timeout_s = rules_.timeout_s;
  request.max_redirects = rules_.max_redirects + 1;  // allow_redirect counts them, and says so in our words
  request.cancelled = &cancelled;
  request.allow_address = [&](const sockaddr* address) {
    const bool good = listing(host) == Listing::kNamed || rules_.public_address(address);
    refusal = good ? "" : fmt::format("{}: its address is not of the public internet", host);
    return good;
  };
  request.allow_redirect = [&](const std::string& next) {
    const auto parsed = parse_image_url(next);
    if (++redirects > rules_.max_redirects) {
      refusal = rules_.max_redirects == 0
                    ? fmt::format("{}: redirects elsewhere, and redirects are not followed", first_host)
                    : fmt::format("{}: more than {} redirects", first_host, rules_.max_redirects);
    } else if (!parsed.ok() || parsed->kind != ImageUrl::Kind::kHttp || !may_ask(parsed->host)) {
      refusal = fmt::format("{}: redirects to where pictures may not be fetched from", first_host);
    } else {
      host = parsed->host;
      return true;
    }
    return false;
  };
  request.on_headers = [&](const HttpResponse& response) { return fetch.on_headers(response); };
  request.on_body = [&](std::span<const char> piece) { return fetch.on_body(piece); };
  const auto response = http_get(request);
  if (!response.ok()) {
    if (response.error().code == ErrorCode::kCancelled) return response.error();
    if (response.error().code == ErrorCode::kInvalid && !refusal.empty()) return invalid(refusal);
    return not_found(response.error().message);  // it names the host, and what libcurl says
  }
  fetch.end();
  if (!fetch.problem().empty()) return no_picture(first_host, fetch.problem());
  return fetch.take();
}

Result<std::string> ImageSource::read(const std::string& path) const {
  const Error missing = not_found(
      "there is no such file under the directory that --allowed-local-media-path names, or it cannot be "
      "read");
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), &std::free);
  if (real == nullptr || !is_inside(real.get(), rules_.local_directory)) return missing;
  const CloseFile file{::open(real.get(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)};
  struct stat status{};
  // A directory on the way may have become a link since realpath(): what counts is what was opened.
  if (file.fd < 0 || ::fstat(file.fd, &status) != 0 || !is_inside(path_of(file.fd), rules_.local_directory))
    return missing;
  if (!S_ISREG(status.st_mode)) return not_found("the file is not a regular one");
  std::string bytes;
  char buffer[64 << 10];
  while (bytes.size() <= rules_.max_bytes) {
    const ssize_t n = ::read(file.fd, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return missing;
    if (n == 0) break;
    bytes.append(buffer, static_cast<size_t>(n));
  }
  if (bytes.size() > rules_.max_bytes)
    return not_found(fmt::format("the file is larger than the limit of {} bytes", rules_.max_bytes));
  if (sniff_format(bytes_of(bytes)) == ImageFormat::kUnknown)
    return not_found("the file " + no_image_text(std::string_view(bytes).substr(0, kSniffBytes)));
  return bytes;
}

}  // namespace jewel

#include "hub/http.h"

#include <curl/curl.h>
#include <dlfcn.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <memory>

namespace jewel {
namespace {

// libcurl's entry points, found once.
struct Curl {
  decltype(&curl_global_init) global_init = nullptr;
  decltype(&curl_easy_init) easy_init = nullptr;
  decltype(&curl_easy_cleanup) easy_cleanup = nullptr;
  decltype(&curl_easy_setopt) easy_setopt = nullptr;
  decltype(&curl_easy_getinfo) easy_getinfo = nullptr;
  decltype(&curl_easy_perform) easy_perform = nullptr;
  decltype(&curl_easy_strerror) easy_strerror = nullptr;
  decltype(&curl_slist_append) slist_append = nullptr;
  decltype(&curl_slist_free_all) slist_free_all = nullptr;
  bool good = false;

  Curl() {
    void* library = nullptr;
    for (const char* name : {"libcurl.so.4", "libcurl-gnutls.so.4", "libcurl.so"}) {
      library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) break;
    }
    if (!library) return;
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    good = find(global_init, "curl_global_init") && find(easy_init, "curl_easy_init") &&
           find(easy_cleanup, "curl_easy_cleanup") && find(easy_setopt, "curl_easy_setopt") &&
           find(easy_getinfo, "curl_easy_getinfo") && find(easy_perform, "curl_easy_perform") &&
           find(easy_strerror, "curl_easy_strerror") && find(slist_append, "curl_slist_append") &&
           find(slist_free_all, "curl_slist_free_all") && global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK;
  }
};

const Curl& curl() {
  static const Curl library;
  return library;
}

std::string trimmed(std::string_view text) {
  const auto space = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  return std::string(text);
}

std::string host_of(const std::string& url) {
  const size_t start = url.find("://");
  if (start == std::string::npos) return url;
  return url.substr(start + 3, url.find_first_of("/?#", start + 3) - start - 3);
}

bool is_redirect(int status) {
  return (status >= 301 && status <= 303) || status == 307 || status == 308;
}

// One answer at a time: redirects are followed here, so that each can be asked about and no token travels on.
class Transfer {
 public:
  Transfer(const HttpRequest& request, const std::string& url, bool with_token, long timeout_ms)
      : request_(request), handle_(curl().easy_init()) {
    response_.url = url;
    for (const std::string& header : request.headers) add_header(header);
    if (with_token && !request.bearer_token.empty())
      add_header("Authorization: Bearer " + request.bearer_token);
    set(CURLOPT_URL, url.c_str());
    set(CURLOPT_HTTPHEADER, headers_);
    set(CURLOPT_USERAGENT, "jewel/" JEWEL_VERSION);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_PROTOCOLS_STR, request.allow_http ? "http,https" : "https");
    set(CURLOPT_CONNECTTIMEOUT, static_cast<long>(request.connect_timeout_s));
    set(CURLOPT_TIMEOUT_MS, timeout_ms);
    set(CURLOPT_LOW_SPEED_LIMIT, 1L);
    set(CURLOPT_LOW_SPEED_TIME, static_cast<long>(request.stall_timeout_s));
    set(CURLOPT_BUFFERSIZE, 512L << 10);
    if (request.head) set(CURLOPT_NOBODY, 1L);
    // Not RESUME_FROM: that makes an error of a server that sends the whole file.
    if (request.first_byte > 0) set(CURLOPT_RANGE, fmt::format("{}-", request.first_byte).c_str());
    set(CURLOPT_HEADERFUNCTION, &Transfer::on_header);
    set(CURLOPT_HEADERDATA, this);
    set(CURLOPT_WRITEFUNCTION, &Transfer::on_body);
    set(CURLOPT_WRITEDATA, this);
    set(CURLOPT_NOPROGRESS, 0L);
    set(CURLOPT_XFERINFOFUNCTION, &Transfer::on_progress);
    set(CURLOPT_XFERINFODATA, this);
    if (request.allow_address) {
      set(CURLOPT_OPENSOCKETFUNCTION, &Transfer::on_open_socket);
      set(CURLOPT_OPENSOCKETDATA, this);
      set(CURLOPT_PROXY, "");  // a proxy would resolve and connect for us
    }
  }
  ~Transfer() {
    curl().easy_cleanup(handle_);
    curl().slist_free_all(headers_);
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  Result<HttpResponse> run() {
    if (!handle_) return unavailable("libcurl gave no handle");
    error_text_[0] = '\0';
    set(CURLOPT_ERRORBUFFER, error_text_.data());
    const CURLcode code = curl().easy_perform(handle_);
    if (refused_) {
      return invalid(
          fmt::format("{}: its address is not one that may be connected to", host_of(response_.url)));
    }
    if (response_.stopped) return std::move(response_);
    if (request_.cancelled && request_.cancelled->load())
      return Error{ErrorCode::kCancelled, "cancelled", {}};
    if (code != CURLE_OK) {
      const std::string why = error_text_[0] ? error_text_.data() : curl().easy_strerror(code);
      const bool bad_url = code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL;
      const std::string message = fmt::format("{}: {}", host_of(response_.url), why);
      return bad_url ? invalid(message) : unavailable(message);
    }
    // A body of no bytes never reached on_body.
    if (!is_redirect(response_.status) && !headers_told_) tell_headers();
    return std::move(response_);
  }

  // The absolute address that a redirect names.
  std::string redirect_url() {
    const char* url = nullptr;
    curl().easy_getinfo(handle_, CURLINFO_REDIRECT_URL, &url);
    return url ? url : "";
  }

 private:
  template <typename T>
  void set(CURLoption option, T value) {
    if (handle_) curl().easy_setopt(handle_, option, value);
  }
  void add_header(const std::string& header) { headers_ = curl().slist_append(headers_, header.c_str()); }

  bool tell_headers() {
    headers_told_ = true;
    if (request_.on_headers && !request_.on_headers(response_)) response_.stopped = true;
    return !response_.stopped;
  }

  static size_t on_header(char* data, size_t size, size_t count, void* self_pointer) {
    auto* self = static_cast<Transfer*>(self_pointer);
    const std::string_view line(data, size * count);
    if (line.starts_with("HTTP/")) {  // a new answer: 100 Continue, then the real one
      self->response_.headers.clear();
      self->response_.status = 0;
      if (const size_t space = line.find(' '); space != std::string_view::npos)
        std::from_chars(line.data() + space + 1, line.data() + line.size(), self->response_.status);
    } else if (const size_t colon = line.find(':'); colon != std::string_view::npos) {
      std::string name(line.substr(0, colon));
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      if (self->response_.headers.size() < 200)
        self->response_.headers[name] = trimmed(line.substr(colon + 1));
    }
    return size * count;
  }

  static size_t on_body(char* data, size_t size, size_t count, void* self_pointer) {
    auto* self = static_cast<Transfer*>(self_pointer);
    const size_t bytes = size * count;
    if (is_redirect(self->response_.status)) return bytes;  // its text is for browsers
    if (!self->headers_told_ && !self->tell_headers()) return CURL_WRITEFUNC_ERROR;
    if (self->request_.on_body && !self->request_.on_body({data, bytes})) {
      self->response_.stopped = true;
      return CURL_WRITEFUNC_ERROR;
    }
    return bytes;
  }

  static int on_progress(void* self_pointer, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    const auto* self = static_cast<const Transfer*>(self_pointer);
    return self->request_.cancelled && self->request_.cancelled->load() ? 1 : 0;
  }

  static curl_socket_t on_open_socket(void* self_pointer, curlsocktype, curl_sockaddr* address) {
    auto* self = static_cast<Transfer*>(self_pointer);
    if (!self->request_.allow_address(&address->addr)) {
      self->refused_ = true;
      return CURL_SOCKET_BAD;
    }
    self->refused_ = false;  // another address of the host may do
    return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  }

  const HttpRequest& request_;
  CURL* handle_;
  curl_slist* headers_ = nullptr;
  HttpResponse response_;
  bool headers_told_ = false;
  bool refused_ = false;
  std::array<char, CURL_ERROR_SIZE> error_text_{};
};

}  // namespace

std::string HttpResponse::header(const std::string& lower_case_name) const {
  const auto it = headers.find(lower_case_name);
  return it == headers.end() ? "" : it->second;
}

bool http_works() {
  return curl().good;
}

Result<HttpResponse> http_get(const HttpRequest& request) {
  if (!curl().good) {
    return unavailable(
        "fetching needs libcurl, and libcurl.so.4 was not found; install it (Debian: libcurl4)");
  }
  std::string url = request.url;
  bool same_host = true;
  const auto start = std::chrono::steady_clock::now();
  const std::chrono::milliseconds limit(int64_t{1000} * request.total_timeout_s);
  for (int hop = 0; hop <= request.max_redirects; ++hop) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(start + limit - std::chrono::steady_clock::now());
    if (limit.count() > 0 && left.count() <= 0)
      return unavailable(
          fmt::format("{}: no answer after {} s", host_of(request.url), request.total_timeout_s));
    Transfer transfer(request, url, same_host, limit.count() > 0 ? static_cast<long>(left.count()) : 0);
    JEWEL_ASSIGN(HttpResponse response, transfer.run());
    if (response.stopped || !is_redirect(response.status)) return response;
    std::string next = transfer.redirect_url();
    if (next.empty()) return invalid(fmt::format("{}: redirects to nowhere", host_of(url)));
    if (request.allow_redirect && !request.allow_redirect(next)) {
      return invalid(fmt::format("{}: redirects to {}, which is not allowed", host_of(url), host_of(next)));
    }
    same_host = same_host && host_of(next) == host_of(url);
    url = std::move(next);
  }
  return invalid(fmt::format("{}: more than {} redirects", host_of(request.url), request.max_redirects));
}

}  // namespace jewel

// HTTP(S) GET and HEAD by libcurl, which is opened at run time: a program that never fetches needs no
// libcurl, and one binary runs where there is none.
//
// Blocking; any thread, many at once. Certificates are checked against the system's. Proxies are taken from
// the environment as curl does.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

struct HttpRequest {
  std::string url;
  bool head = false;
  std::vector<std::string> headers;  // "Name: value"
  std::string bearer_token;          // sent to the first host only, never to one it redirects to
  int64_t first_byte = 0;            // > 0: asks for the rest of the body from there
  int max_redirects = 5;
  bool allow_http = false;  // false: https alone, redirects too
  int connect_timeout_s = 10;
  int total_timeout_s = 0;   // of all redirects together; 0: none
  int stall_timeout_s = 30;  // no byte for so long
  // Asked for each address that is about to be connected to, after the name was resolved; false refuses it.
  std::function<bool(const sockaddr* address)> allow_address;
  // Asked before each redirect is followed, with the whole new address; false refuses it.
  std::function<bool(const std::string& url)> allow_redirect;
  // The final answer's headers are there, its body is not; false ends the request (HttpResponse::stopped).
  std::function<bool(const struct HttpResponse&)> on_headers;
  // Parts of the final answer's body; false ends the request.
  std::function<bool(std::span<const char>)> on_body;
  const std::atomic<bool>* cancelled = nullptr;
};

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // of the final answer; names in lower case
  std::string url;                             // after redirects
  bool stopped = false;                        // on_headers or on_body said false

  std::string header(const std::string& lower_case_name) const;
};

// Any answer of a server is a response, whatever its status. Errors: kUnavailable (no libcurl, no connection,
// cut off, too slow: the message names the host), kInvalid (a bad URL, a refused address or redirect),
// kCancelled.
Result<HttpResponse> http_get(const HttpRequest& request);

// Whether there is a libcurl on this machine.
bool http_works();

}  // namespace jewel

// ServerUrl: where an OpenAI server is.  "http://host:8000/v1", "https://api.example.org/v1",
// "http://[::1]:8000", "unix:/run/jewel.sock", "host:8000". Without a path: /v1. Pure functions, any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

struct ServerUrl {
  bool tls = false;
  std::string host;  // without brackets; "localhost" for a Unix socket
  int port = 0;
  std::string path;       // "/v1", without a slash at its end
  std::string unix_path;  // empty: TCP

  std::string authority() const;  // for the Host header: "host:8000", "[::1]:8000"
  std::string text() const;       // the whole again
};

// Errors: kInvalid, say what of the text is wrong.
Result<ServerUrl> parse_server_url(std::string_view text);

}  // namespace jewel

// How the HTTP server listens and what it puts up with. Plain data.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>

namespace jewel {

struct HttpTls {
  std::string keyfile;
  std::string certfile;  // empty: no TLS
  std::string ca_certs;
  int cert_reqs = 0;  // of clients: 0 none, 1 optional, 2 required
};

struct HttpOptions {
  std::string host;                // empty: every interface, IPv6 and IPv4
  int port = 8000;                 // 0: any free one
  std::optional<std::string> uds;  // a Unix socket in place of host and port
  HttpTls tls;
  int threads = 2;

  int max_connections = 4096;                      // more are answered 503
  size_t max_header_bytes = 64 << 10;              // of a request's head
  size_t max_buffered_bytes = 512 << 20;           // of all bodies that are being read or answered; more: 503
  std::chrono::milliseconds idle_timeout{75'000};  // between requests; above the 60 s of common proxies
  std::chrono::milliseconds header_timeout{15'000};  // from a head's first byte to its last
  // A body must be here after this long plus its bytes at min_body_rate: slow lines may send large pictures,
  // nobody may hold a connection by a byte now and then.
  std::chrono::milliseconds body_timeout{30'000};
  double min_body_rate = 16 << 10;                  // bytes per second
  std::chrono::milliseconds write_timeout{60'000};  // of one write, at most 64 KiB or one whole response
};

}  // namespace jewel

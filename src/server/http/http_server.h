// HttpServer: listens, and has every request answered by an HttpHandler. HTTP/1.1 over TCP, TLS or a Unix
// socket; HTTP/2 belongs to the proxy in front.
//
//   auto server = HttpServer::start(options, handler);
//   ...
//   (*server)->drain(std::chrono::seconds(30));
//
// Threads: it runs `options.threads` of its own, on which the handler is called. Its methods may be called
// from any other thread. The handler outlives it.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "base/result.h"
#include "server/http/message.h"
#include "server/http/options.h"

namespace jewel {

class HttpServer {
 public:
  // Errors: the address is taken or not ours, the TLS files are no good.
  static Result<std::unique_ptr<HttpServer>> start(HttpOptions options, HttpHandler& handler);
  ~HttpServer();  // closes everything at once
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;             // 0 on a Unix socket
  std::string address() const;  // "http://0.0.0.0:8000", "unix:/run/jewel.sock"
  int connections() const;

  // Stops listening and closes idle connections; answers under way go on. True when all have ended within
  // the limit; else the rest are told to end with an error and get a moment to say so.
  bool drain(std::chrono::milliseconds limit);
  // Makes a drain() under way give up waiting.
  void stop_now();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

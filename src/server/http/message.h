// What travels between the HTTP layer and those who answer: requests, whole responses, and answers that come
// bit by bit. Plain data and one interface; nothing here knows about sockets. (The hub, which is a client,
// has an HttpRequest of its own.)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace jewel {

struct HttpHeader {
  std::string name;
  std::string value;
};

struct ServerRequest {
  std::string method;  // as sent: "GET"
  std::string path;    // before '?', not decoded
  std::string query;   // behind it
  std::vector<HttpHeader> headers;
  std::string body;
  std::string id;    // the client's X-Request-Id, or one of ours
  std::string peer;  // the client's address without its port; empty on a Unix socket

  // Names are compared without case; nullptr when absent. The first of several.
  const std::string* header(std::string_view name) const;
};

struct ServerResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;
  std::string body;
};

// An answer under way. The connection calls start() once, then take() whenever it was woken and its socket
// has room: a client that reads slowly is asked for less often, and what came meanwhile comes as one piece.
// All calls are made by one thread at a time; `wake` may be called from any thread, also after the end.
// Destroying a PendingReply before its end means that the client is gone: the work behind it is cancelled.
class PendingReply {
 public:
  PendingReply() = default;
  virtual ~PendingReply() = default;
  PendingReply(const PendingReply&) = delete;
  PendingReply& operator=(const PendingReply&) = delete;

  virtual void start(std::function<void()> wake) = 0;

  struct Progress {
    // Set once, before or with the first piece of the body. `done` in the same call: a whole response.
    std::unique_ptr<ServerResponse> head;
    std::string body;
    bool done = false;
  };
  virtual Progress take() = 0;

  // The server stops and waits no longer: end soon, with an error that says so.
  virtual void stop() = 0;
};

using Reply = std::variant<ServerResponse, std::unique_ptr<PendingReply>>;

// What the head of a request is told before its body is read: a refusal, or how long the body may be.
struct Admission {
  std::unique_ptr<ServerResponse> refusal;
  size_t max_body_bytes = 0;
  std::shared_ptr<void> lease;  // kept until the answer has ended, however it ends
};

// A request that has ended, for logs.
struct FinishedRequest {
  std::string id;
  std::string peer;
  std::string method;
  std::string path;
  int status = 0;        // that was sent; 0: the client left before
  size_t bytes_in = 0;   // of the body
  size_t bytes_out = 0;  // with the head
  double seconds = 0;    // from the head's last byte
  bool whole = false;    // false: the client left, or the answer broke off
};

// Who answers. Called from the server's threads, several at a time.
class HttpHandler {
 public:
  HttpHandler() = default;
  virtual ~HttpHandler() = default;
  HttpHandler(const HttpHandler&) = delete;
  HttpHandler& operator=(const HttpHandler&) = delete;

  virtual Admission admit(const ServerRequest& head) = 0;
  virtual Reply handle(ServerRequest&& request) = 0;
  // Trouble that the HTTP layer sees itself (a malformed head, a timeout, too many connections) in the shape
  // that clients of this handler expect. `message` is a whole sentence.
  virtual ServerResponse trouble(int status, std::string_view message) = 0;
  // Headers for whatever this request is answered with, refusals and troubles included.
  virtual std::vector<HttpHeader> headers_for(const ServerRequest& /*head*/) { return {}; }
  // Once for every request whose head was read; cheap, and does not block.
  virtual void finished(const FinishedRequest& /*request*/) {}
};

// "Not Found"; "Error" for what has no name.
std::string_view reason_phrase(int status);

bool equal_without_case(std::string_view a, std::string_view b);

}  // namespace jewel

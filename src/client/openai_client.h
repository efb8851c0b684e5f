// OpenAiClient: asks any server with OpenAI's chat API (Jewel, vLLM, llama.cpp, …), many requests at once.
//
//   JEWEL_ASSIGN(auto client, OpenAiClient::open({.url = "http://localhost:8000/v1"}));
//   JEWEL_ASSIGN(ChatAnswer answer, client->ask({{"messages", …}, {"max_tokens", 64}, {"temperature", 0}}));
//
// HTTP/1.1 over TCP, TLS or a Unix socket. Connections are kept and used again; there are as many as requests
// under way. Every chat request is streamed, because only a stream shows when a token came.
//
// Threads: a client runs one thread, on which all its connections live and `on_end` is called. Its methods
// may be called from any other thread; ask(), get() and post() block and must not be called from on_end.
//
// Errors: kUnavailable (no connection, TLS, a timeout, a stream that was cut off), kInvalid (a bad URL; an
// answer that is not what the API promises, with its beginning), else by the server's status: 400 and 422
// kInvalid, 401, 403 and 404 kNotFound, 413 kTooLarge, 429 and 503 kUnavailable, 5xx kInternal. Messages name
// the URL and what the server said.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "client/chat_answer.h"

namespace jewel {

struct ClientOptions {
  std::string url;      // "http://host:8000/v1", "https://…", "unix:/run/jewel.sock"; without a path: /v1
  std::string api_key;  // sent as a bearer token when not empty
  std::string model;    // empty: the first that the server lists
  std::string ca_file;  // TLS: PEM file of authorities; empty: the system's
  bool verify_tls = true;
  std::chrono::milliseconds connect_timeout{10'000};  // name, TCP and TLS together
  std::chrono::milliseconds stall_timeout{600'000};  // no byte for so long: a long prompt on a CPU takes long
  size_t max_answer_bytes = size_t{256} << 20;       // of one response's body
};

class OpenAiClient {
 public:
  // Looks at the server's list of models, so that a wrong address, key or name shows here.
  static Result<std::unique_ptr<OpenAiClient>> open(ClientOptions options);
  ~OpenAiClient();  // what is under way ends with kCancelled
  OpenAiClient(const OpenAiClient&) = delete;
  OpenAiClient& operator=(const OpenAiClient&) = delete;

  const std::string& model() const;         // the name that requests are sent with
  std::string url() const;                  // as it is used: "http://host:8000/v1"
  const boost::json::object& card() const;  // the model's entry of the server's list
  bool on_this_machine() const;             // a loopback address, or a Unix socket

  // The request as it goes over the wire: `model` is filled in where absent, streaming and usage switched on.
  std::string chat_body(boost::json::object request) const;

  // One chat request, to its end.
  Result<ChatAnswer> ask(boost::json::object request);

  // The same without waiting. `body` is what chat_body() gave.
  using OnEnd = std::function<void(Result<ChatAnswer>)>;
  void start(std::shared_ptr<const std::string> body, OnEnd on_end);

  // Any other route below the URL, answered in whole JSON: post("/completions", …), get("/models").
  Result<boost::json::value> post(const std::string& route, const boost::json::object& request);
  Result<boost::json::value> get(const std::string& route);

 private:
  class Impl;
  explicit OpenAiClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

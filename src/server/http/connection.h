// A client's connection: reads a request's head, asks the handler whether it may come in, reads its body, has
// it answered, and starts over. One coroutine on one strand; drain() and abort() may be called from any
// thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "server/http/message.h"
#include "server/http/options.h"
#include "server/http/request_parser.h"
#include "server/http/transport.h"

namespace jewel {

class Connection;

// What all connections share. Any thread.
class ConnectionTable {
 public:
  void add(const std::shared_ptr<Connection>& connection);
  void remove(const Connection* connection);
  int size() const;
  // Of every connection that there is now.
  void for_each(const std::function<void(Connection&)>& visit) const;

  // Memory for bodies: false when the limit would be passed.
  bool take_bytes(size_t bytes, size_t limit);
  void give_bytes(size_t bytes) { buffered_ -= bytes; }

  std::atomic<bool> draining{false};

 private:
  mutable std::mutex mutex_;
  std::unordered_map<const Connection*, std::weak_ptr<Connection>> connections_;
  std::atomic<size_t> buffered_{0};
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `refuse`: there are too many; the first request is answered 503.
  Connection(std::shared_ptr<Transport> transport, asio::any_io_executor strand, HttpHandler& handler,
             const HttpOptions& options, std::shared_ptr<ConnectionTable> table, bool refuse);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  asio::awaitable<void> run();

  void drain();  // closes when it is idle, else after the answer under way
  void stop();   // ends the answer under way, if any, with an error
  void abort();  // closes at once

 private:
  class Waker;
  class Bell;
  class BodyBytes;
  enum class Next : uint8_t { kRequest, kEnd, kClose, kLinger };

  asio::awaitable<Next> one_request();
  asio::awaitable<Next> serve(RequestParser& parser, ServerRequest request);
  asio::awaitable<bool> read_head(RequestParser& parser);
  asio::awaitable<bool> read_body(RequestParser& parser, ServerRequest& request, BodyBytes& bytes,
                                  size_t max_bytes);
  asio::awaitable<bool> read_more(bool& timed_out, size_t at_most);
  asio::awaitable<bool> answer(ServerRequest request, bool& keep_alive, bool old_client);
  asio::awaitable<bool> answer_pending(PendingReply& reply, bool head_only, bool& keep_alive,
                                       bool old_client);
  asio::awaitable<bool> send(const ServerResponse& response, bool keep_alive, bool head_only);
  asio::awaitable<bool> send_trouble(const RequestParser::Trouble& trouble);
  asio::awaitable<bool> write(std::string_view bytes);
  asio::awaitable<void> linger();

  const std::shared_ptr<Transport> transport_;
  const asio::any_io_executor strand_;
  HttpHandler& handler_;
  const HttpOptions& options_;
  const std::shared_ptr<ConnectionTable> table_;
  const std::shared_ptr<Waker> waker_;
  const std::shared_ptr<Bell> bell_;
  const bool refuse_;

  std::string input_;  // read and not yet parsed
  std::string request_id_;
  std::vector<HttpHeader> more_headers_;  // of whatever this request is answered with
  FinishedRequest record_;                // of this request
  bool idle_ = true;                      // no byte of a request is here
  bool stopped_ = false;
};

}  // namespace jewel

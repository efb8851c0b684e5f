// A connection's bytes, with or without TLS, over TCP or a Unix socket; one kind of socket serves all, so
// that the protocol is compiled once. Only for files made of coroutines: of server/http, and of client.
//
// Every operation ends at the deadline that was set last, with error::timed_out; the socket stays open, so
// that a timeout can still be answered. One strand per connection.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <memory>
#include <string>

namespace jewel {

namespace asio = boost::asio;

using StreamSocket = asio::generic::stream_protocol::socket;

class Transport : public std::enable_shared_from_this<Transport> {
 public:
  explicit Transport(StreamSocket socket);
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  // Bytes read, or 0 and an error; the peer's end is error::eof.
  asio::awaitable<size_t> read_some(asio::mutable_buffer buffer, boost::system::error_code& error);
  // All of it, or an error.
  asio::awaitable<void> write(asio::const_buffer bytes, boost::system::error_code& error);
  virtual asio::awaitable<void> handshake(boost::system::error_code& error) = 0;
  // The end of what we say; the peer may still be heard.
  virtual asio::awaitable<void> end_output() = 0;

  void set_deadline(std::chrono::steady_clock::time_point deadline);
  void no_deadline() { deadline_ = std::chrono::steady_clock::time_point::max(); }

  // The peer has closed, or the line is broken. Costs one system call and reads nothing.
  bool peer_gone();
  // Its address without the port, an IPv4 address as such; empty on a Unix socket or when it is gone.
  std::string peer() const;
  void close();

 protected:
  virtual asio::awaitable<size_t> do_read(asio::mutable_buffer buffer, boost::system::error_code& error) = 0;
  virtual asio::awaitable<void> do_write(asio::const_buffer bytes, boost::system::error_code& error) = 0;
  // True once: this operation was ended by the deadline.
  bool take_timed_out();

  StreamSocket socket_;

 private:
  void arm(std::chrono::steady_clock::time_point at);

  asio::steady_timer timer_;
  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  std::chrono::steady_clock::time_point armed_ = std::chrono::steady_clock::time_point::max();
  bool timed_out_ = false;
};

// `tls` nullptr: plain. The context outlives the transport.
std::shared_ptr<Transport> make_transport(StreamSocket socket, asio::ssl::context* tls);

// From a client's side: with TLS, the server is told that `host` is wanted; the context says whether it must
// prove to be that host.
std::shared_ptr<Transport> make_client_transport(StreamSocket socket, asio::ssl::context* tls,
                                                 const std::string& host);

}  // namespace jewel

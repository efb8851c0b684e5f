#include "server/http/transport.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <cstring>
#include <string_view>
#include <utility>

namespace jewel {
namespace {

using boost::system::error_code;

auto into(error_code& error) {
  return asio::redirect_error(asio::use_awaitable, error);
}

class PlainTransport final : public Transport {
 public:
  using Transport::Transport;

  asio::awaitable<void> handshake(error_code& /*error*/) override { co_return; }
  asio::awaitable<void> end_output() override {
    error_code ignored;
    ignored = socket_.shutdown(StreamSocket::shutdown_send, ignored);
    co_return;
  }

 protected:
  asio::awaitable<size_t> do_read(asio::mutable_buffer buffer, error_code& error) override {
    co_return co_await socket_.async_read_some(buffer, into(error));
  }
  asio::awaitable<void> do_write(asio::const_buffer bytes, error_code& error) override {
    co_await asio::async_write(socket_, bytes, into(error));
  }
};

class TlsTransport final : public Transport {
 public:
  TlsTransport(StreamSocket socket, asio::ssl::context& context)
      : Transport(std::move(socket)), stream_(socket_, context) {}
  TlsTransport(StreamSocket socket, asio::ssl::context& context, const std::string& host)
      : Transport(std::move(socket)), stream_(socket_, context), side_(asio::ssl::stream_base::client) {
    // RFC 6066: names only, no addresses.
    error_code not_an_address;
    asio::ip::make_address(host, not_an_address);
    if (not_an_address) ::SSL_set_tlsext_host_name(stream_.native_handle(), host.c_str());
    stream_.set_verify_callback(asio::ssl::host_name_verification(host));
  }

  asio::awaitable<void> handshake(error_code& error) override {
    co_await stream_.async_handshake(side_, into(error));
    if (error.category() == asio::error::get_ssl_category() &&
        ERR_GET_REASON(static_cast<unsigned long>(error.value())) == SSL_R_HTTP_REQUEST) {
      co_await say_that_this_is_tls();
    }
    if (error && take_timed_out()) error = asio::error::timed_out;
  }
  // The close_notify, without which a client may not trust a body that ends with the connection.
  asio::awaitable<void> end_output() override {
    error_code ignored;
    co_await stream_.async_shutdown(into(ignored));
    ignored = socket_.shutdown(StreamSocket::shutdown_send, ignored);
  }

 protected:
  asio::awaitable<size_t> do_read(asio::mutable_buffer buffer, error_code& error) override {
    co_return co_await stream_.async_read_some(buffer, into(error));
  }
  asio::awaitable<void> do_write(asio::const_buffer bytes, error_code& error) override {
    co_await asio::async_write(stream_, bytes, into(error));
  }

 private:
  // To who speaks HTTP without TLS: in the same language. What is still unread would reset the connection,
  // and the answer with it.
  asio::awaitable<void> say_that_this_is_tls() {
    constexpr std::string_view kAnswer =
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 41\r\nConnection: "
        "close\r\n\r\n"
        "this port speaks TLS; the URL is https://";
    error_code ignored;
    set_deadline(std::chrono::steady_clock::now() + std::chrono::seconds(2));
    co_await asio::async_write(socket_, asio::buffer(kAnswer), into(ignored));
    ignored = socket_.shutdown(StreamSocket::shutdown_send, ignored);
    char thrown_away[1024];
    error_code end;
    while (!end) co_await socket_.async_read_some(asio::buffer(thrown_away), into(end));
  }

  asio::ssl::stream<StreamSocket&> stream_;
  asio::ssl::stream_base::handshake_type side_ = asio::ssl::stream_base::server;
};

}  // namespace

Transport::Transport(StreamSocket socket) : socket_(std::move(socket)), timer_(socket_.get_executor()) {}

asio::awaitable<size_t> Transport::read_some(asio::mutable_buffer buffer, error_code& error) {
  const size_t n = co_await do_read(buffer, error);
  if (error && take_timed_out()) error = asio::error::timed_out;
  co_return n;
}

asio::awaitable<void> Transport::write(asio::const_buffer bytes, error_code& error) {
  co_await do_write(bytes, error);
  if (error && take_timed_out()) error = asio::error::timed_out;
}

bool Transport::take_timed_out() {
  return std::exchange(timed_out_, false);
}

// Deadlines mostly move away from us, with every piece that is read: the timer then stays as it is and looks
// again when it fires.
void Transport::set_deadline(std::chrono::steady_clock::time_point deadline) {
  deadline_ = deadline;
  timed_out_ = false;
  if (deadline < armed_) arm(deadline);
}

void Transport::arm(std::chrono::steady_clock::time_point at) {
  armed_ = at;
  timer_.expires_at(at);
  timer_.async_wait([weak = weak_from_this()](const error_code& error) {
    const auto self = weak.lock();
    if (error || self == nullptr) return;
    self->armed_ = std::chrono::steady_clock::time_point::max();
    if (self->deadline_ == std::chrono::steady_clock::time_point::max()) return;
    if (std::chrono::steady_clock::now() < self->deadline_) {
      self->arm(self->deadline_);
      return;
    }
    self->no_deadline();
    self->timed_out_ = true;
    error_code ignored;
    ignored = self->socket_.cancel(ignored);
  });
}

bool Transport::peer_gone() {
  pollfd watched{.fd = socket_.native_handle(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&watched, 1, 0) > 0 && (watched.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

std::string Transport::peer() const {
  error_code error;
  const auto generic = socket_.remote_endpoint(error);
  if (error || (generic.protocol().family() != AF_INET && generic.protocol().family() != AF_INET6)) return {};
  asio::ip::tcp::endpoint endpoint;
  std::memcpy(endpoint.data(), generic.data(), std::min(generic.size(), endpoint.capacity()));
  const asio::ip::address address = endpoint.address();
  if (address.is_v6() && address.to_v6().is_v4_mapped())
    return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).to_string();
  return address.to_string();
}

void Transport::close() {
  error_code ignored;
  timer_.cancel();
  ignored = socket_.close(ignored);
}

std::shared_ptr<Transport> make_transport(StreamSocket socket, asio::ssl::context* tls) {
  if (tls == nullptr) return std::make_shared<PlainTransport>(std::move(socket));
  return std::make_shared<TlsTransport>(std::move(socket), *tls);
}

std::shared_ptr<Transport> make_client_transport(StreamSocket socket, asio::ssl::context* tls,
                                                 const std::string& host) {
  if (tls == nullptr) return std::make_shared<PlainTransport>(std::move(socket));
  return std::make_shared<TlsTransport>(std::move(socket), *tls, host);
}

}  // namespace jewel

#include "server/http/transport.h"

#include <poll.h>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
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

  asio::awaitable<void> handshake(error_code& error) override {
    co_await stream_.async_handshake(asio::ssl::stream_base::server, into(error));
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
  asio::ssl::stream<StreamSocket&> stream_;
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

void Transport::close() {
  error_code ignored;
  timer_.cancel();
  ignored = socket_.close(ignored);
}

std::shared_ptr<Transport> make_transport(StreamSocket socket, asio::ssl::context* tls) {
  if (tls == nullptr) return std::make_shared<PlainTransport>(std::move(socket));
  return std::make_shared<TlsTransport>(std::move(socket), *tls);
}

}  // namespace jewel

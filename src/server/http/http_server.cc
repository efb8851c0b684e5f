#include "server/http/http_server.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "server/http/connection.h"
#include "server/http/tls.h"

namespace jewel {
namespace {

using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using Tcp = asio::ip::tcp;
using Acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;

// Beyond the limit, this many more are let in to be told so; others are closed without a word.
constexpr int kRefusedPolitely = 64;
constexpr std::chrono::milliseconds kLastWords{1000};  // for answers that were told to end

// Every connection is an open file, and many systems give a process 1,024 until it asks for more.
void allow_files_for(int connections) {
  constexpr rlim_t kOthers = 256;  // the model's, pictures that are fetched, libraries'
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  const rlim_t wanted = static_cast<rlim_t>(connections) + kRefusedPolitely + kOthers;
  if (files.rlim_cur >= wanted) return;
  files.rlim_cur = std::min(wanted, files.rlim_max);
  if (::setrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur == wanted) return;
  log().warn(
      "--max-connections {}: this system allows {} open files (ulimit -Hn); about {} connections can be open "
      "at once",
      connections, files.rlim_cur, files.rlim_cur > kOthers ? files.rlim_cur - kOthers : 1);
}

void set_no_delay(StreamSocket& socket) {
  error_code ignored;  // a Unix socket has no such thing
  ignored = socket.set_option(Tcp::no_delay(true), ignored);
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpOptions options, HttpHandler& handler)
      : options_(std::move(options)), handler_(handler), table_(std::make_shared<ConnectionTable>()) {}

  ~Impl() {
    stop_listening();
    table_->for_each([](Connection& connection) { connection.abort(); });
    work_.reset();
    wait_until_empty(kLastWords);
    context_.stop();
    for (std::thread& thread : threads_) thread.join();
    if (owns_path_) ::unlink(options_.uds->c_str());
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Result<void> listen() {
    allow_files_for(options_.max_connections);
    if (!options_.tls.certfile.empty()) {
      JEWEL_ASSIGN(tls_, make_tls_context(options_.tls));
    }
    if (options_.uds) {
      JEWEL_TRY(listen_on_path(*options_.uds));
    } else {
      JEWEL_TRY(listen_on_port());
    }
    asio::co_spawn(acceptor_->get_executor(), accept_all(), asio::detached);
    for (int i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { context_.run(); });
    return {};
  }

  bool drain(std::chrono::milliseconds limit) {
    table_->draining = true;
    stop_listening();
    table_->for_each([](Connection& connection) { connection.drain(); });
    if (wait_until_empty(limit)) return true;
    table_->for_each([](Connection& connection) { connection.stop(); });
    wait_until_empty(kLastWords, /*to_the_end=*/true);
    return false;
  }

  void stop_now() { hurry_ = true; }

  int port() const { return port_; }
  int connections() const { return table_->size(); }
  std::string address() const {
    if (options_.uds) return "unix:" + *options_.uds;
    const std::string_view scheme = tls_ == nullptr ? "http" : "https";
    const std::string host = options_.host.empty() ? "0.0.0.0" : options_.host;
    const bool v6 = host.find(':') != std::string::npos;
    return fmt::format("{}://{}{}{}:{}", scheme, v6 ? "[" : "", host, v6 ? "]" : "", port_);
  }

 private:
  Result<void> listen_on_port() {
    error_code error;
    // Every interface: one IPv6 socket that takes IPv4 too, or IPv4 alone where there is no IPv6.
    const bool any = options_.host.empty();
    std::vector<Tcp::endpoint> endpoints;
    const auto port = static_cast<asio::ip::port_type>(options_.port);
    if (any) {
      endpoints = {{Tcp::v6(), port}, {Tcp::v4(), port}};
    } else {
      Tcp::resolver resolver(context_);
      for (const auto& entry : resolver.resolve(options_.host, std::to_string(options_.port), error))
        endpoints.push_back(entry.endpoint());
      if (error) return cannot_listen(options_.host, error);
    }
    for (const Tcp::endpoint& endpoint : endpoints) {
      if (try_listen(endpoint, any, error)) {
        Tcp::endpoint bound;
        const auto local = acceptor_->local_endpoint(error);
        std::memcpy(bound.data(), local.data(), std::min(local.size(), bound.capacity()));
        port_ = bound.port();
        return {};
      }
      if (error == asio::error::address_in_use) break;
    }
    return cannot_listen(fmt::format("{}:{}", any ? "0.0.0.0" : options_.host, options_.port), error);
  }

  bool try_listen(const Tcp::endpoint& endpoint, bool any, error_code& error) {
    Tcp::acceptor acceptor(asio::make_strand(context_));
    if (acceptor.open(endpoint.protocol(), error)) return false;
    error = acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
    if (any && endpoint.protocol() == Tcp::v6()) error = acceptor.set_option(asio::ip::v6_only(false), error);
    if (acceptor.bind(endpoint, error)) return false;
    if (acceptor.listen(asio::socket_base::max_listen_connections, error)) return false;
    const int family = endpoint.protocol().family();
    const auto executor = acceptor.get_executor();
    acceptor_ = std::make_unique<Acceptor>(executor, asio::generic::stream_protocol(family, IPPROTO_TCP),
                                           acceptor.release());
    return true;
  }

  Result<void> listen_on_path(const std::string& path) {
    error_code error;
    asio::local::stream_protocol::endpoint endpoint;
    if (path.size() >= 108) return invalid(fmt::format("uds: '{}' is longer than 107 bytes", path), "uds");
    endpoint.path(path);
    // A socket that a dead server left is taken over; a living one is not.
    asio::local::stream_protocol::socket probe(context_);
    if (!probe.connect(endpoint, error)) {
      return unavailable(
          fmt::format("{}: another server listens there; stop it or choose another path", path));
    }
    if (error == asio::error::connection_refused) ::unlink(path.c_str());
    asio::local::stream_protocol::acceptor acceptor(asio::make_strand(context_));
    if (acceptor.open(endpoint.protocol(), error) || acceptor.bind(endpoint, error) ||
        acceptor.listen(asio::socket_base::max_listen_connections, error)) {
      return cannot_listen(path, error);
    }
    owns_path_ = true;
    const auto executor = acceptor.get_executor();
    acceptor_ =
        std::make_unique<Acceptor>(executor, asio::generic::stream_protocol(AF_UNIX, 0), acceptor.release());
    return {};
  }

  static Error cannot_listen(const std::string& where, const error_code& error) {
    return unavailable(
        fmt::format("{}: cannot listen: {}; choose another --host or --port", where, error.message()));
  }

  asio::awaitable<void> accept_all() {
    while (acceptor_->is_open()) {
      error_code error;
      const auto strand = asio::make_strand(context_);
      StreamSocket socket = co_await acceptor_->async_accept(
          asio::any_io_executor(strand), asio::redirect_error(asio::use_awaitable, error));
      if (error == asio::error::operation_aborted || error == asio::error::bad_descriptor) co_return;
      if (error) {  // out of descriptors, mostly: those in use must end first
        log().warn("cannot accept a connection: {}", error.message());
        asio::steady_timer pause(acceptor_->get_executor(), std::chrono::milliseconds(100));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      const int open = table_->size();
      if (open >= options_.max_connections + kRefusedPolitely) continue;  // the socket closes itself
      set_no_delay(socket);
      auto connection =
          std::make_shared<Connection>(make_transport(std::move(socket), tls_.get()), strand, handler_,
                                       options_, table_, open >= options_.max_connections);
      table_->add(connection);
      asio::co_spawn(strand, run(std::move(connection)), asio::detached);
    }
  }

  static asio::awaitable<void> run(std::shared_ptr<Connection> connection) { co_await connection->run(); }

  void stop_listening() {
    if (acceptor_ == nullptr) return;
    asio::post(acceptor_->get_executor(), [this] {
      error_code ignored;
      ignored = acceptor_->close(ignored);
    });
  }

  bool wait_until_empty(std::chrono::milliseconds limit, bool to_the_end = false) const {
    const auto end = Clock::now() + limit;
    while (table_->size() > 0) {
      if (Clock::now() >= end || (hurry_ && !to_the_end)) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }

  HttpOptions options_;
  HttpHandler& handler_;
  const std::shared_ptr<ConnectionTable> table_;
  std::unique_ptr<asio::ssl::context> tls_;
  asio::io_context context_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{context_.get_executor()};
  std::unique_ptr<Acceptor> acceptor_;
  std::vector<std::thread> threads_;
  int port_ = 0;
  bool owns_path_ = false;  // of the Unix socket: another server's is not ours to unlink
  std::atomic<bool> hurry_{false};
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::start(HttpOptions options, HttpHandler& handler) {
  auto impl = std::make_unique<Impl>(std::move(options), handler);
  JEWEL_TRY(impl->listen());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const {
  return impl_->port();
}
std::string HttpServer::address() const {
  return impl_->address();
}
int HttpServer::connections() const {
  return impl_->connections();
}
bool HttpServer::drain(std::chrono::milliseconds limit) {
  return impl_->drain(limit);
}
void HttpServer::stop_now() {
  impl_->stop_now();
}

}  // namespace jewel

#include "server/stand_in_site.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "base/check.h"

namespace jewel {

SiteAnswer site_answer(std::string_view body, std::string_view headers, std::string_view status) {
  return {.bytes = fmt::format("HTTP/1.1 {}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n{}", status,
                               body.size(), headers, body)};
}

SiteAnswer site_redirect(const std::string& location) {
  return site_answer("moved", fmt::format("Location: {}\r\n", location), "302 Found");
}

StandInSite::StandInSite(Handler handler)
    : handler_(std::move(handler)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);  // 127.0.0.2 too
  JEWEL_CHECK(::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
                  ::listen(listener_, 64) == 0,
              "cannot listen on loopback");
  socklen_t size = sizeof(address);
  ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_all(); });
}

StandInSite::~StandInSite() {
  stopping_ = true;
  acceptor_.join();
  for (std::thread& thread : threads_) thread.join();
  ::close(listener_);
}

std::string StandInSite::url(const std::string& path, const std::string& host) const {
  return fmt::format("http://{}:{}{}", host, port_, path);
}

std::vector<std::string> StandInSite::heads() const {
  const std::scoped_lock lock(mutex_);
  return heads_;
}

void StandInSite::accept_all() {
  while (!stopping_) {
    pollfd watched{.fd = listener_, .events = POLLIN, .revents = 0};
    if (::poll(&watched, 1, 20) <= 0) continue;
    const int socket = ::accept(listener_, nullptr, nullptr);
    if (socket >= 0) threads_.emplace_back([this, socket] { serve(socket); });
  }
}

void StandInSite::serve(int socket) {
  std::string head;
  char buffer[4096];
  while (head.find("\r\n\r\n") == std::string::npos) {
    const ssize_t n = ::recv(socket, buffer, sizeof(buffer), 0);
    if (n <= 0) break;
    head.append(buffer, static_cast<size_t>(n));
  }
  {
    const std::scoped_lock lock(mutex_);
    heads_.push_back(head);
  }
  const size_t path = head.find(' ') + 1;
  const SiteAnswer answer = handler_(head.substr(path, head.find(' ', path) - path));
  const auto gone = [&](std::chrono::milliseconds limit) {  // waits that long for the client to leave
    const auto end = std::chrono::steady_clock::now() + limit;
    while (!stopping_ && std::chrono::steady_clock::now() < end) {
      pollfd watched{.fd = socket, .events = POLLRDHUP, .revents = 0};
      if (::poll(&watched, 1, 10) > 0) return true;
    }
    return stopping_.load();
  };
  bool went = answer.before.count() > 0 && gone(answer.before);
  const size_t step = answer.piece > 0 ? answer.piece : std::max<size_t>(answer.bytes.size(), 1);
  for (size_t at = 0; at < answer.bytes.size() && !went; at += step) {
    const std::string piece = answer.bytes.substr(at, step);
    size_t sent = 0;
    while (sent < piece.size() && !went) {
      const ssize_t n = ::send(socket, piece.data() + sent, piece.size() - sent, MSG_NOSIGNAL);
      went = n <= 0;
      if (n > 0) sent += static_cast<size_t>(n);
    }
    if (!went && answer.pause.count() > 0) went = gone(answer.pause);
  }
  if (!went && answer.hang) went = gone(std::chrono::seconds(30));
  if (went && !stopping_) ++left_;
  ::shutdown(socket, SHUT_WR);
  ::close(socket);
}

}  // namespace jewel

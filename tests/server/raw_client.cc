#include "server/raw_client.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>

namespace jewel {
namespace {

constexpr std::chrono::milliseconds kPatience{10'000};

std::string small(std::string text) {
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

}  // namespace

std::string RawResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

std::vector<std::string> RawResponse::events() const {
  std::vector<std::string> out;
  size_t at = 0;
  while (at < body.size()) {
    const size_t end = body.find("\n\n", at);
    if (end == std::string::npos) break;
    const std::string event = body.substr(at, end - at);
    if (event.starts_with("data: ")) out.push_back(event.substr(6));
    at = end + 2;
  }
  return out;
}

RawClient::RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) close();
}

RawClient::RawClient(const std::string& unix_path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, unix_path.data(), std::min(unix_path.size(), sizeof(address.sun_path) - 1));
  if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) close();
}

RawClient::~RawClient() {
  close();
}

void RawClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

void RawClient::reset() {
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  close();
}

void RawClient::shutdown_write() const {
  ::shutdown(fd_, SHUT_WR);
}

bool RawClient::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

bool RawClient::fill(std::chrono::milliseconds limit) {
  if (fd_ < 0) return false;
  pollfd watched{.fd = fd_, .events = POLLIN, .revents = 0};
  if (::poll(&watched, 1, static_cast<int>(limit.count())) <= 0) return false;
  char buffer[16384];
  const ssize_t n = ::recv(fd_, buffer, sizeof(buffer), 0);
  if (n <= 0) return false;
  input_.append(buffer, static_cast<size_t>(n));
  return true;
}

std::string RawClient::read_until(std::string_view mark) {
  while (input_.find(mark) == std::string::npos && fill(kPatience)) {
  }
  const size_t found = input_.find(mark);
  const size_t end = found == std::string::npos ? input_.size() : found + mark.size();
  std::string out = input_.substr(0, end);
  input_.erase(0, end);
  return out;
}

bool RawClient::closed_within(std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (true) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd watched{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&watched, 1, std::max(0, static_cast<int>(left.count()))) <= 0) return false;
    char buffer[4096];
    if (::recv(fd_, buffer, sizeof(buffer), 0) <= 0) return true;
  }
}

RawResponse RawClient::read(bool head_only) {
  RawResponse response;
  const std::string head = read_until("\r\n\r\n");
  if (!head.ends_with("\r\n\r\n") || !head.starts_with("HTTP/1.1 ")) return response;
  response.status = std::atoi(head.c_str() + 9);
  size_t at = head.find("\r\n") + 2;
  while (at + 2 < head.size()) {
    const size_t end = head.find("\r\n", at);
    const size_t colon = head.find(": ", at);
    if (colon < end)
      response.headers[small(head.substr(at, colon - at))] = head.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  if (head_only || response.status == 204 || response.status == 100) {
    response.whole = true;
  } else if (response.header("transfer-encoding") == "chunked") {
    while (true) {
      const std::string size_line = read_until("\r\n");
      if (!size_line.ends_with("\r\n")) break;
      const size_t size = std::strtoul(size_line.c_str(), nullptr, 16);
      while (input_.size() < size + 2 && fill(kPatience)) {
      }
      if (input_.size() < size + 2) break;
      response.body += input_.substr(0, size);
      input_.erase(0, size + 2);
      if (size == 0) {
        response.whole = true;
        break;
      }
    }
  } else {
    const size_t length = std::strtoul(response.header("content-length").c_str(), nullptr, 10);
    while (input_.size() < length && fill(kPatience)) {
    }
    response.body = input_.substr(0, length);
    input_.erase(0, response.body.size());
    response.whole = response.body.size() == length && !response.header("content-length").empty();
  }
  return response;
}

std::string post_bytes(const std::string& path, const std::string& body, const std::string& headers) {
  return fmt::format(
      "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}", path,
      body.size(), headers, body);
}

RawResponse RawClient::get(const std::string& path, const std::string& headers) {
  if (!send(fmt::format("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n", path, headers))) return {};
  return read();
}

RawResponse RawClient::post(const std::string& path, const std::string& body, const std::string& headers) {
  if (!send(post_bytes(path, body, headers))) return {};
  return read();
}

}  // namespace jewel

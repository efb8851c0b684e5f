#include "hub/stand_in_hub.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "base/check.h"

namespace jewel {
namespace {

std::string digest(const EVP_MD* algorithm, const std::string& bytes) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> out{};
  unsigned length = 0;
  JEWEL_CHECK(EVP_Digest(bytes.data(), bytes.size(), out.data(), &length, algorithm, nullptr) == 1,
              "no digest");
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", out[i]);
  return hex;
}

int listen_on_loopback(int& port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  JEWEL_CHECK(fd >= 0 && ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                  ::listen(fd, 64) == 0 &&
                  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0,
              "no loopback port");
  port = ntohs(address.sin_port);
  return fd;
}

void send_all(int socket, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
}

// "name: value" of a header, in any case of the name.
std::string header_of(const std::string& request, const std::string& name) {
  std::string lower = request;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const size_t at = lower.find("\r\n" + name + ": ");
  if (at == std::string::npos) return "";
  const size_t begin = at + name.size() + 4;
  return request.substr(begin, request.find("\r\n", begin) - begin);
}

std::string head(int status, size_t length, const std::string& more = {}) {
  return fmt::format("HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n", status, length,
                     more);
}

}  // namespace

std::string sha256_hex(const std::string& bytes) {
  return digest(EVP_sha256(), bytes);
}

std::string git_sha1_hex(const std::string& bytes) {
  return digest(EVP_sha1(), "blob " + std::to_string(bytes.size()) + '\0' + bytes);
}

StandInHub::StandInHub(std::map<std::string, HubFile> files) : files_(std::move(files)) {
  for (int i = 0; i < 2; ++i) {
    listeners_[i] = listen_on_loopback(ports_[i]);
    threads_.emplace_back([this, i] { serve(listeners_[i], ports_[i]); });
  }
}

StandInHub::~StandInHub() {
  stopping_ = true;
  for (std::thread& thread : threads_) thread.join();
  for (const int listener : listeners_) ::close(listener);
}

std::string StandInHub::endpoint() const {
  return fmt::format("http://127.0.0.1:{}", ports_[0]);
}

void StandInHub::set_fault(const std::string& file, HubFault fault) {
  const std::scoped_lock lock(mutex_);
  faults_[file] = fault;
}

std::vector<StandInHub::Seen> StandInHub::seen() const {
  const std::scoped_lock lock(mutex_);
  return seen_;
}

void StandInHub::serve(int listener, int port) {
  std::vector<std::thread> connections;
  while (!stopping_) {
    pollfd wait{.fd = listener, .events = POLLIN, .revents = 0};
    if (::poll(&wait, 1, 20) <= 0) continue;
    const int socket = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket < 0) continue;
    connections.emplace_back([this, socket, port] {
      answer(socket, port);
      ::shutdown(socket, SHUT_RDWR);
      ::close(socket);
    });
  }
  for (std::thread& connection : connections) connection.join();
}

std::string StandInHub::listing() const {
  std::string siblings;
  for (const auto& [name, file] : files_) {
    const auto lie = listed_bytes.find(name);
    const auto bytes = lie == listed_bytes.end() ? static_cast<int64_t>(file.bytes.size()) : lie->second;
    siblings += fmt::format(R"({}{{"rfilename":"{}","size":{},"blobId":"{}")", siblings.empty() ? "" : ",",
                            name, bytes, git_sha1_hex(file.bytes));
    if (file.lfs)
      siblings += fmt::format(R"(,"lfs":{{"sha256":"{}","size":{}}})", sha256_hex(file.bytes), bytes);
    siblings += "}";
  }
  return fmt::format(R"({{"id":"{}","sha":"{}","siblings":[{}]}})", kModel, kCommit, siblings);
}

void StandInHub::answer(int socket, int port) {
  std::string request;
  std::array<char, 4096> buffer{};
  while (request.find("\r\n\r\n") == std::string::npos) {
    const ssize_t n = ::recv(socket, buffer.data(), buffer.size(), 0);
    if (n <= 0) return;
    request.append(buffer.data(), static_cast<size_t>(n));
  }
  const size_t begin = request.find(' ') + 1;
  const std::string path = request.substr(begin, request.find(' ', begin) - begin);
  const bool token = header_of(request, "authorization") == std::string("Bearer ") + kToken;
  const std::string range = header_of(request, "range");
  bool throttled = false;
  {
    const std::scoped_lock lock(mutex_);
    seen_.push_back({path, range, token, port});
    throttled = throttle_first > 0 && throttle_first-- > 0;
  }
  if (throttled) return send_all(socket, head(429, 0, "Retry-After: 0.01\r\n"));
  const bool front = port == ports_[0];
  if (front && gated) return send_all(socket, head(403, 0, "X-Error-Code: GatedRepo\r\n"));
  if (front && needs_token && !token) return send_all(socket, head(401, 0, "X-Error-Code: RepoNotFound\r\n"));

  const std::string api = fmt::format("/api/models/{}/revision/", kModel);
  if (path.starts_with(api)) {
    const std::string revision = path.substr(api.size(), path.find('?') - api.size());
    if (revision != "main" && revision != kCommit && revision != "refs%2Fpr%2F1") {
      return send_all(socket, head(404, 0, "X-Error-Code: RevisionNotFound\r\n"));
    }
    const std::string body = listing();
    return send_all(socket, head(200, body.size()) + body);
  }
  const std::string files = fmt::format("/{}/resolve/{}/", kModel, kCommit);
  const auto file = path.starts_with(files) ? files_.find(path.substr(files.size())) : files_.end();
  if (file == files_.end()) return send_all(socket, head(404, 0, "X-Error-Code: RepoNotFound\r\n"));
  if (front && redirect_to_other && file->second.lfs) {
    return send_all(socket,
                    head(302, 0, fmt::format("Location: http://127.0.0.1:{}{}\r\n", ports_[1], path)));
  }

  HubFault fault;
  {
    const std::scoped_lock lock(mutex_);
    HubFault& now = faults_[file->first];
    fault = now;
    if (now.cuts > 0) --now.cuts;
    if (now.times > 0) --now.times;
    now.wrong_bytes = false;
    now.extra_bytes = 0;
  }
  if (fault.times > 0) return send_all(socket, head(fault.status, 0));
  std::string body = file->second.bytes;
  if (fault.wrong_bytes) body[body.size() / 2] ^= 1;
  body.append(static_cast<size_t>(fault.extra_bytes), 'x');
  size_t first = 0;
  std::string more;
  if (range.starts_with("bytes=") && !fault.ignore_range) {
    first = std::min<size_t>(std::stoul(range.substr(6)), body.size());
    more = fmt::format("Content-Range: bytes {}-{}/{}\r\n", first, body.size() - 1, body.size());
  }
  std::string_view part = std::string_view(body).substr(first);
  send_all(socket, head(more.empty() ? 200 : 206, part.size(), more));
  if (fault.cuts > 0 && fault.cut_after >= 0) part = part.substr(0, static_cast<size_t>(fault.cut_after));
  send_all(socket, part);
}

}  // namespace jewel

#include "load_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "base/check.h"

namespace jewel {
namespace {

using Clock = std::chrono::steady_clock;

enum What : uint8_t { kAtOnce, kOpenIdle, kCloseAll, kOneByOne, kOpenStreams };

// ---- between the two processes: numbers and arrays of them

void put(int fd, const void* bytes, size_t size) {
  for (const char* at = static_cast<const char*>(bytes); size > 0;) {
    const ssize_t n = ::write(fd, at, size);
    JEWEL_CHECK(n > 0, "the other process is gone");
    at += n;
    size -= static_cast<size_t>(n);
  }
}

bool get(int fd, void* bytes, size_t size) {
  for (char* at = static_cast<char*>(bytes); size > 0;) {
    const ssize_t n = ::read(fd, at, size);
    if (n <= 0) return false;
    at += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

template <typename T>
void put_all(int fd, const T& values) {
  const size_t n = values.size();
  put(fd, &n, sizeof(n));
  put(fd, values.data(), n * sizeof(values[0]));
}

template <typename T>
void get_all(int fd, T& values) {
  size_t n = 0;
  if (!get(fd, &n, sizeof(n))) return;
  values.resize(n);
  get(fd, values.data(), n * sizeof(values[0]));
}

double cpu_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// ---- the child

// One connection: sends a request, reads its answer. Of a stream only the end is kept.
class Client {
 public:
  explicit Client(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) failed_ = true;
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  ~Client() { ::close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  int fd() const { return fd_; }
  bool ended() const { return ended_ || failed_; }

  void send(const std::string& bytes) {
    tail_.clear();
    head_seen_ = ended_ = text_seen_ = false;
    start_ = Clock::now();
    if (::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(bytes.size()))
      failed_ = true;
  }

  void read(LoadClient::Figures& figures) {
    char buffer[64 << 10];
    const ssize_t n = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) {
      failed_ = true;
      ++figures.failed;
      return;
    }
    figures.bytes += n;
    const std::string_view fresh(buffer, static_cast<size_t>(n));
    // What a mark of the last piece and of this one together may make.
    const size_t kept = std::min(tail_.size(), kLongestMark - 1);
    std::string seen = tail_.substr(tail_.size() - kept);
    seen += fresh;
    for (size_t at = seen.find(kEvent); at != std::string::npos; at = seen.find(kEvent, at + 1)) {
      ++figures.events;
    }
    tail_ += fresh;
    if (!head_seen_ && tail_.find("\r\n\r\n") != std::string::npos) {
      head_seen_ = true;
      // A stream that was complete before its head was sent comes as a whole, with its length.
      is_chunked_ = tail_.find("chunked\r\n") != std::string::npos;
      length_ = is_chunked_ ? 0 : length_in(tail_);
      if (!tail_.starts_with("HTTP/1.1 200")) failed_ = true;
    }
    if (!text_seen_ && seen.find(kText) != std::string::npos) {
      text_seen_ = true;
      figures.first.push_back(seconds());
    }
    ended_ = is_chunked_ ? tail_.ends_with("\r\n0\r\n\r\n") : head_seen_ && tail_.size() >= length_;
    if (failed_) ++figures.failed;
    if (ended_) end(figures);
    if (is_chunked_ && tail_.size() > 2 * kKept) tail_.erase(0, tail_.size() - kKept);
  }

 private:
  static constexpr std::string_view kEvent = "data: ";
  static constexpr std::string_view kText = R"("delta":{"content":)";
  static constexpr size_t kLongestMark = kText.size();
  static constexpr size_t kKept = 4096;  // holds the last event, which has the usage

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // Of the head and the body.
  static size_t length_in(const std::string& text) {
    const size_t at = text.find("Content-Length: ");
    const size_t body = text.find("\r\n\r\n") + 4;
    return at == std::string::npos ? body : body + std::strtoul(text.c_str() + at + 16, nullptr, 10);
  }

  void end(LoadClient::Figures& figures) {
    figures.whole.push_back(seconds());
    constexpr std::string_view kTokens = R"("completion_tokens":)";
    const size_t at = tail_.rfind(kTokens);
    if (at == std::string::npos)
      ++figures.failed;
    else
      figures.tokens += std::atol(tail_.c_str() + at + kTokens.size());
  }

  const int fd_;
  std::string tail_;
  Clock::time_point start_;
  size_t length_ = 0;
  bool head_seen_ = false;
  bool is_chunked_ = false;
  bool text_seen_ = false;
  bool ended_ = false;
  bool failed_ = false;
};

using Clients = std::vector<std::unique_ptr<Client>>;

void read_to_the_end(Clients& clients, LoadClient::Figures& figures) {
  const int poll = ::epoll_create1(EPOLL_CLOEXEC);
  size_t open = 0;
  for (size_t i = 0; i < clients.size(); ++i) {
    if (clients[i]->ended()) continue;
    epoll_event event{.events = EPOLLIN, .data = {.u64 = i}};
    ::epoll_ctl(poll, EPOLL_CTL_ADD, clients[i]->fd(), &event);
    ++open;
  }
  while (open > 0) {
    epoll_event events[256];
    const int n = ::epoll_wait(poll, events, 256, -1);
    for (int i = 0; i < n; ++i) {
      Client& client = *clients[events[i].data.u64];
      client.read(figures);
      if (!client.ended()) continue;
      ::epoll_ctl(poll, EPOLL_CTL_DEL, client.fd(), nullptr);
      --open;
    }
  }
  ::close(poll);
}

Clients connect(int port, int n) {
  Clients clients;
  for (int i = 0; i < n; ++i) clients.push_back(std::make_unique<Client>(port));
  return clients;
}

LoadClient::Figures at_once(Clients& clients, const std::string& bytes) {
  LoadClient::Figures figures;
  const auto start = Clock::now();
  for (const auto& client : clients) client->send(bytes);
  for (const auto& client : clients) figures.failed += client->ended() ? 1 : 0;
  read_to_the_end(clients, figures);
  figures.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return figures;
}

// One after the other: a crowd that comes at once is another measurement.
LoadClient::Figures in_turn(Clients& clients, const std::string& bytes) {
  LoadClient::Figures figures;
  for (auto& client : clients) {
    client->send(bytes);
    while (!client->ended()) client->read(figures);
  }
  return figures;
}

LoadClient::Figures one_by_one(int port, int n, const std::string& bytes) {
  Client client(port);
  LoadClient::Figures figures;
  const auto start = Clock::now();
  for (int i = 0; i < n; ++i) {
    client.send(bytes);
    while (!client.ended()) client.read(figures);
  }
  figures.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return figures;
}

[[noreturn]] void serve_parent(int fd) {
  Clients idle;
  int order[3];
  while (get(fd, order, sizeof(order))) {
    std::string bytes;
    get_all(fd, bytes);
    LoadClient::Figures figures;
    const double cpu = cpu_seconds();
    if (order[0] == kAtOnce) {
      Clients clients = connect(order[1], order[2]);
      figures = at_once(clients, bytes);
    } else if (order[0] == kOpenIdle) {
      idle = connect(order[1], order[2]);
      figures = in_turn(idle, bytes);
    } else if (order[0] == kOpenStreams) {
      idle = connect(order[1], order[2]);
      for (const auto& client : idle) client->send(bytes);
    } else if (order[0] == kOneByOne) {
      figures = one_by_one(order[1], order[2], bytes);
    } else {
      idle.clear();
    }
    figures.cpu_s = cpu_seconds() - cpu;
    const int64_t counts[] = {figures.failed, figures.tokens, figures.events, figures.bytes};
    const double times[] = {figures.seconds, figures.cpu_s};
    put(fd, counts, sizeof(counts));
    put(fd, times, sizeof(times));
    put_all(fd, figures.first);
    put_all(fd, figures.whole);
  }
  ::_exit(0);
}

}  // namespace

LoadClient::LoadClient() {
  int pair[2];
  JEWEL_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
  child_ = ::fork();
  if (child_ == 0) {
    ::close(pair[0]);
    serve_parent(pair[1]);
  }
  ::close(pair[1]);
  fd_ = pair[0];
}

LoadClient::~LoadClient() {
  ::close(fd_);
  ::waitpid(child_, nullptr, 0);
}

LoadClient::Figures LoadClient::ask(int what, int port, int n, const std::string& bytes) {
  const int order[3] = {what, port, n};
  put(fd_, order, sizeof(order));
  put_all(fd_, bytes);
  int64_t counts[4] = {};
  double times[2] = {};
  JEWEL_CHECK(get(fd_, counts, sizeof(counts)) && get(fd_, times, sizeof(times)), "the client is gone");
  Figures figures{.failed = counts[0],
                  .tokens = counts[1],
                  .events = counts[2],
                  .bytes = counts[3],
                  .seconds = times[0],
                  .cpu_s = times[1]};
  get_all(fd_, figures.first);
  get_all(fd_, figures.whole);
  return figures;
}

LoadClient::Figures LoadClient::at_once(int port, int n, const std::string& bytes) {
  return ask(kAtOnce, port, n, bytes);
}

LoadClient::Figures LoadClient::open_idle(int port, int n, const std::string& bytes) {
  return ask(kOpenIdle, port, n, bytes);
}

void LoadClient::close_all() {
  ask(kCloseAll, 0, 0, {});
}

void LoadClient::open_streams(int port, int n, const std::string& bytes) {
  ask(kOpenStreams, port, n, bytes);
}

LoadClient::Figures LoadClient::one_by_one(int port, int n, const std::string& bytes) {
  return ask(kOneByOne, port, n, bytes);
}

}  // namespace jewel

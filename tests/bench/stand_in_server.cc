#include "bench/stand_in_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>

namespace jewel {
namespace {

// Bytes until `mark`, or all until the end: false.
bool read_until(int fd, std::string& input, const std::string& mark) {
  char buffer[65536];
  while (input.find(mark) == std::string::npos) {
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0) return false;
    input.append(buffer, static_cast<size_t>(n));
    if (input.front() < 'A' || input.front() > 'Z') return false;  // no HTTP; a TLS hello, say
  }
  return true;
}

bool send_all(int fd, const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = ::send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += static_cast<size_t>(n);
  }
  return true;
}

int number_behind(const std::string& text, const std::string& mark, int otherwise) {
  const size_t at = text.find(mark);
  return at == std::string::npos ? otherwise : std::atoi(text.c_str() + at + mark.size());
}

}  // namespace

StandInServer::StandInServer(Answer answer) : answer_(std::move(answer)) {
  listening_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(listening_, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listening_, 64) != 0 ||
      ::getsockname(listening_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    std::abort();
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_all(); });
}

StandInServer::~StandInServer() {
  ::shutdown(listening_, SHUT_RDWR);
  acceptor_.join();
  ::close(listening_);
  {
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
  }
  for (std::thread& thread : threads_) thread.join();
}

std::string StandInServer::url() const {
  return fmt::format("http://127.0.0.1:{}/v1", port_);
}

std::vector<Heard> StandInServer::heard() const {
  const std::lock_guard lock(mutex_);
  return heard_;
}

void StandInServer::accept_all() {
  for (;;) {
    const int fd = ::accept4(listening_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ++connections_;
    const std::lock_guard lock(mutex_);
    open_.push_back(fd);
    threads_.emplace_back([this, fd] { serve(fd); });
  }
}

void StandInServer::serve(int fd) {
  std::string input;
  while (read_until(fd, input, "\r\n\r\n")) {
    Heard heard;
    const size_t end = input.find("\r\n\r\n") + 4;
    heard.head = input.substr(0, end);
    heard.line = heard.head.substr(0, heard.head.find("\r\n"));
    input.erase(0, end);
    const auto length = static_cast<size_t>(number_behind(heard.head, "Content-Length: ", 0));
    while (input.size() < length) {
      char buffer[65536];
      const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
      if (n <= 0) break;
      input.append(buffer, static_cast<size_t>(n));
    }
    heard.body = input.substr(0, length);
    input.erase(0, length);
    const SaidAll said = answer_(heard);
    {
      const std::lock_guard lock(mutex_);
      heard_.push_back(heard);
    }
    bool sent = true;
    for (size_t i = 0; i < said.pieces.size() && sent; ++i) {
      std::this_thread::sleep_for(said.pieces[i].before);
      sent = send_all(fd, said.pieces[i].bytes);
    }
    if (said.close || !sent) break;
  }
  const std::lock_guard lock(mutex_);
  std::erase(open_, fd);
  ::close(fd);
}

std::string whole_response(int status, const std::string& body, const std::string& type) {
  return fmt::format("HTTP/1.1 {} Said\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n{}", status, type,
                     body.size(), body);
}

std::string stream_head() {
  return "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: "
         "chunked\r\n\r\n";
}

std::string chunk(const std::string& bytes) {
  return fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes);
}

std::string event(const std::string& data) {
  return chunk("data: " + data + "\n\n");
}

std::string models_json(const std::string& id) {
  return fmt::format(
      R"({{"object":"list","data":[{{"id":"{}","object":"model","created":1,"owned_by":"vllm","root":"/models/x","parent":null,"max_model_len":4096,"permission":[]}}]}})",
      id);
}

SaidAll vllm_stream(const std::vector<std::string>& pieces, int prompt_tokens, int completion_tokens,
                    std::chrono::milliseconds between) {
  const std::string head = R"({"id":"chatcmpl-1f","object":"chat.completion.chunk","created":1,"model":"m",)";
  SaidAll said;
  said.pieces.push_back({stream_head()});
  said.pieces.push_back({event(
      head +
      R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null})")});
  for (const std::string& piece : pieces) {
    said.pieces.push_back(
        {event(
             head +
             fmt::format(
                 R"("choices":[{{"index":0,"delta":{{"content":"{}"}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}})",
                 piece)),
         between});
  }
  said.pieces.push_back({event(
      head +
      R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}],"system_fingerprint":"vllm-0.30.0-1a2b3c4d"})")});
  said.pieces.push_back({event(
      head +
      fmt::format(R"("choices":[],"usage":{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{}}}}})",
                  prompt_tokens, prompt_tokens + completion_tokens, completion_tokens))});
  said.pieces.push_back({event("[DONE]") + chunk("")});
  return said;
}

StandInServer::Answer like_vllm(const std::string& model, std::chrono::milliseconds between) {
  return [=](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("GET /v1/models")) return {{{whole_response(200, models_json(model))}}};
    const int tokens = number_behind(heard.body, "\"max_tokens\":", 16);
    // A token for four characters of the whole body, which is as good a rule as any.
    return vllm_stream(std::vector<std::string>(static_cast<size_t>(tokens), "x "),
                       static_cast<int>(heard.body.size() / 4), tokens, between);
  };
}

}  // namespace jewel

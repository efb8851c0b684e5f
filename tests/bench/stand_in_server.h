// A server that says, byte for byte and with pauses, what a test tells it to: for the client's tests, and as
// another OpenAI server for the benchmark's. One thread a connection; ends with the object.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace jewel {

struct Heard {
  std::string line;  // "POST /v1/chat/completions HTTP/1.1"
  std::string head;
  std::string body;
};

struct Said {
  std::string bytes;
  std::chrono::milliseconds before{0};  // the pause before them
};

struct SaidAll {
  std::vector<Said> pieces;
  bool close = false;  // the connection, behind the last piece
};

class StandInServer {
 public:
  using Answer = std::function<SaidAll(const Heard&)>;
  explicit StandInServer(Answer answer);
  ~StandInServer();
  StandInServer(const StandInServer&) = delete;
  StandInServer& operator=(const StandInServer&) = delete;

  std::string url() const;  // "http://127.0.0.1:PORT/v1"
  std::vector<Heard> heard() const;
  int connections() const { return connections_; }

 private:
  void accept_all();
  void serve(int fd);

  Answer answer_;
  int listening_ = -1;
  int port_ = 0;
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;
  std::vector<Heard> heard_;
  std::vector<int> open_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

// HTTP around a body.
std::string whole_response(int status, const std::string& body, const std::string& type = "application/json");
// The head of a stream, and a piece of it as a chunk; an empty piece ends it.
std::string stream_head();
std::string chunk(const std::string& bytes);
std::string event(const std::string& data);  // "data: …\n\n" as a chunk

// A list of one model.
std::string models_json(const std::string& id);

// A stream as vLLM sends it: a first event with the role, one event for each piece, the finish reason, usage
// in an event of its own, [DONE].
SaidAll vllm_stream(const std::vector<std::string>& pieces, int prompt_tokens, int completion_tokens,
                    std::chrono::milliseconds between);

// Answers /models, and chats with as many tokens as max_tokens says, every one an event.
StandInServer::Answer like_vllm(const std::string& model, std::chrono::milliseconds between);

}  // namespace jewel

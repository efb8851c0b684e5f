// Somebody's web server on loopback, for tests of fetching: it sends the bytes that a test gives it, at once,
// bit by bit or not at all.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace jewel {

struct SiteAnswer {
  std::string bytes;                    // status line, headers and body
  std::chrono::milliseconds before{0};  // before the first byte
  size_t piece = 0;                     // > 0: so many bytes at a time…
  std::chrono::milliseconds pause{0};   // …and this long between them
  bool hang = false;                    // then says nothing until the client goes
};

SiteAnswer site_answer(std::string_view body, std::string_view headers = {},
                       std::string_view status = "200 OK");
SiteAnswer site_redirect(const std::string& location);

class StandInSite {
 public:
  using Handler = std::function<SiteAnswer(const std::string& path)>;
  explicit StandInSite(Handler handler);  // called on threads of its own
  ~StandInSite();
  StandInSite(const StandInSite&) = delete;
  StandInSite& operator=(const StandInSite&) = delete;

  std::string url(const std::string& path, const std::string& host = "127.0.0.1") const;
  std::vector<std::string> heads() const;  // of the requests so far
  int left() const { return left_; }       // clients that went away before their answer was over

 private:
  void accept_all();
  void serve(int socket);

  const Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  mutable std::mutex mutex_;
  std::vector<std::string> heads_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> left_{0};
  std::thread acceptor_;
};

}  // namespace jewel

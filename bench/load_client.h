// LoadClient: many HTTP clients in a process of their own, for benchmarks of the server: what they cost is
// not the server's memory, and their threads are not the server's. One thread with epoll, loopback only.
//
// Made before any other thread exists, since it forks; every call waits for the child's answer. Every answer
// of the server is read to its end, and one that is not a 200, or that breaks off, counts as a failure.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace jewel {

class LoadClient {
 public:
  struct Figures {
    int64_t failed = 0;         // of all requests
    int64_t tokens = 0;         // as `usage` says
    int64_t events = 0;         // of streams, the four that carry no text included
    int64_t bytes = 0;          // read
    double seconds = 0;         // from the first byte sent to the last one read
    double cpu_s = 0;           // of the client's process meanwhile
    std::vector<double> first;  // seconds to the first piece of text, of each request
    std::vector<double> whole;  // to its end
  };

  LoadClient();
  ~LoadClient();
  LoadClient(const LoadClient&) = delete;
  LoadClient& operator=(const LoadClient&) = delete;

  // `n` connections at once, one request each.
  Figures at_once(int port, int n, const std::string& bytes);
  // The same, and the connections stay open, idle, until close_all().
  Figures open_idle(int port, int n, const std::string& bytes);
  void close_all();
  // `n` requests whose answers nobody reads, until vanish(): at once, as clients that crash do.
  void open_streams(int port, int n, const std::string& bytes);
  void vanish() { close_all(); }
  // One after the other on one connection.
  Figures one_by_one(int port, int n, const std::string& bytes);

 private:
  Figures ask(int what, int port, int n, const std::string& bytes);

  int fd_ = -1;
  pid_t child_ = -1;
};

}  // namespace jewel

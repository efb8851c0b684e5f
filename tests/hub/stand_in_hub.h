// A stand-in of the Hugging Face hub for tests: an HTTP server on a loopback port that serves one repository
// and misbehaves on request. Own threads; methods may be called while it serves.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace jewel {

struct HubFile {
  std::string bytes;
  bool lfs = false;
};

// How a file is served. Counted per file, so that later tries can go well.
struct HubFault {
  int64_t cut_after = -1;     // closes the connection after so many bytes of the body…
  int cuts = 0;               // …this many times
  bool ignore_range = false;  // answers 200 with everything
  bool wrong_bytes = false;   // the first time: same length, other bytes
  int64_t extra_bytes = 0;    // more bytes than listed, the first time
  int status = 0;             // answers with this status, the first `times` times
  int times = 0;
};

class StandInHub {
 public:
  static constexpr char kModel[] = "org/model";
  static constexpr char kCommit[] = "0123456789abcdef0123456789abcdef01234567";
  static constexpr char kToken[] = "hf_test";

  explicit StandInHub(std::map<std::string, HubFile> files);
  ~StandInHub();

  std::string endpoint() const;
  void set_fault(const std::string& file, HubFault fault);

  bool gated = false;              // 403 with X-Error-Code: GatedRepo
  bool needs_token = false;        // 401 without kToken
  bool redirect_to_other = false;  // large files come from another port, which must not see the token
  int throttle_first = 0;          // this many answers are 429, with a Retry-After of a few milliseconds
  std::map<std::string, int64_t> listed_bytes;  // what the listing says of a file in place of the truth

  struct Seen {
    std::string path;
    std::string range;
    bool token = false;
    int port = 0;
  };
  std::vector<Seen> seen() const;
  int port() const { return ports_[0]; }

 private:
  void serve(int listener, int port);
  void answer(int socket, int port);
  std::string listing() const;

  std::map<std::string, HubFile> files_;
  std::map<std::string, HubFault> faults_;
  mutable std::mutex mutex_;
  std::vector<Seen> seen_;
  int listeners_[2] = {-1, -1};
  int ports_[2] = {0, 0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

std::string sha256_hex(const std::string& bytes);
std::string git_sha1_hex(const std::string& bytes);

}  // namespace jewel

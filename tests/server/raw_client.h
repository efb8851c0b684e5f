// A client that sends the bytes it is told and reads what comes, for tests of the server. Every wait ends
// after ten seconds, so that a broken server fails a test instead of hanging it.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace jewel {

struct RawResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in small letters
  std::string body;                            // chunks put together
  bool whole = false;                          // its end was seen

  std::string header(const std::string& name) const;
  // The data of each event of a stream.
  std::vector<std::string> events() const;
};

class RawClient {
 public:
  explicit RawClient(int port);
  explicit RawClient(const std::string& unix_path);
  ~RawClient();
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return fd_ >= 0; }
  bool send(std::string_view bytes) const;  // false: the server has closed
  // One response; status 0 when the connection ends before one.
  RawResponse read(bool head_only = false);
  // Bytes until `mark` is among them (and all of them), or until the end.
  std::string read_until(std::string_view mark);
  bool closed_within(std::chrono::milliseconds limit);
  void shutdown_write() const;
  void close();
  void reset();  // closes as a crashed client does

  // Request and response.
  RawResponse get(const std::string& path, const std::string& headers = {});
  RawResponse post(const std::string& path, const std::string& body, const std::string& headers = {});

 private:
  bool fill(std::chrono::milliseconds limit);  // false: nothing more came

  int fd_ = -1;
  std::string input_;
};

std::string post_bytes(const std::string& path, const std::string& body, const std::string& headers = {});

}  // namespace jewel

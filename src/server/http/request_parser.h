// One HTTP/1.1 request out of the bytes of a connection, in two steps: the head, then (once it is known who
// asks and for what) the body. A thin skin around Beast's parser, which is seen by request_parser.cc alone:
// it takes half a minute to compile. One connection, one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "server/http/message.h"

namespace jewel {

class RequestParser {
 public:
  explicit RequestParser(size_t max_header_bytes);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  struct Trouble {
    int status = 400;
    std::string message;
  };

  // Takes what it can from the front of `bytes` and returns how many that were; 0: more are needed.
  size_t put(std::string_view bytes);
  const std::optional<Trouble>& trouble() const { return trouble_; }

  bool head_done() const;
  // When head_done(): the request without its body.
  ServerRequest take_head();
  bool keep_alive() const;
  bool is_http_1_0() const;
  bool expects_continue() const;
  bool has_body() const;                           // of a length above 0, or chunked
  std::optional<uint64_t> content_length() const;  // nullopt: chunked, or no body

  // From here on put() takes the body.
  void read_body(size_t max_bytes);
  bool done() const;
  size_t body_bytes() const;  // so far
  std::string take_body();

 private:
  void refuse_body();
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::optional<Trouble> trouble_;
};

}  // namespace jewel

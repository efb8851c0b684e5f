// One HTTP/1.1 response out of the bytes of a connection; its body is given out as it comes. A thin skin
// around Beast's parser, which is seen by response_parser.cc alone: it takes half a minute to compile. One
// response, one thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

class ResponseParser {
 public:
  explicit ResponseParser(size_t max_body_bytes, bool head_only = false);
  ~ResponseParser();
  ResponseParser(const ResponseParser&) = delete;
  ResponseParser& operator=(const ResponseParser&) = delete;

  // Takes what it can from the front of `bytes`, returns how many that were; 0: more are needed.
  Result<size_t> put(std::string_view bytes);
  // The connection's end: also the end of a body whose length was not given. False: in the middle of one.
  bool put_end();

  bool head_done() const;
  bool done() const;
  // When head_done().
  int status() const;
  std::string header(std::string_view name) const;  // empty when absent
  bool keep_alive() const;
  // What came of the body since the last call.
  std::string take_body();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

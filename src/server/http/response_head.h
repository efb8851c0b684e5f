// The bytes of an HTTP/1.1 response: status line, headers, and the framing of bodies that come bit by bit.
// Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "server/http/message.h"

namespace jewel {

enum class BodyFraming : uint8_t {
  kLength,    // Content-Length
  kChunked,   // Transfer-Encoding: chunked
  kUntilEnd,  // HTTP/1.0: the end of the connection is the end of the body
};

struct ResponseFrame {
  BodyFraming framing = BodyFraming::kLength;
  bool keep_alive = true;
  bool body_allowed = true;     // false for HEAD: the length is said, the body is not sent
  std::string_view request_id;  // empty: none
  std::span<const HttpHeader> more_headers;
};

// Status line and headers, and the body too where it is whole. Line breaks inside header values are dropped.
std::string response_bytes(const ServerResponse& response, const ResponseFrame& frame);

// Appends one piece of a body; nothing for an empty one, since an empty chunk would end the body.
void append_piece(std::string& out, BodyFraming framing, std::string_view piece);
void append_end(std::string& out, BodyFraming framing);

}  // namespace jewel

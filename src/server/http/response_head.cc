#include "server/http/response_head.h"

#include <fmt/format.h>

#include <chrono>
#include <ctime>
#include <iterator>

namespace jewel {
namespace {

std::string http_date() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[parts.tm_wday], parts.tm_mday,
                     kMonths[parts.tm_mon], 1900 + parts.tm_year, parts.tm_hour, parts.tm_min, parts.tm_sec);
}

void append_header(std::string& out, std::string_view name, std::string_view value) {
  out += name;
  out += ": ";
  for (const char c : value) {
    if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) out += c;
  }
  out += "\r\n";
}

}  // namespace

std::string response_bytes(const ServerResponse& response, const ResponseFrame& frame) {
  std::string out;
  out.reserve(320 + response.body.size());
  fmt::format_to(std::back_inserter(out), "HTTP/1.1 {} {}\r\n", response.status,
                 reason_phrase(response.status));
  append_header(out, "Date", http_date());
  append_header(out, "Server", "jewel/" JEWEL_VERSION);
  if (!frame.request_id.empty()) append_header(out, "X-Request-Id", frame.request_id);
  if (!response.content_type.empty() && response.status != 204)
    append_header(out, "Content-Type", response.content_type);
  for (const HttpHeader& header : response.headers) append_header(out, header.name, header.value);
  for (const HttpHeader& header : frame.more_headers) append_header(out, header.name, header.value);
  if (frame.framing == BodyFraming::kChunked) append_header(out, "Transfer-Encoding", "chunked");
  if (frame.framing == BodyFraming::kLength && response.status != 204)
    append_header(out, "Content-Length", std::to_string(response.body.size()));
  append_header(out, "Connection", frame.keep_alive ? "keep-alive" : "close");
  out += "\r\n";
  if (frame.framing == BodyFraming::kLength && frame.body_allowed && response.status != 204)
    out += response.body;
  return out;
}

void append_piece(std::string& out, BodyFraming framing, std::string_view piece) {
  if (piece.empty()) return;
  if (framing == BodyFraming::kChunked) {
    fmt::format_to(std::back_inserter(out), "{:x}\r\n", piece.size());
    out += piece;
    out += "\r\n";
  } else {
    out += piece;
  }
}

void append_end(std::string& out, BodyFraming framing) {
  if (framing == BodyFraming::kChunked) out += "0\r\n\r\n";
}

}  // namespace jewel

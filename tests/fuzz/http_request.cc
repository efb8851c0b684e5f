// The bytes of a connection, through the parser of requests, and a second time byte by byte: where a client's
// packets end must change nothing. Requests that follow each other are taken apart at the same places, else
// one client's body would be another's request.
#include <string>
#include <vector>

#include "base/check.h"
#include "server/http/request_parser.h"

namespace {

using namespace jewel;

constexpr size_t kMaxHead = 2048, kMaxBody = 4096;

// What was seen of the connection, as text.
std::vector<std::string> requests_in(std::string_view bytes, size_t at_once) {
  std::vector<std::string> seen;
  while (seen.size() < 16) {
    RequestParser parser(kMaxHead);
    std::string buffer;
    size_t read = 0;
    const auto advance = [&](auto&& enough) {
      while (!enough() && !parser.trouble()) {
        const size_t taken = buffer.empty() ? 0 : parser.put(buffer);
        JEWEL_CHECK(taken <= buffer.size(), "{} bytes taken of {}", taken, buffer.size());
        buffer.erase(0, taken);
        if (enough() || parser.trouble() || (taken > 0 && !buffer.empty())) continue;
        const size_t n = std::min(at_once, bytes.size() - read);
        if (n == 0) return false;
        buffer += bytes.substr(read, n);
        read += n;
      }
      return !parser.trouble();
    };
    if (!advance([&] { return parser.head_done(); })) {
      seen.push_back("no request");  // refused, or not all of it: which, may show sooner with more bytes
      return seen;
    }
    const ServerRequest head = parser.take_head();
    std::string one = head.method + " " + head.path + "?" + head.query + "\n";
    for (const HttpHeader& header : head.headers) one += header.name + ": " + header.value + "\n";
    parser.read_body(kMaxBody);
    if (!advance([&] { return parser.done(); })) {
      seen.push_back(one + "no body");
      return seen;
    }
    const std::string body = parser.take_body();
    JEWEL_CHECK(body.size() <= kMaxBody, "{} bytes of body", body.size());
    seen.push_back(one + (parser.keep_alive() ? "keep\n" : "close\n") + body);
    bytes.remove_prefix(read - buffer.size());
    if (!parser.keep_alive()) return seen;
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto whole = requests_in(bytes, bytes.size());
  const auto single = requests_in(bytes, 1);
  JEWEL_CHECK(whole.size() == single.size(), "{} requests at once, {} byte by byte", whole.size(),
              single.size());
  for (size_t i = 0; i < whole.size(); ++i)
    JEWEL_CHECK(whole[i] == single[i], "at once: {}; byte by byte: {}", whole[i], single[i]);
  return 0;
}

// SseParser: server-sent events out of a body that comes in pieces (the WHATWG's event stream format, as far
// as OpenAI's API uses it). Comments, `id:` and `retry:` are passed over; an event ends with an empty line.
//
//   parser.put(bytes, [&](std::string_view name, std::string_view data) { … });
//
// One stream, one thread. What is not yet a whole line waits inside, at most `max_event_bytes` of it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

class SseParser {
 public:
  explicit SseParser(size_t max_event_bytes = size_t{64} << 20) : max_event_bytes_(max_event_bytes) {}

  // `name` is empty for ordinary events. An Error of on_event is handed on, and ends the stream.
  using OnEvent = std::function<Result<void>(std::string_view name, std::string_view data)>;
  Result<void> put(std::string_view bytes, const OnEvent& on_event);

  // The stream's end. The format drops an event without its empty line; servers that forget it are heard.
  Result<void> end(const OnEvent& on_event);

 private:
  Result<void> line(std::string_view text, const OnEvent& on_event);
  Result<void> dispatch(const OnEvent& on_event);

  size_t max_event_bytes_;
  std::string pending_;  // a line without its end
  bool after_cr_ = false;
  bool at_start_ = true;
  std::string name_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace jewel

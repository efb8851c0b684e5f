#include "client/sse.h"

#include <fmt/format.h>

namespace jewel {

Result<void> SseParser::put(std::string_view bytes, const OnEvent& on_event) {
  while (!bytes.empty()) {
    if (after_cr_ && bytes.front() == '\n') bytes.remove_prefix(1);  // the second half of "\r\n"
    after_cr_ = false;
    const size_t end = bytes.find_first_of("\r\n");
    const std::string_view part = bytes.substr(0, end);
    if (pending_.size() + data_.size() + part.size() > max_event_bytes_)
      return too_large(fmt::format("the stream has an event of more than {} bytes", max_event_bytes_));
    if (end == std::string_view::npos) {
      pending_ += part;
      return {};
    }
    after_cr_ = bytes[end] == '\r';
    bytes.remove_prefix(end + 1);
    if (pending_.empty()) {
      JEWEL_TRY(line(part, on_event));
    } else {
      pending_ += part;
      const std::string whole = std::exchange(pending_, {});
      JEWEL_TRY(line(whole, on_event));
    }
  }
  return {};
}

Result<void> SseParser::end(const OnEvent& on_event) {
  if (!pending_.empty()) {
    const std::string last = std::exchange(pending_, {});
    JEWEL_TRY(line(last, on_event));
  }
  return dispatch(on_event);
}

Result<void> SseParser::line(std::string_view text, const OnEvent& on_event) {
  if (std::exchange(at_start_, false) && text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  if (text.empty()) return dispatch(on_event);
  const size_t colon = text.find(':');
  const std::string_view field = text.substr(0, colon);
  std::string_view value = colon == std::string_view::npos ? std::string_view{} : text.substr(colon + 1);
  if (value.starts_with(' ')) value.remove_prefix(1);
  if (field == "event") {
    name_ = value;
  } else if (field == "data") {
    if (has_data_) data_ += '\n';
    data_ += value;
    has_data_ = true;
  } else if (field == "error") {  // older llama.cpp: a field of its own
    name_ = "error";
    data_ += value;
    has_data_ = true;
  }
  return {};
}

Result<void> SseParser::dispatch(const OnEvent& on_event) {
  const std::string name = std::exchange(name_, {});
  if (!std::exchange(has_data_, false)) return {};
  const std::string data = std::exchange(data_, {});
  return on_event(name, data);
}

}  // namespace jewel

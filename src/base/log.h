// One logger for the whole program: lines on stderr, because stdout carries only answers and JSON.
//
//   log().warn("{}: unknown key '{}', did you mean '{}'?", file, key, guess);
//
// As text ("warning: …") or, for machines, one JSON object a line: {"time", "level", "message"} and what an
// event adds. Whatever a message carries (clients choose some of it), a line stays a line: control characters
// are escaped, and in JSON bytes that are no UTF-8 become U+FFFD.
//
// Any thread may log; never from inside the step loop of a backend.
#pragma once

#include <spdlog/logger.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

namespace jewel {

spdlog::logger& log();

// "trace", "debug", "info", "warning", "error" or "off"; anything else is refused with false.
bool set_log_level(std::string_view level);

// Before other threads log.
void set_log_json(bool json);
bool log_is_json();

// An event with its parts named: members of the JSON object, or "message name=value …".
struct LogField {
  std::string_view name;
  std::variant<int64_t, double, bool, std::string> value;
};
void log_event(std::string_view message, std::initializer_list<LogField> fields);  // level info

}  // namespace jewel

// One logger for the whole program: lines on stderr, because stdout carries only answers and JSON.
//
//   log().warn("{}: unknown key '{}', did you mean '{}'?", file, key, guess);
//
// Any thread may log; never from inside the step loop of a backend.
#pragma once

#include <spdlog/logger.h>
#include <spdlog/spdlog.h>

#include <string_view>

namespace jewel {

spdlog::logger& log();

// "trace", "debug", "info", "warning", "error" or "off"; anything else is refused with false.
bool set_log_level(std::string_view level);

}  // namespace jewel

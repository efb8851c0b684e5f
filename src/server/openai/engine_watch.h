// EngineWatch: what can be seen from outside of an engine that no longer works: requests that run while no
// step ends, steps that all fail, or a device that was given back and cannot be had again. Looked at by
// whoever probes /health; any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>

#include "jewel/engine.h"

namespace jewel {

class EngineWatch {
 public:
  // The longest step there is takes some 40 s: 2,048 tokens of a prompt on two cores.
  explicit EngineWatch(std::chrono::milliseconds longest_step = std::chrono::minutes(3))
      : longest_step_(longest_step) {}

  // A sentence, when the engine must be taken for dead.
  std::optional<std::string> trouble(const Stats& stats);

 private:
  using Clock = std::chrono::steady_clock;
  const std::chrono::milliseconds longest_step_;
  std::mutex mutex_;
  uint64_t steps_ = 0;
  std::optional<Clock::time_point> running_since_;  // with this number of steps
};

}  // namespace jewel

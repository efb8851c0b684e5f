#include "server/openai/engine_watch.h"

#include <fmt/format.h>

namespace jewel {
namespace {

constexpr int kManyFailures = 3;  // a device may have trouble once

}  // namespace

std::optional<std::string> EngineWatch::trouble(const Stats& stats) {
  if (stats.steps_failed_in_a_row >= kManyFailures)
    return fmt::format("the last {} steps of the engine failed", stats.steps_failed_in_a_row);
  if (stats.idle_wakes_failed_in_a_row >= kManyFailures)
    return fmt::format("the device was given back, and the last {} requests could not have it again",
                       stats.idle_wakes_failed_in_a_row);
  const auto now = Clock::now();
  const std::scoped_lock lock(mutex_);
  if (stats.running == 0) {
    running_since_.reset();
    return std::nullopt;
  }
  if (!running_since_ || stats.steps != steps_) {
    running_since_ = now;
    steps_ = stats.steps;
  }
  if (now - *running_since_ < longest_step_) return std::nullopt;
  return fmt::format("the engine has ended no step for {} s",
                     std::chrono::duration_cast<std::chrono::seconds>(now - *running_since_).count());
}

}  // namespace jewel

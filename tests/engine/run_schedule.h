// Runs a schedule through Scheduler and FakeBackend, one step at a time, and compares with the oracle.
#pragma once

#include <optional>
#include <string>

#include "schedule.h"

namespace jewel {

struct ScheduleRun {
  std::optional<std::string> failure;  // the first thing that was wrong
  int steps = 0;
  int releases = 0;
  int restores_failed = 0;
  int64_t pages_kept = 0;  // in host memory, over all releases
  SchedulerStats stats;
};

ScheduleRun run_schedule(const Schedule& schedule);

}  // namespace jewel

// Runs a schedule through Scheduler and FakeBackend, one step at a time, and compares with the oracle.
#pragma once

#include <optional>
#include <string>

#include "schedule.h"

namespace jewel {

struct ScheduleRun {
  std::optional<std::string> failure;  // the first thing that was wrong
  int steps = 0;
  SchedulerStats stats;
};

ScheduleRun run_schedule(const Schedule& schedule);

}  // namespace jewel

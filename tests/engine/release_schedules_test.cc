// Random schedules in which the device is given back whenever nothing is live, and cannot always be had
// again: every request gets its oracle's answer, and the books balance as if nothing had happened.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "run_schedule.h"

namespace jewel {
namespace {

// Moments without work between most requests.
Schedule with_releases(uint64_t seed) {
  Schedule schedule = random_schedule(seed);
  Dice dice(seed);
  int shift = 0;
  for (PlannedRequest& request : schedule.requests) {
    if (dice.one_in(2)) shift += dice.below(150);
    request.arrives += shift;
  }
  schedule.release_one_in = dice.between(1, 20);
  schedule.restore_fails_one_in = dice.one_in(3) ? dice.between(2, 5) : 0;
  return schedule;
}

TEST(ReleaseSchedules, GetTheirOracleAnswers) {
  constexpr uint64_t kSchedules = 4'000;
  int64_t releases = 0, failed = 0, kept = 0;
  uint64_t hits = 0, hits_without = 0;
  for (uint64_t seed = 0; seed < kSchedules; ++seed) {
    Schedule schedule = with_releases(seed);
    const ScheduleRun run = run_schedule(schedule);
    ASSERT_FALSE(run.failure) << "seed " << seed << ": " << *run.failure << "\n" << describe(schedule);
    releases += run.releases;
    failed += run.restores_failed;
    kept += run.pages_kept;
    // What is kept is found again: where everything fits, and no copy fails, as much as without releases.
    if (schedule.options.swap_bytes < (1U << 20) || !schedule.faults.read_pages.empty() ||
        !schedule.faults.write_pages.empty() || !schedule.faults.steps.empty() ||
        !schedule.faults.encode_image.empty() || schedule.restore_fails_one_in > 0) {
      continue;
    }
    hits += run.stats.prefix_hits;
    schedule.release_one_in = 0;
    hits_without += run_schedule(schedule).stats.prefix_hits;
  }
  EXPECT_GT(releases, 2 * static_cast<int64_t>(kSchedules));
  EXPECT_GT(failed, 500);
  EXPECT_GT(kept, static_cast<int64_t>(kSchedules));
  EXPECT_GT(hits, kSchedules);
  EXPECT_EQ(hits, hits_without);
}

}  // namespace
}  // namespace jewel

// When a counter is read, on a clock of the test's own.
#include "energy/tick_follower.h"

#include <gtest/gtest.h>

#include <random>

namespace jewel {
namespace {

using namespace std::chrono_literals;
using Time = TickFollower::Time;
using Duration = TickFollower::Duration;

// A counter that draws 100 W and moves every `tick`, and somebody who reads it when he is told to.
struct Follow {
  explicit Follow(Duration pace) : tick(pace), follower(Time{}) {}

  void until(Time end, bool closely) {
    while (true) {
      const Time next = follower.next(now, closely, 1s);
      if (next >= end) break;
      now = std::max(now, next) + late(random) * 1us;
      ++reads;
      const auto ticks = (now.time_since_epoch() + phase) / tick;
      const double joules = 100 * std::chrono::duration<double>(ticks * tick).count();
      if (!follower.see(now, joules)) continue;
      ++exact;
      const Duration behind = (now.time_since_epoch() + phase) - ticks * tick;
      worst = std::max(worst, behind);
    }
    now = end;
  }

  Duration tick;
  TickFollower follower;
  Time now{};
  Duration phase = 37ms;
  int reads = 0, exact = 0;
  Duration worst{};
  std::mt19937 random{5};
  std::uniform_int_distribution<int> late{50, 300};  // µs: threads wake when they wake
};

TEST(TickFollower, FindsTheTickAndReadsAroundIt) {
  Follow follow(100ms);
  follow.until(Time(1s), true);
  ASSERT_TRUE(follow.follower.tick().has_value());
  EXPECT_NEAR(std::chrono::duration<double>(*follow.follower.tick()).count(), 0.1, 0.002);
  follow.reads = follow.exact = 0;
  follow.until(Time(11s), true);
  EXPECT_GE(follow.exact, 98) << "every tick is seen";
  EXPECT_LE(follow.reads, 500) << "by a few reads each";
  EXPECT_LE(follow.worst, 5ms);
}

TEST(TickFollower, RestsBetweenFewOfThem) {
  Follow follow(100ms);
  follow.until(Time(1s), true);
  follow.reads = follow.exact = 0;
  follow.until(Time(61s), false);
  EXPECT_GE(follow.exact, 45);
  EXPECT_LE(follow.exact, 65);
  EXPECT_LE(follow.reads, 60 * 12);
  EXPECT_LE(follow.worst, 5ms);
  follow.reads = follow.exact = 0;
  follow.until(Time(63s), true);
  EXPECT_GE(follow.exact, 18) << "and wakes to every tick again";
}

TEST(TickFollower, AFastCounterIsReadAtItsOwnPace) {
  Follow follow(1ms);
  follow.until(Time(1s), true);
  follow.reads = follow.exact = 0;
  follow.until(Time(11s), true);
  EXPECT_NEAR(follow.reads, 500, 20);
  EXPECT_NEAR(follow.exact, follow.reads, 5) << "each of them says all";
  follow.reads = 0;
  follow.until(Time(71s), false);
  EXPECT_LE(follow.reads, 65);
}

TEST(TickFollower, ACounterThatStandsStillIsLookedAtSeldom) {
  Follow follow(1h);
  follow.until(Time(1s), true);
  follow.reads = 0;
  follow.until(Time(61s), true);
  EXPECT_LE(follow.reads, 620);
  EXPECT_EQ(follow.exact, 0);
}

TEST(TickFollower, FailuresAreNoReadings) {
  TickFollower follower(Time{});
  Time now{};
  for (int i = 0; i < 100; ++i) {
    now = std::max(now, follower.next(now, true, 1s));
    follower.failed(now);
  }
  EXPECT_GE(now.time_since_epoch(), 1900ms) << "and not asked for again at once";
  follower.see(now, 10);
  follower.failed(now + 1ms);
  EXPECT_FALSE(follower.see(now + 2ms, 20)) << "it may have moved before the failure";
  EXPECT_TRUE(follower.see(now + 3ms, 30));
}

}  // namespace
}  // namespace jewel

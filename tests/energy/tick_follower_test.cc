// When a counter is read, on a clock of the test's own.
#include "energy/tick_follower.h"

#include <gtest/gtest.h>

#include <algorithm>
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
      const std::optional<Time> moved_at = follower.see(now, now, joules);
      if (!moved_at) continue;
      ++exact;
      const Duration off = (moved_at->time_since_epoch() + phase) - ticks * tick;
      worst = std::max(worst, std::max(off, -off));
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
  EXPECT_LE(follow.reads, 300) << "by a few reads each";
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
  follower.see(now, now, 10);
  follower.failed(now + 1ms);
  EXPECT_FALSE(follower.see(now + 2ms, now + 2ms, 20)) << "it may have moved before the failure";
  EXPECT_TRUE(follower.see(now + 3ms, now + 3ms, 30));
}

// NVML's: a read takes 3 ms, some 6, a few 25, and shows the counter as it was somewhere in that time. Ticks
// jitter, and their length drifts.
struct SlowReads {
  explicit SlowReads(unsigned seed) : random(seed) { schedule(0s); }

  void schedule(Duration from) {
    const auto first = std::ranges::lower_bound(ticks, Time(from)) - ticks.begin();
    ticks.resize(static_cast<size_t>(first));
    Duration at = from;
    std::uniform_int_distribution<int> jitter{-1000, 1000};
    while (at < 600s) {
      at += 100ms + (at / 60s % 2 == 0 ? 10us : -10us);
      ticks.push_back(Time(at + jitter(random) * 1us));
    }
  }

  Duration read_time() {
    const int kind = std::uniform_int_distribution<int>{0, 999}(random);
    return kind < 3 ? 25ms : kind < 100 ? 6ms : 3ms;
  }

  void until(Duration end, bool closely, Duration rest = 10s) {
    reading = {};
    reads = exact = 0;
    worst = {};
    while (true) {
      const Time next = follower.next(now, closely, rest);
      if (std::max(now, next) >= Time(end)) break;
      const Time began = std::max(now, next) + std::uniform_int_distribution<int>{50, 300}(random) * 1us;
      const Duration took = read_time();
      now = began + took;
      reading += took;
      ++reads;
      const Time sampled = began + took / 100 * std::uniform_int_distribution<int>{0, 100}(random);
      const auto behind = std::ranges::upper_bound(ticks, sampled);
      const double joules = 10 * static_cast<double>(behind - ticks.begin());
      const std::optional<Time> moved_at = follower.see(began, now, joules);
      if (!moved_at) continue;
      ++exact;
      ASSERT_NE(behind, ticks.begin());
      const Duration off = *moved_at - *std::prev(behind);
      worst = std::max(worst, std::max(off, -off));
    }
    now = std::max(now, Time(end));
  }

  double load(Duration of) const {
    return std::chrono::duration<double>(reading) / std::chrono::duration<double>(of);
  }

  std::mt19937 random;
  std::vector<Time> ticks;
  TickFollower follower{Time{}};
  Time now{};
  Duration reading{}, worst{};
  int reads = 0, exact = 0;
};

TEST(TickFollower, SlowReadsAreFew) {
  double busy = 0, idle = 0;
  int exact = 0;
  for (unsigned seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    SlowReads slow(seed);
    slow.until(1s, true);
    ASSERT_TRUE(slow.follower.tick().has_value());
    slow.until(11s, true);
    EXPECT_LE(slow.load(10s), 0.1);
    EXPECT_GE(slow.exact, 30);
    exact += slow.exact;
    EXPECT_LE(slow.worst, 7500us);
    busy += slow.load(10s);
    slow.until(71s, false);
    EXPECT_LE(slow.load(60s), 0.003);
    EXPECT_GE(slow.exact, 4);
    EXPECT_LE(slow.worst, 7500us);
    idle += slow.load(60s);
    slow.until(73s, true);
    EXPECT_GE(slow.exact, 1);
  }
  EXPECT_GE(exact / 50, 50) << "half of the ticks: more would cost more than a tenth of a core";
  EXPECT_LE(busy / 50, 0.08);
  EXPECT_LE(idle / 50, 0.002);
}

TEST(TickFollower, SlowReadsAreFewWithoutAnyWork) {
  double all = 0;
  for (unsigned seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(seed);
    SlowReads slow(seed);
    slow.until(1s, false);
    ASSERT_TRUE(slow.follower.tick().has_value());
    slow.until(61s, false);
    EXPECT_LE(slow.load(60s), 0.006) << "rests are short at first";
    slow.until(121s, false);
    EXPECT_LE(slow.load(60s), 0.005);
    all += slow.load(60s);
  }
  EXPECT_LE(all / 50, 0.002);
}

TEST(TickFollower, AJumpIsFollowed) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    for (const bool closely : {false, true}) {
      SCOPED_TRACE(seed);
      SlowReads slow(seed);
      slow.until(60s, true);
      slow.schedule(60s + 3ms * (5 + seed));
      slow.until(80s, closely);
      EXPECT_LE(slow.load(20s), closely ? 0.1 : 0.015);
      slow.until(82s, true);
      EXPECT_GE(slow.exact, 1);
      EXPECT_LE(slow.worst, 7500us);
      slow.until(122s, false);
      slow.until(182s, false);
      EXPECT_LE(slow.load(60s), 0.004);
      EXPECT_GE(slow.exact, 4);
    }
  }
}

TEST(TickFollower, WhatIsNotFoundIsLeftAlone) {
  SlowReads slow(1);
  slow.ticks.clear();  // it stands still
  slow.until(60s, false);
  slow.until(120s, false);
  EXPECT_LE(slow.load(60s), 0.002);
  slow.until(180s, true);
  EXPECT_LE(slow.load(60s), 0.1) << "with work under way, too";
}

}  // namespace
}  // namespace jewel

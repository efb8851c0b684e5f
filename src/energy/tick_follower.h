// TickFollower: when to read a counter that moves in ticks, and which readings say what was drawn until now.
//
// NVML's counter moves about every 100 ms and stands still between: a reading is exact only when the counter
// was seen to move just then. So the first ticks are watched closely, which tells the tick's length, and from
// then on the counter is read shortly before a tick is due and every 2 ms until it has moved: about four
// reads a tick. RAPL's moves every millisecond; there each reading is exact, and so many would be of no use.
// One thread; the time is given.
#pragma once

#include <optional>
#include <vector>

#include "energy/counter.h"

namespace jewel {

class TickFollower {
 public:
  using Time = MeterReading::Clock::time_point;
  using Duration = MeterReading::Clock::duration;

  explicit TickFollower(Time now) : poll_at_(now) {}

  // A reading. True: the counter had moved, and `at` is close enough behind its tick.
  bool see(Time at, double joules);
  void failed(Time at);  // a reading that was none

  // When to read next. `closely`: at every tick (20 ms at the least), else once in `rest`.
  Time next(Time now, bool closely, Duration rest) const;

  // Unset before the counter's pace is known.
  std::optional<Duration> tick() const { return tick_; }

 private:
  void learn(Duration gap);

  std::optional<double> joules_;
  std::optional<Time> read_at_;
  std::optional<Time> moved_at_;  // the last exact one
  std::vector<Duration> gaps_;
  std::optional<Duration> tick_;
  int misses_ = 0;  // reads since it moved last, but for those that wait for the tick
  Time poll_at_;    // when a tick is waited for
};

}  // namespace jewel

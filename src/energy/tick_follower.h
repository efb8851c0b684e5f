// TickFollower: when to read a counter that moves in ticks, and which readings say what was drawn until now.
//
// NVML's counter moves every 100 ms, very regularly, and stands still between: a reading is exact only when
// the counter was seen to move just then. A read is not free: on an H200 one takes about 3 ms of CPU time,
// some 6, a few 25. So
// - the first ticks are watched closely, which tells the tick's length and where it lies;
// - from then on the counter is read shortly before a tick is due and right behind it: two reads, seldom
// more.
//   The move lies between them, so its time is their middle. The tick's length is told by a long baseline,
//   and rests grow with that: no tick is waited for that cannot be foretold;
// - a tick that was missed is looked for at the next ones, more widely each time and three times at most;
// then
//   there is a rest. A counter whose pace is not found is left alone for longer and longer;
// - while there is work, reads take at most a tenth of the time.
// RAPL's moves every millisecond; there each reading is exact, and so many would be of no use.
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

  // A reading, and when it began and ended. Set: the counter has moved, at about this time; exact.
  std::optional<Time> see(Time began, Time ended, double joules);
  void failed(Time at);  // a reading that was none

  // When to read next. `closely`: at every tick (20 ms at the least), else once in `rest`.
  Time next(Time now, bool closely, Duration rest) const;

  // Unset before the counter's pace is known.
  std::optional<Duration> tick() const { return tick_; }

 private:
  enum class State : uint8_t {
    kPoll,  // a tick is due, or its length is to be found: the next read is at poll_at_
    kWait,  // the last group of reads is over
    kFail,  // so was the last read
  };

  bool fast() const;
  Duration widest() const;  // of two reads that a move lies between
  Duration lead() const;
  void time_read(Duration took);
  void begin_group(Time began);
  void end_group(Time at, bool found);
  void poll_again(Time began, Time ended);
  void learn(Time at);
  void learn_first(Time at);

  State state_ = State::kPoll;
  Time poll_at_;
  std::optional<double> joules_;
  std::optional<Time> began_;          // the last read
  std::optional<Duration> read_time_;  // what one usually takes

  // A group: the reads around one tick, or those that look for its length.
  bool in_group_ = false;
  Time group_ends_{};        // it has failed then
  std::optional<Time> due_;  // the tick that it is about, where one is foretold
  Duration spent_{};         // in its reads
  Time over_{};              // when the last one was
  int failures_ = 0;         // groups, or reads, in a row
  bool stands_still_ = false;

  std::optional<Time> moved_at_;  // the last exact one
  std::vector<Duration> gaps_;
  std::optional<Duration> tick_;
  // Exact moves long ago, and the ticks since then: one to measure by, and the one that follows it.
  struct Anchor {
    Time at;
    Duration::rep ticks = 0;
  };
  Anchor anchor_, next_anchor_;
  int strange_ = 0;  // moves in a row that were no whole ticks after the one before
};

}  // namespace jewel

// Joules for a benchmark: a counter that is read at short intervals while runs go on, and asked afterwards
// how much fell between two moments.
//
// A benchmark without a meter has no joules at all: nothing is estimated.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "energy/counter.h"

namespace jewel {

// Reads the counter every 50 ms on a thread of its own, until destroyed. A counter moves in ticks (NVML's by
// about 100 ms): only readings at which it had moved count as moments of known energy, and between two of
// them power is taken as even. Any thread may ask.
class MeterTrace {
 public:
  explicit MeterTrace(std::unique_ptr<EnergyCounter> counter,
                      std::chrono::milliseconds interval = std::chrono::milliseconds(50));
  ~MeterTrace();
  MeterTrace(const MeterTrace&) = delete;
  MeterTrace& operator=(const MeterTrace&) = delete;

  using Clock = MeterReading::Clock;
  std::string method() const { return counter_->method(); }
  std::string device() const { return counter_->device(); }

  // Joules from one moment to another; nullopt before the counter has moved behind `to`. Waits for that at
  // most `patience`.
  std::optional<double> joules(Clock::time_point from, Clock::time_point to,
                               std::chrono::milliseconds patience = std::chrono::milliseconds(1000));
  // Readings inside, the nearest before and behind them included.
  std::vector<MeterReading> readings(Clock::time_point from, Clock::time_point to) const;

 private:
  void loop(std::chrono::milliseconds interval);
  std::optional<double> at(Clock::time_point moment) const;  // mutex_ held

  const std::unique_ptr<EnergyCounter> counter_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<MeterReading> readings_;
  bool stop_ = false;
  std::thread thread_;  // the last
};

}  // namespace jewel

// A counter by the clock, for tests with threads: so many watts, in ticks, with reads that fail.
#pragma once

#include <atomic>
#include <memory>

#include "energy/counter.h"

namespace jewel {

struct CounterScript {
  std::chrono::milliseconds tick{10};
  std::atomic<double> watts{100};  // read at ticks only: the joules so far stay what they were
  std::atomic<bool> fails{false};
  std::atomic<bool> stands_still{false};
  std::atomic<double> joules{0};  // as last read
  std::atomic<int> reads{0};
};

class ScriptedCounter final : public EnergyCounter {
 public:
  explicit ScriptedCounter(std::shared_ptr<CounterScript> script) : script_(std::move(script)) {}
  std::string method() const override { return "nvml"; }
  std::string device() const override { return "scripted GPU"; }
  std::optional<MeterReading> read() override {
    ++script_->reads;
    if (script_->fails) return std::nullopt;
    const auto now = MeterReading::Clock::now();
    const auto ticks = (now - begin_) / script_->tick;
    if (!script_->stands_still) {
      const std::chrono::duration<double> passed = (ticks - ticks_) * script_->tick;
      script_->joules = script_->joules + script_->watts * passed.count();
    }
    ticks_ = ticks;
    return MeterReading{.at = now, .joules = script_->joules};
  }

 private:
  const std::shared_ptr<CounterScript> script_;
  const MeterReading::Clock::time_point begin_ = MeterReading::Clock::now();
  int64_t ticks_ = 0;
};

}  // namespace jewel

// EnergyCounter: the joules that a device has drawn, as its own counter says, and the way to find one.
//
// A counter is measured hardware or it is not there: nothing stands in for it. What NVML and RAPL count, and
// what they leave out, stands in docs/energy.md.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace jewel {

struct MeterReading {
  using Clock = std::chrono::steady_clock;
  Clock::time_point at;
  double joules = 0;  // since some moment; never goes back
  std::optional<double> celsius;
  std::optional<double> sm_mhz;
  std::optional<double> memory_mhz;
};

// Any thread, one at a time.
class EnergyCounter {
 public:
  EnergyCounter() = default;
  virtual ~EnergyCounter() = default;
  EnergyCounter(const EnergyCounter&) = delete;
  EnergyCounter& operator=(const EnergyCounter&) = delete;
  virtual std::string method() const = 0;  // "nvml", "rapl"
  virtual std::string device() const = 0;
  virtual std::optional<MeterReading> read() = 0;  // time and joules; nullopt: it failed this time
  // Temperature and clocks, where the device tells them: each is a call of its own.
  virtual void read_conditions(MeterReading& /*reading*/) {}
};

// One register, made a total that only grows. A register that falls has wrapped, where its range is known and
// the way over the end is the short one; else it was reset, and what it counted meanwhile is not guessed at.
class RunningTotal {
 public:
  RunningTotal() = default;
  explicit RunningTotal(uint64_t range) : range_(range) {}  // it counts to range and begins at 0; 0: unknown

  // In the register's unit, since the first call.
  uint64_t add(uint64_t value) {
    if (last_ && value >= *last_) total_ += value - *last_;
    if (last_ && value < *last_ && range_ >= *last_) {
      const uint64_t over_the_end = range_ - *last_ + value;
      if (over_the_end < range_ / 2) total_ += over_the_end;
    }
    last_ = value;
    return total_;
  }

 private:
  uint64_t range_ = 0;
  std::optional<uint64_t> last_;
  uint64_t total_ = 0;
};

struct CounterWish {
  std::string which = "auto";  // auto, none, nvml, rapl
  // What is measured runs on a GPU, or on the CPU: auto is that one's counter. Unset: not known, and auto
  // takes a GPU's where there is one.
  std::optional<bool> on_gpu;
  int cuda_index = 0;  // as the CUDA runtime counts devices
};

struct FoundCounter {
  std::unique_ptr<EnergyCounter> counter;  // nullptr: none
  std::string why;                         // there is none
};

FoundCounter find_counter(const CounterWish& wish);

}  // namespace jewel

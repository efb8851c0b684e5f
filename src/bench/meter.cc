#include "bench/meter.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace jewel {

MeterTrace::MeterTrace(std::unique_ptr<EnergyCounter> counter, std::chrono::milliseconds interval)
    : counter_(std::move(counter)), thread_([this, interval] { loop(interval); }) {}

MeterTrace::~MeterTrace() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void MeterTrace::loop(std::chrono::milliseconds interval) {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    std::optional<MeterReading> reading = counter_->read();
    // The first reading may be of a counter that moved a while ago: it is known energy from its tick on. Only
    // this thread writes readings_.
    const bool moved = reading && (readings_.empty() || reading->joules > readings_.back().joules);
    if (moved) counter_->read_conditions(*reading);
    lock.lock();
    if (moved) {
      readings_.push_back(*reading);
      changed_.notify_all();
    }
    changed_.wait_for(lock, interval, [&] { return stop_; });
  }
}

std::optional<double> MeterTrace::at(Clock::time_point moment) const {
  const auto behind = std::ranges::lower_bound(readings_, moment, {}, &MeterReading::at);
  if (behind == readings_.end()) return std::nullopt;
  if (behind->at == moment) return behind->joules;
  if (behind == readings_.begin()) return std::nullopt;
  const auto before = behind - 1;
  const double share = std::chrono::duration<double>(moment - before->at) / (behind->at - before->at);
  return std::lerp(before->joules, behind->joules, share);
}

std::optional<double> MeterTrace::joules(Clock::time_point from, Clock::time_point to,
                                         std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [&] { return !readings_.empty() && readings_.back().at >= to; });
  const auto first = at(from);
  const auto last = at(to);
  if (!first || !last) return std::nullopt;
  return *last - *first;
}

std::vector<MeterReading> MeterTrace::readings(Clock::time_point from, Clock::time_point to) const {
  const std::lock_guard lock(mutex_);
  auto first = std::ranges::lower_bound(readings_, from, {}, &MeterReading::at);
  auto last = std::ranges::upper_bound(readings_, to, {}, &MeterReading::at);
  if (first != readings_.begin()) --first;
  if (last != readings_.end()) ++last;
  return {first, last};
}

}  // namespace jewel

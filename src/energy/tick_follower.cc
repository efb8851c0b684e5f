#include "energy/tick_follower.h"

#include <algorithm>

namespace jewel {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kWatch{1};           // between reads while the tick's length is not known
constexpr milliseconds kPoll{2};            // and while a tick is due
constexpr milliseconds kLead{3};            // reads begin so long before it
constexpr milliseconds kLeastInterval{20};  // no more often than that, however fast the counter
constexpr milliseconds kSlack{5};           // a move seen so late is exact enough: 5 % of NVML's tick
constexpr milliseconds kStill{100};         // between reads of a counter that stands still
constexpr int kMostMisses = 400;
constexpr size_t kGaps = 3;
constexpr int kMemory = 8;  // ticks that the estimate of their length looks back

}  // namespace

bool TickFollower::see(Time at, double joules) {
  const bool moved = joules_ && joules > *joules_;
  const Duration since_read = read_at_ ? at - *read_at_ : Duration::max();
  joules_ = joules;
  read_at_ = at;
  misses_ = moved ? 0 : misses_ + 1;
  poll_at_ = at + (misses_ > kMostMisses ? kStill : tick_ ? kPoll : kWatch);
  if (!moved) return false;
  const bool exact = (tick_ ? std::min(since_read, *tick_) : since_read) <= kSlack;
  if (!exact) return false;
  if (moved_at_) learn(at - *moved_at_);
  moved_at_ = at;
  return true;
}

void TickFollower::failed(Time at) {
  poll_at_ = at + (tick_ ? std::max<Duration>(*tick_, kLeastInterval) : kLeastInterval);
  read_at_.reset();  // so what moves next is not known to have moved just then
}

// A gap is one tick while every move is watched, and some whole ticks later on.
void TickFollower::learn(Duration gap) {
  if (!tick_) {
    gaps_.push_back(gap);
    if (gaps_.size() < kGaps) return;
    std::ranges::sort(gaps_);
    tick_ = gaps_[kGaps / 2];
    return;
  }
  const auto ticks = (gap + *tick_ / 2) / *tick_;
  if (ticks > 0 && *tick_ > kSlack) *tick_ += (gap / ticks - *tick_) / kMemory;
}

TickFollower::Time TickFollower::next(Time now, bool closely, Duration rest) const {
  // Between ticks, from one that was seen; else one is waited for.
  if (!tick_ || !moved_at_ || read_at_ != moved_at_) return poll_at_;
  Duration wait = closely ? kLeastInterval : rest;
  if (*tick_ <= kSlack) return std::max(now, *moved_at_ + wait);
  const auto ticks =
      std::max<Duration::rep>(1, closely ? (wait + *tick_ - Duration(1)) / *tick_ : wait / *tick_);
  const auto passed = (now + kLead - *moved_at_) / *tick_ + 1;  // those that are over are not waited for
  return *moved_at_ + std::max(ticks, passed) * *tick_ - kLead;
}

}  // namespace jewel

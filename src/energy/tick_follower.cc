#include "energy/tick_follower.h"

#include <algorithm>

namespace jewel {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr microseconds kLeastPause{200};
constexpr milliseconds kPause{1};           // between reads while a move is waited for
constexpr milliseconds kBehind{1};          // a tick is looked for so long after it is due: they jitter
constexpr milliseconds kLead{3};            // reads begin so long before it, or
constexpr double kLeadReads = 1.5;          // so many reads' time
constexpr milliseconds kLeastInterval{20};  // no more often than that, however fast the counter
constexpr milliseconds kSlack{5};           // a move between reads so far apart is exact: 5 % of NVML's tick
constexpr double kSlackReads = 3.25;        // slow reads are farther apart
constexpr double kMostSlack = 0.15;         // of a tick
constexpr int kBusy = 9;                    // time that passes for each that reads took, while there is work
constexpr int kTries = 4;                   // for a tick, before there is a rest
constexpr milliseconds kWatch{800};         // to find the tick's length; twice that next time
constexpr int kMostDoublings = 3;
constexpr milliseconds kLeastRest{100};  // between two such attempts
constexpr milliseconds kMostBusyPause{2000};
constexpr seconds kMostPause{64};  // while there is no work
constexpr size_t kGaps = 3;
constexpr int kBaseline = 600;  // ticks
constexpr int kMostStrange = 3;

TickFollower::Duration times(double factor, TickFollower::Duration time) {
  return TickFollower::Duration(
      static_cast<TickFollower::Duration::rep>(factor * static_cast<double>(time.count())));
}

}  // namespace

// Each reading tells all.
bool TickFollower::fast() const {
  return tick_ && *tick_ <= kSlack;
}

TickFollower::Duration TickFollower::widest() const {
  const Duration by_reads = times(kSlackReads, read_time_.value_or(Duration(0)));
  const Duration most = times(kMostSlack, tick_.value_or(milliseconds(100)));
  return std::max<Duration>(kSlack, std::min(by_reads, most));
}

// The tick may be elsewhere than was thought when it was missed; at last all of it is watched.
TickFollower::Duration TickFollower::lead() const {
  const Duration lead = std::max<Duration>(kLead, times(kLeadReads, read_time_.value_or(Duration(0))));
  const int tries = failures_ % kTries;
  return std::min(tries == 0 ? lead : tries == 1 ? 3 * lead : *tick_ / 2, *tick_ / 2);
}

// About the median: a read that takes ten times as long now and then says nothing about the next.
void TickFollower::time_read(Duration took) {
  if (!read_time_) read_time_ = took;
  const Duration step = std::max<Duration>(*read_time_ / 8, microseconds(20));
  *read_time_ += std::clamp(took - *read_time_, -step, step);
}

void TickFollower::begin_group(Time began) {
  in_group_ = true;
  state_ = State::kPoll;
  spent_ = {};
  due_.reset();
  if (!tick_) {
    group_ends_ = began + kWatch * (1 << std::min(failures_, kMostDoublings));
    return;
  }
  const bool everywhere = failures_ % kTries >= 2;
  due_ = *moved_at_ + ((began - *moved_at_) / *tick_ + 1) * *tick_;
  group_ends_ = everywhere ? began + *tick_ * 3 / 2 : *due_ + *tick_ / 6;
  // A thread that woke late, or early for another reason, does not stay for the next tick.
  if (!everywhere && *due_ - began > lead() + kSlack) group_ends_ = began;
}

void TickFollower::end_group(Time at, bool found) {
  in_group_ = false;
  state_ = State::kWait;
  over_ = at;
  failures_ = found ? 0 : failures_ + 1;
  // What moves next is no neighbour of what moved before.
  if (!found && !tick_) moved_at_.reset();
}

std::optional<TickFollower::Time> TickFollower::see(Time began, Time ended, double joules) {
  const bool moved = joules_ && joules > *joules_;
  const std::optional<Duration> apart = began_ ? std::optional(ended - *began_) : std::nullopt;
  joules_ = joules;
  began_ = began;
  if (state_ == State::kFail) failures_ = 0;
  time_read(ended - began);
  if (moved && fast()) {
    spent_ = ended - began;
    end_group(ended, true);
    moved_at_ = ended;
    return ended;
  }
  // Since the last group it has moved how often it may; where that was one tick ago, the tick has come early,
  // or the read was long: nothing is left to wait for.
  const bool first = !in_group_ && (!apart || !tick_ || *apart > *tick_ * 3 / 2);
  if (!in_group_) begin_group(began);
  spent_ += ended - began;
  const bool exact = moved && apart && *apart <= widest();
  if (exact) {
    const Time at = ended - *apart / 2;
    const bool known = tick_.has_value();
    learn(at);
    stands_still_ = false;
    if (known || tick_) {
      // The first ticks behind those that told its length tell it better, so there is no pause for what that
      // took.
      if (!known) spent_ = {};
      end_group(ended, true);
    } else {
      poll_again(began, ended);
    }
    return at;
  }
  if (moved) {
    stands_still_ = false;
    if (tick_ && !first) {
      end_group(ended, false);
      return std::nullopt;
    }
    if (!tick_) moved_at_.reset();
  }
  // One that stood still all the last time is watched again when it has moved.
  if (ended >= group_ends_ || stands_still_) {
    if (!tick_ && !moved && !moved_at_) stands_still_ = true;
    end_group(ended, false);
  } else {
    poll_again(began, ended);
  }
  return std::nullopt;
}

// At once, but where the tick is not due yet and would still be seen closely enough behind it.
void TickFollower::poll_again(Time began, Time ended) {
  poll_at_ = ended + std::max<Duration>(kPause - *read_time_, kLeastPause);
  if (due_ && *due_ + kBehind > poll_at_ && *due_ + kBehind + *read_time_ - began <= widest())
    poll_at_ = *due_ + kBehind;
}

void TickFollower::failed(Time at) {
  began_.reset();  // so what moves next is not known to have moved just then
  if (!tick_) moved_at_.reset();
  in_group_ = false;
  if (state_ != State::kFail) failures_ = 0;
  ++failures_;
  state_ = State::kFail;
  over_ = at;
}

void TickFollower::learn(Time at) {
  if (!tick_) {
    learn_first(at);
    return;
  }
  const Duration gap = at - *moved_at_;
  const auto ticks = (gap + *tick_ / 2) / *tick_;
  const Duration off = gap - ticks * *tick_;
  moved_at_ = at;
  if (ticks == 0 || std::max(off, -off) > 2 * widest()) {
    // It has jumped, or its pace is another one.
    anchor_ = next_anchor_ = {.at = at};
    if (++strange_ < kMostStrange) return;
    strange_ = 0;
    tick_.reset();
    gaps_.clear();
    return;
  }
  strange_ = 0;
  anchor_.ticks += ticks;
  next_anchor_.ticks += ticks;
  tick_ = (at - anchor_.at) / anchor_.ticks;
  if (next_anchor_.ticks < kBaseline) return;
  anchor_ = next_anchor_;
  next_anchor_ = {.at = at};
}

// Gaps of one tick: every move between is watched.
void TickFollower::learn_first(Time at) {
  if (moved_at_ && gaps_.empty()) anchor_ = {.at = *moved_at_};
  if (moved_at_) gaps_.push_back(at - *moved_at_);
  moved_at_ = at;
  if (gaps_.size() < kGaps) return;
  std::ranges::sort(gaps_);
  tick_ = gaps_[kGaps / 2];
  gaps_.clear();
  anchor_.ticks = (at - anchor_.at + *tick_ / 2) / *tick_;
  tick_ = (at - anchor_.at) / anchor_.ticks;
  next_anchor_ = {.at = at};
  spent_ = {};  // to find it once; a wait for that would be longer than is foretold yet
}

TickFollower::Time TickFollower::next(Time now, bool closely, Duration rest) const {
  if (state_ == State::kPoll) return poll_at_;
  if (state_ == State::kFail) {
    const Duration wait = std::max<Duration>(tick_.value_or(kLeastInterval), kLeastInterval);
    return over_ + (closely ? wait : std::max(wait, std::min(wait * (1 << std::min(failures_, 10)), rest)));
  }
  const Duration busy = kBusy * spent_;
  if (!tick_) {
    const Duration pause = std::clamp<Duration>(busy, kLeastRest, kMostBusyPause);
    if (closely) return over_ + pause;
    return over_ + std::max<Duration>(
                       pause, std::min<Duration>(seconds(1) * (1 << std::min(failures_, 10)), kMostPause));
  }
  const Duration wait = std::max<Duration>(busy, kLeastInterval);
  if (fast()) return std::max(now, over_ + (closely ? wait : std::max(wait, rest)));
  Time from = over_ + wait;
  if (!closely && failures_ % kTries == 0) {
    // Not beyond what the baseline foretells.
    const auto ticks = std::clamp<Duration::rep>(anchor_.ticks, 1, std::max<Duration::rep>(rest / *tick_, 1));
    const Time rested = failures_ == 0 ? *moved_at_ + ticks * *tick_ - lead() : over_ + rest;
    from = std::max(from, rested);
  }
  from = std::max(from, now);
  const auto ticks = (from + lead() - *moved_at_ + *tick_ - Duration(1)) / *tick_;
  return *moved_at_ + std::max<Duration::rep>(ticks, 1) * *tick_ - lead();
}

}  // namespace jewel

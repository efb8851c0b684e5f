#include "energy/energy_meter.h"

#include <algorithm>
#include <utility>

namespace jewel {

EnergyMeter::EnergyMeter(std::unique_ptr<EnergyCounter> counter, EnergyMeterOptions options)
    : counter_(std::move(counter)),
      options_(options),
      books_(Clock::now()),
      follower_(Clock::now()),
      thread_([this] { loop(); }) {}

EnergyMeter::~EnergyMeter() {
  stop_waiting();
  {
    const std::lock_guard lock(wake_mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

// ---- the engine's thread

void EnergyMeter::note(Event::What what, std::span<const RowWork> rows) {
  const std::lock_guard lock(notes_mutex_);
  events_.push_back({.what = what, .at = Clock::now(), .n_rows = rows.size()});
  rows_.insert(rows_.end(), rows.begin(), rows.end());
}

// From now on every tick counts.
void EnergyMeter::work_begins() {
  note(Event::What::kBegin, {});
  wake();
}

void EnergyMeter::step_done(std::span<const RowWork> rows) {
  note(Event::What::kStep, rows);
}

void EnergyMeter::work_ends() {
  note(Event::What::kEnd, {});
}

// ---- the meter's thread

void EnergyMeter::wake() {
  {
    const std::lock_guard lock(wake_mutex_);
    woken_ = true;
  }
  wake_.notify_one();
}

void EnergyMeter::take_notes() {
  {
    const std::lock_guard lock(notes_mutex_);
    taken_events_.swap(events_);
    taken_rows_.swap(rows_);
  }
  std::span<const RowWork> rows(taken_rows_);
  for (const Event& event : taken_events_) {
    switch (event.what) {
      case Event::What::kBegin:
        books_.work_begins(event.at);
        break;
      case Event::What::kStep:
        books_.step_done(event.at, rows.first(event.n_rows));
        rows = rows.subspan(event.n_rows);
        break;
      case Event::What::kEnd:
        books_.work_ends(event.at);
        break;
    }
  }
  taken_events_.clear();
  taken_rows_.clear();
}

void EnergyMeter::loop() {
  while (true) {
    read_counter();
    answer_waiting(Clock::now());
    // Whoever wakes this thread has changed what it waits for; the counter moves no sooner for that.
    while (true) {
      const Clock::time_point next = next_reading();
      std::unique_lock lock(wake_mutex_);
      const bool woken = wake_.wait_until(lock, next, [this] { return woken_ || stop_; });
      woken_ = false;
      if (stop_) return;
      if (!woken) break;
    }
  }
}

void EnergyMeter::read_counter() {
  const Clock::time_point began = Clock::now();
  const std::optional<MeterReading> reading = counter_->read();
  const std::lock_guard lock(books_mutex_);
  take_notes();
  if (!reading) {
    follower_.failed(Clock::now());
    return;
  }
  // The first says where the counter begins, whenever that is.
  const bool first = !std::exchange(begun_, true);
  const std::optional<Clock::time_point> moved_at = follower_.see(began, reading->at, reading->joules);
  if (moved_at || first)
    books_.reading(moved_at.value_or(reading->at), reading->joules, moved_at.has_value());
}

EnergyMeter::Clock::time_point EnergyMeter::next_reading() {
  const std::lock_guard lock(books_mutex_);
  take_notes();
  const bool closely = !books_.resting() || books_.unsettled() || !waiting_.empty();
  Clock::time_point next = follower_.next(Clock::now(), closely, options_.rest);
  for (const Waiting& waiting : waiting_) next = std::min(next, waiting.until);
  return next;
}

// ---- ends of requests

std::optional<EnergyMeter::Answered> EnergyMeter::try_close(Waiting& waiting, bool give_up) {
  EnergyBooks::Closed closed =
      books_.close(Clock::now(), waiting.sequence, waiting.rows_in_flight, give_up || !may_wait_);
  if (closed.state == EnergyBooks::Closed::State::kWait) return std::nullopt;
  Answered answered{.answer = std::move(waiting.answer), .joules = {}};
  if (closed.state == EnergyBooks::Closed::State::kDone) answered.joules = closed.joules;
  return answered;
}

bool EnergyMeter::close(uint64_t sequence, int rows_in_flight, std::optional<RequestJoules>& joules,
                        Answer later) {
  Waiting waiting{.sequence = sequence,
                  .rows_in_flight = rows_in_flight,
                  .until = Clock::now() + options_.most_wait,
                  .answer = std::move(later)};
  {
    const std::lock_guard lock(books_mutex_);
    take_notes();
    if (auto answered = try_close(waiting, false)) {
      joules = answered->joules;
      return true;
    }
    waiting_.push_back(std::move(waiting));
  }
  wake();
  return false;
}

void EnergyMeter::answer_waiting(Clock::time_point now) {
  std::vector<Answered> answers;
  {
    const std::lock_guard lock(books_mutex_);
    std::erase_if(waiting_, [&](Waiting& waiting) {
      auto answered = try_close(waiting, now >= waiting.until);
      if (!answered) return false;
      answers.push_back(*std::move(answered));
      return true;
    });
  }
  for (Answered& answered : answers) answered.answer(answered.joules);
}

void EnergyMeter::stop_waiting() {
  {
    const std::lock_guard lock(books_mutex_);
    take_notes();
    may_wait_ = false;
  }
  answer_waiting(Clock::now());
}

EnergyMeter::Totals EnergyMeter::totals() {
  const std::lock_guard lock(books_mutex_);
  take_notes();
  const auto tick = follower_.tick();
  return {.joules = books_.totals(), .tick_s = tick ? std::chrono::duration<double>(*tick).count() : 0};
}

}  // namespace jewel

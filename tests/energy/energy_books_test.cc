// The books over made-up schedules and a scripted meter: what a device of known costs draws, as a counter
// with ticks, wraps, resets and failed reads shows it. Whatever happens: requests + idle = counter, within 2
// %.
#include "energy/energy_books.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

namespace jewel {
namespace {

using namespace std::chrono_literals;
using Time = EnergyBooks::Time;
using State = EnergyBooks::Closed::State;

Time at(double seconds) {
  return Time(std::chrono::duration_cast<Time::duration>(std::chrono::duration<double>(seconds)));
}

// ---- a few steps by hand

TEST(EnergyBooks, RestIsIdle) {
  EnergyBooks books(at(0));
  books.reading(at(0), 1000);
  books.reading(at(1), 1080);
  books.reading(at(2), 1160);
  EXPECT_DOUBLE_EQ(books.totals().idle_joules, 160);
  EXPECT_DOUBLE_EQ(books.totals().counter_joules, 160);
  EXPECT_DOUBLE_EQ(books.totals().watts, 80);
  EXPECT_DOUBLE_EQ(books.totals().idle_watts, 80);
}

TEST(EnergyBooks, RestThatBeganBeforeTheFirstReadingSaysNothingOfItsWatts) {
  EnergyBooks books(at(0));
  books.reading(at(0.07), 0, /*exact=*/false);
  books.reading(at(0.1), 8);  // of 100 ms
  for (int i = 2; i <= 20; ++i) books.reading(at(0.1 * i), 8 * i);
  EXPECT_NEAR(books.totals().idle_watts, 80, 1e-6);
}

TEST(EnergyBooks, AStepIsSharedByItsRows) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  const RowWork rows[] = {{.sequence = 1, .prefill_tokens = 100, .image_patches = 2520},
                          {.sequence = 2, .decode_tokens = 1},
                          {.sequence = 3, .decode_tokens = 1, .reasoning = true}};
  books.step_done(at(0.1), rows);
  books.reading(at(0.1), 30);
  const auto prompt = books.close(at(0.1), 1, 0).joules;
  const auto answer = books.close(at(0.1), 2, 0).joules;
  const auto thought = books.close(at(0.1), 3, 0).joules;
  EXPECT_GT(prompt.image, 0);
  EXPECT_GT(prompt.prefill, 0);
  EXPECT_EQ(prompt.decode, 0);
  EXPECT_EQ(answer.prefill + answer.image + answer.reasoning, 0);
  EXPECT_DOUBLE_EQ(answer.decode, thought.decode);
  EXPECT_DOUBLE_EQ(thought.reasoning, thought.decode);
  EXPECT_NEAR(prompt.sum() + answer.sum() + thought.sum(), 30, 1e-9);
}

TEST(EnergyBooks, AStepAcrossATickIsCutThere) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  const RowWork first[] = {{.sequence = 1, .decode_tokens = 1}};
  books.step_done(at(0.15), first);
  books.reading(at(0.1), 10);  // inside of the step
  const RowWork second[] = {{.sequence = 2, .decode_tokens = 1}};
  books.step_done(at(0.2), second);
  books.reading(at(0.2), 40);
  books.work_ends(at(0.2));
  // 10 J of the first window and a share of the 30 J of the second: a third of a step beside a whole one.
  EXPECT_NEAR(books.close(at(0.2), 1, 0).joules.decode, 10 + 30.0 / 4, 0.2);
  EXPECT_NEAR(books.close(at(0.2), 2, 0).joules.decode, 30.0 * 3 / 4, 0.2);
}

TEST(EnergyBooks, WhoEndsBetweenReadingsIsChargedWhatIsNotCovered) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  const RowWork other[] = {{.sequence = 1, .decode_tokens = 1}};
  for (int i = 1; i <= 40; ++i) {  // 1 J a step
    books.step_done(at(0.05 * i), other);
    books.reading(at(0.05 * i), i);
  }
  const RowWork row[] = {{.sequence = 2, .decode_tokens = 1}};
  books.reading(at(2.025), 40.5);  // in the middle of the next step
  books.step_done(at(2.05), row);
  const auto closed = books.close(at(2.05), 2, /*rows_in_flight=*/1);
  ASSERT_EQ(closed.state, State::kDone);
  EXPECT_NEAR(closed.joules.decode, 2, 0.02)
      << "half of it read, half of it charged, and one more row to come";
  books.step_done(at(2.1), row);
  books.work_ends(at(2.1));
  books.reading(at(2.1), 42.4);  // 0.4 J more than was charged
  EXPECT_NEAR(books.totals().residual_joules, 0.4, 0.02);
  books.work_begins(at(2.1));
  const RowWork next[] = {{.sequence = 3, .decode_tokens = 1}};
  books.step_done(at(2.15), next);
  books.reading(at(2.15), 43.4);
  EXPECT_NEAR(books.close(at(2.15), 3, 0).joules.decode, 1.25, 0.01) << "a quarter of its own, no more";
  EXPECT_NEAR(books.totals().residual_joules, 0.15, 0.02);
}

TEST(EnergyBooks, RestWhileSomebodyWaitsIsSharedAmongThoseThere) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.reading(at(10), 800);
  books.work_begins(at(10));
  const RowWork rows[] = {{.sequence = 1, .decode_tokens = 1}, {.sequence = 2, .decode_tokens = 1}};
  books.step_done(at(10.1), rows);
  books.reading(at(10.1), 830);
  EXPECT_DOUBLE_EQ(books.close(at(10.1), 1, 0).joules.idle_share, 400);
  EXPECT_DOUBLE_EQ(books.close(at(10.1), 2, 0).joules.idle_share, 400);
}

TEST(EnergyBooks, TheFirstEndWaitsForAReadingAndLaterOnesDoNot) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  const RowWork row[] = {{.sequence = 1, .decode_tokens = 1}};
  books.step_done(at(0.06), row);
  EXPECT_EQ(books.close(at(0.06), 1, 0).state, State::kWait);
  books.work_ends(at(0.06));
  books.reading(at(0.1), 20);
  EXPECT_EQ(books.close(at(0.1), 1, 0).state, State::kDone);

  books.work_begins(at(0.3));
  const RowWork again[] = {{.sequence = 2, .decode_tokens = 1}};
  books.step_done(at(0.36), again);
  const auto closed = books.close(at(0.36), 2, 0);
  ASSERT_EQ(closed.state, State::kDone) << "charged by what was learned";
  EXPECT_GT(closed.joules.decode, 5);
  books.work_ends(at(0.36));
  books.reading(at(0.4), 44);
  EXPECT_NE(books.totals().residual_joules, 0) << "and put right later";
}

// The meter looks seldom while nobody asks: each reading covers 8 s of rest, 640 J, and 30 J of work.
TEST(EnergyBooks, LoneRequestsAfterLongRestsHaveFigures) {
  EnergyBooks books(at(0));
  double now = 0, counter = 0;
  const auto read = [&](double until, double joules) {
    now = until;
    counter += joules;
    books.reading(at(now), counter);
  };
  read(0, 0);
  for (int i = 1; i <= 20; ++i) read(i, 80);
  int figures = 0, waited = 0;
  double sum = 0;
  for (uint64_t request = 1; request <= 20; ++request) {
    const double begin = now + 8;
    books.work_begins(at(begin));
    const RowWork row[] = {{.sequence = request, .decode_tokens = 1}};
    books.step_done(at(begin + 0.1), row);
    books.work_ends(at(begin + 0.1));
    auto closed = books.close(at(begin + 0.1), request, 0);
    read(begin + 0.2, 80 * 8.1 + 30);
    waited += closed.state == State::kWait ? 1 : 0;
    if (closed.state == State::kWait) closed = books.close(at(now), request, 0);
    if (closed.state != State::kDone) continue;
    ++figures;
    sum += closed.joules.sum();
  }
  EXPECT_GE(figures, 19);
  EXPECT_LE(waited, 5) << "for the next reading, which in a meter is seconds away";
  EXPECT_NEAR(sum / figures, 30, 1);
}

TEST(EnergyBooks, WhoWaitsTooLongHasNoFigure) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  const RowWork row[] = {{.sequence = 1, .decode_tokens = 1}};
  books.step_done(at(0.06), row);
  EXPECT_EQ(books.close(at(0.06), 1, 0, /*give_up=*/true).state, State::kNone);
  books.work_ends(at(0.06));
  books.reading(at(0.1), 20);
  EXPECT_EQ(books.totals().residual_joules, 0);
  EXPECT_NEAR(books.totals().decode_joules + books.totals().idle_joules, 20, 1e-9);
}

TEST(EnergyBooks, ARequestThatWasNeverComputedCostNothing) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  const auto closed = books.close(at(1), 77, 0);
  EXPECT_EQ(closed.state, State::kDone);
  EXPECT_EQ(closed.joules.sum(), 0);
}

TEST(EnergyBooks, ALostCounterIsSaidAndNotMadeUp) {
  EnergyBooks books(at(0));
  books.reading(at(0), 0);
  books.work_begins(at(0));
  double now = 0;
  const RowWork early[] = {{.sequence = 1, .decode_tokens = 1}, {.sequence = 2, .decode_tokens = 1}};
  for (; now < 1; now += 0.05) {
    books.step_done(at(now), early);
    books.reading(at(now), 100 * now);
  }
  EXPECT_EQ(books.close(at(now), 1, 0).state, State::kDone);
  const RowWork late[] = {{.sequence = 2, .decode_tokens = 1}, {.sequence = 3, .decode_tokens = 1}};
  for (; now < 20; now += 0.05) books.step_done(at(now), late);
  EXPECT_EQ(books.close(at(now), 2, 0).state, State::kNone);
  books.reading(at(now), 100 * now);
  EXPECT_GT(books.totals().unattributed_joules, 1800);
  const double lost = books.totals().unattributed_joules;
  const RowWork after[] = {{.sequence = 3, .decode_tokens = 1}, {.sequence = 4, .decode_tokens = 1}};
  for (double end = now + 1; now < end; now += 0.05) {
    books.step_done(at(now), after);
    books.reading(at(now), 100 * now);
  }
  EXPECT_EQ(books.close(at(now), 3, 0).state, State::kNone) << "a part of it is unknown";
  EXPECT_EQ(books.close(at(now), 4, 0).state, State::kDone) << "and life goes on";
  const EnergyTotals& totals = books.totals();
  EXPECT_EQ(totals.unattributed_joules, lost);
  EXPECT_NEAR(totals.decode_joules + totals.idle_joules + lost, totals.counter_joules, 1e-6);
}

// ---- random schedules

struct Device {
  double step = 0.45, prefill_token = 0.008, decode_token = 0.05, patch = 0.0006;  // J
  double idle_watts = 80;
  double noise = 0.05;  // of a step's joules
};

struct Meter {
  double tick_s = 0.1;
  double jitter_s = 0.002;   // a reading comes so late, at the most
  double failed = 0;         // share of readings
  uint64_t range = 0;        // millijoules; 0: 64 bits
  double reset_every_s = 0;  // 0: never
};

struct Traffic {
  double seconds = 60;
  double pause_s = 0.5;  // mean, between arrivals
  int most_tokens = 200;
  int slots = 8;
};

struct Asked {
  int to_prefill = 0;
  int patches = 0;
  int to_decode = 0;
  RequestJoules true_joules;
};

// Runs the schedule, keeps the truth, and asks the books.
class Simulation {
 public:
  Simulation(unsigned seed, Device device, Meter meter, Traffic traffic)
      : random_(seed), device_(device), meter_(meter), traffic_(traffic), total_(meter.range) {}

  void run() {
    read(true);
    next_tick_ = meter_.tick_s;
    double next_arrival = 0.05;
    while (now_ < traffic_.seconds || !live_.empty()) {
      while (next_arrival <= now_ && now_ < traffic_.seconds) {
        arrive();
        next_arrival += -std::log(1 - any()) * traffic_.pause_s;
      }
      if (live_.empty()) {
        if (working_) books_.work_ends(at(now_));
        working_ = false;
        rest_until(std::min(next_arrival, traffic_.seconds));
        continue;
      }
      if (!working_) books_.work_begins(at(now_));
      working_ = true;
      step();
    }
    if (working_) books_.work_ends(at(now_));
    working_ = false;
    meter_.failed = 0;
    rest_until(now_ + 5 * meter_.tick_s);
    for (const uint64_t sequence : waiting_) close(sequence, 0, true);
  }

  EnergyBooks books_{at(0)};
  RequestJoules asked_, true_;
  double true_idle_ = 0;
  int closed_ = 0, without_ = 0, waited_ = 0;

 private:
  double any() { return std::uniform_real_distribution<double>(0, 1)(random_); }

  void arrive() {
    Asked asked;
    asked.to_prefill = 1 + static_cast<int>(any() * (any() < 0.2 ? 4000 : 300));
    asked.patches = any() < 0.3 ? 2520 : 0;
    asked.to_decode = 1 + static_cast<int>(any() * traffic_.most_tokens);
    waiting_for_slot_.push_back({next_id_++, asked});
    admit();
  }

  void admit() {
    while (!waiting_for_slot_.empty() && static_cast<int>(live_.size()) < traffic_.slots) {
      live_.insert(waiting_for_slot_.front());
      waiting_for_slot_.erase(waiting_for_slot_.begin());
    }
  }

  // A step of 2 to 20 ms over everybody; a row of somebody who has just ended is in it, too.
  void step() {
    std::vector<RowWork> rows;
    std::vector<Asked*> owners;
    int budget = 2048;
    for (auto& [id, asked] : live_) {
      RowWork row{.sequence = id};
      if (asked.to_prefill > 0) {
        if (budget == 0) continue;
        row.prefill_tokens = std::min(asked.to_prefill, budget);
        budget -= row.prefill_tokens;
        row.image_patches = std::exchange(asked.patches, 0);
      } else {
        row.decode_tokens = 1;
      }
      rows.push_back(row);
      owners.push_back(&asked);
    }
    for (const uint64_t id : in_flight_) {
      rows.push_back({.sequence = id, .decode_tokens = 1});
      owners.push_back(nullptr);
    }
    in_flight_.clear();
    const double noise = std::normal_distribution<double>(1, device_.noise)(random_);
    double joules = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      RequestJoules own;
      const double base = device_.step / static_cast<double>(rows.size());
      own.image = noise * rows[i].image_patches * device_.patch;
      own.prefill =
          noise * (rows[i].prefill_tokens * device_.prefill_token + (rows[i].prefill_tokens > 0 ? base : 0));
      own.decode =
          noise * (rows[i].decode_tokens * device_.decode_token + (rows[i].decode_tokens > 0 ? base : 0));
      joules += own.sum();
      true_.image += own.image;
      true_.prefill += own.prefill;
      true_.decode += own.decode;
    }
    pass(0.002 + 0.000004 * (2048 - budget) + 0.004 * any() * any(), joules);
    books_.step_done(at(now_), rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      Asked* asked = owners[i];
      if (asked == nullptr) continue;
      asked->to_prefill -= rows[i].prefill_tokens;
      asked->to_decode -= asked->to_prefill == 0 ? 1 : 0;
      if (asked->to_prefill > 0 || asked->to_decode > 0) continue;
      const int more = any() < 0.5 ? 1 : 0;
      if (more > 0) in_flight_.push_back(rows[i].sequence);
      close(rows[i].sequence, more, false);
      live_.erase(rows[i].sequence);
    }
    admit();
    if (live_.empty() && !in_flight_.empty()) step();
  }

  void close(uint64_t sequence, int rows_in_flight, bool give_up) {
    const auto closed = books_.close(at(now_), sequence, rows_in_flight, give_up);
    if (closed.state == State::kWait) {
      ++waited_;
      // As the meter would: it is asked again after the next reading, and by then the row has come.
      waiting_.push_back(sequence);
      return;
    }
    ++closed_;
    if (closed.state == State::kNone) {
      ++without_;
      return;
    }
    for (const double part : {closed.joules.image, closed.joules.prefill, closed.joules.decode,
                              closed.joules.reasoning, closed.joules.idle_share})
      ASSERT_GE(part, 0);
    asked_.image += closed.joules.image;
    asked_.prefill += closed.joules.prefill;
    asked_.decode += closed.joules.decode;
    asked_.idle_share += closed.joules.idle_share;
  }

  void rest_until(double end) {
    while (now_ < end) {
      const double to = std::min(end, now_ + 0.01);
      true_idle_ += device_.idle_watts * (to - now_);
      pass(to - now_, device_.idle_watts * (to - now_));
    }
  }

  // The device draws; its register moves at ticks.
  void pass(double seconds, double joules) {
    const double watts = joules / seconds;
    const double end = now_ + seconds;
    while (next_tick_ <= end) {
      drawn_ += watts * (next_tick_ - now_);
      now_ = next_tick_;
      next_tick_ += meter_.tick_s;
      if (any() >= meter_.failed) read(false);
    }
    drawn_ += watts * (end - now_);
    now_ = end;
  }

  void read(bool first) {
    if (meter_.reset_every_s > 0 && now_ - last_reset_ > meter_.reset_every_s) {
      last_reset_ = now_;
      origin_ = drawn_;
    }
    auto millijoules = static_cast<uint64_t>((drawn_ - origin_) * 1e3);
    if (meter_.range > 0) millijoules %= meter_.range + 1;
    const double joules = static_cast<double>(total_.add(millijoules)) * 1e-3;
    if (!first && joules <= last_joules_) return;  // it has not moved
    last_joules_ = joules;
    books_.reading(at(now_ + (first ? 0 : any() * meter_.jitter_s)), joules);
    std::erase_if(waiting_, [&](uint64_t sequence) {
      const auto closed = books_.close(at(now_), sequence, 0);
      if (closed.state == State::kWait) return false;
      ++closed_;
      if (closed.state == State::kNone) ++without_;
      asked_.image += closed.joules.image;
      asked_.prefill += closed.joules.prefill;
      asked_.decode += closed.joules.decode;
      asked_.idle_share += closed.joules.idle_share;
      return true;
    });
  }

  std::mt19937 random_;
  Device device_;
  Meter meter_;
  Traffic traffic_;
  RunningTotal total_;
  double now_ = 0, next_tick_ = 0;
  double drawn_ = 5000, origin_ = 0, last_reset_ = 0, last_joules_ = 0;
  bool working_ = false;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Asked> live_;
  std::vector<std::pair<uint64_t, Asked>> waiting_for_slot_;
  std::vector<uint64_t> in_flight_;
  std::vector<uint64_t> waiting_;
};

void expect_balance(const Simulation& run, const std::string& which) {
  const EnergyTotals& totals = run.books_.totals();
  const double phases = totals.image_joules + totals.prefill_joules + totals.decode_joules;
  EXPECT_NEAR(phases + totals.idle_joules + totals.unattributed_joules, totals.counter_joules,
              1e-6 * totals.counter_joules)
      << which;
  EXPECT_NEAR(run.asked_.sum() + totals.idle_joules, totals.counter_joules, 0.02 * totals.counter_joules)
      << which << ": " << run.closed_ << " requests, residual " << totals.residual_joules << " J";
  EXPECT_NEAR(run.asked_.sum() + totals.residual_joules, phases, 1e-6 * totals.counter_joules) << which;
  EXPECT_LE(run.asked_.idle_share, totals.idle_joules * (1 + 1e-9)) << which;
  EXPECT_EQ(run.without_, 0) << which;
}

struct Case {
  const char* name;
  Device device;
  Meter meter;
  Traffic traffic;
};

const Case kCases[] = {
    {"busy", {}, {}, {.pause_s = 0.05}},
    {"long answers", {}, {}, {.pause_s = 0.3, .most_tokens = 2000}},
    {"short ones far apart", {}, {}, {.seconds = 300, .pause_s = 3, .most_tokens = 4}},
    {"a CPU's counter",
     {.step = 8, .prefill_token = 0.5, .decode_token = 0.3, .patch = 0.02, .idle_watts = 15},
     {.tick_s = 0.02, .jitter_s = 0.0005},
     {}},
    {"noise", {.noise = 0.3}, {.jitter_s = 0.01}, {}},
    {"wraps", {}, {.range = 262'143}, {.pause_s = 0.2}},
    {"resets", {}, {.reset_every_s = 7}, {.pause_s = 0.2}},
    {"failed reads", {}, {.failed = 0.5}, {.pause_s = 0.2}},
    {"all of it",
     {.noise = 0.2},
     {.jitter_s = 0.005, .failed = 0.3, .range = 262'143, .reset_every_s = 11},
     {.pause_s = 0.3}},
};

TEST(EnergyBooks, BalanceOverRandomSchedules) {
  for (const Case& one : kCases) {
    for (unsigned seed = 1; seed <= 8; ++seed) {
      Simulation run(seed, one.device, one.meter, one.traffic);
      run.run();
      ASSERT_GT(run.closed_, 30) << one.name;
      ASSERT_LE(run.waited_, 12) << one.name << ": only the first ends wait";
      expect_balance(run, fmt::format("{}, seed {}", one.name, seed));
    }
  }
}

// Not only the sum: who spends more is charged more, by the device's true costs.
TEST(EnergyBooks, PhasesAreToldApart) {
  RequestJoules asked, truth;
  double idle = 0, true_idle = 0;
  for (unsigned seed = 1; seed <= 8; ++seed) {
    Simulation run(seed, {}, {}, {.seconds = 120, .pause_s = 0.4});
    run.run();
    asked.image += run.books_.totals().image_joules;
    asked.prefill += run.books_.totals().prefill_joules;
    asked.decode += run.books_.totals().decode_joules;
    idle += run.books_.totals().idle_joules;
    true_idle += run.true_idle_;
    truth.image += run.true_.image;
    truth.prefill += run.true_.prefill;
    truth.decode += run.true_.decode;
  }
  EXPECT_NEAR(idle, true_idle, 0.02 * true_idle);
  EXPECT_NEAR(asked.image, truth.image, 0.15 * truth.image);
  EXPECT_NEAR(asked.prefill, truth.prefill, 0.1 * truth.prefill);
  EXPECT_NEAR(asked.decode, truth.decode, 0.05 * truth.decode);
}

}  // namespace
}  // namespace jewel

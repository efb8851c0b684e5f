// The meter's thread, and those that ask it.
#include "energy/energy_meter.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "energy/scripted_counter.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using Figure = std::optional<RequestJoules>;

// What close() says, now or later.
Figure ask(EnergyMeter& meter, uint64_t sequence, int rows_in_flight = 0, bool* waited = nullptr) {
  auto promise = std::make_shared<std::promise<Figure>>();
  Figure figure;
  const bool now =
      meter.close(sequence, rows_in_flight, figure, [promise](Figure later) { promise->set_value(later); });
  if (waited != nullptr) *waited = !now;
  return now ? figure : promise->get_future().get();
}

void compute(EnergyMeter& meter, uint64_t sequence, int steps, std::chrono::milliseconds each) {
  for (int i = 0; i < steps; ++i) {
    std::this_thread::sleep_for(each);
    const RowWork row{
        .sequence = sequence, .prefill_tokens = i == 0 ? 50 : 0, .decode_tokens = i == 0 ? 0 : 1};
    meter.step_done(std::span(&row, 1));
  }
}

// All that was computed is in the books: the counter has moved since, twice, because the first move may be
// the end of a tick that was read late.
void settle(EnergyMeter& meter) {
  double seen = meter.totals().joules.counter_joules;
  int moves = 0;
  for (int i = 0; i < 400; ++i) {
    std::this_thread::sleep_for(5ms);
    const EnergyTotals joules = meter.totals().joules;
    if (joules.counter_joules > seen) ++moves;
    seen = joules.counter_joules;
    const double booked = joules.image_joules + joules.prefill_joules + joules.decode_joules +
                          joules.idle_joules + joules.unattributed_joules;
    if (moves >= 2 && booked > 0.999 * joules.counter_joules) return;
  }
  ADD_FAILURE() << "the books do not close";
}

TEST(EnergyMeter, BalancesAndShowsWatts) {
  auto script = std::make_shared<CounterScript>();
  EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.most_wait = 5s, .rest = 50ms});
  double asked = 0;
  for (uint64_t sequence = 1; sequence <= 5; ++sequence) {
    meter.work_begins();
    compute(meter, sequence, 10, 6ms);
    bool waited = false;
    meter.work_ends();
    const Figure figure = ask(meter, sequence, 0, &waited);
    ASSERT_TRUE(figure.has_value());
    EXPECT_GT(figure->prefill, 0);
    EXPECT_GT(figure->decode, 0);
    asked += figure->sum();
    std::this_thread::sleep_for(20ms);
  }
  settle(meter);
  const EnergyMeter::Totals totals = meter.totals();
  EXPECT_NEAR(asked + totals.joules.idle_joules + totals.joules.residual_joules, totals.joules.counter_joules,
              0.02 * totals.joules.counter_joules);
  EXPECT_GT(totals.tick_s, 0);
  EXPECT_GT(totals.joules.watts, 0);
}

TEST(EnergyMeter, OnlyTheFirstEndWaits) {
  auto script = std::make_shared<CounterScript>();
  EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.most_wait = 30s, .rest = 50ms});
  bool waited = false;
  for (uint64_t sequence = 1; sequence <= 12; ++sequence) {
    meter.work_begins();
    compute(meter, sequence, 8, 8ms);
    meter.work_ends();
    ASSERT_TRUE(ask(meter, sequence, 0, &waited).has_value());
  }
  EXPECT_FALSE(waited);
}

TEST(EnergyMeter, ACounterThatStandsStillGivesNoFigureAndHoldsNobodyUp) {
  auto script = std::make_shared<CounterScript>();
  script->stands_still = true;
  EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.most_wait = 50ms});
  meter.work_begins();
  compute(meter, 1, 3, 1ms);
  EXPECT_FALSE(ask(meter, 1).has_value());
  compute(meter, 2, 3, 1ms);
  EXPECT_FALSE(ask(meter, 2, 1).has_value());
  meter.work_ends();
}

TEST(EnergyMeter, FailedReadsPass) {
  auto script = std::make_shared<CounterScript>();
  EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.most_wait = 30s, .rest = 50ms});
  meter.work_begins();
  compute(meter, 1, 10, 8ms);
  script->fails = true;
  compute(meter, 2, 20, 8ms);
  script->fails = false;
  compute(meter, 2, 10, 8ms);
  meter.work_ends();
  settle(meter);
  EXPECT_TRUE(ask(meter, 1).has_value());
  EXPECT_TRUE(ask(meter, 2).has_value());
  const EnergyTotals joules = meter.totals().joules;
  EXPECT_EQ(joules.unattributed_joules, 0);
}

TEST(EnergyMeter, WhoWaitsIsAnsweredAtTheEnd) {
  auto script = std::make_shared<CounterScript>();
  script->stands_still = true;
  Figure figure;
  std::promise<bool> answered;
  {
    EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.most_wait = 1h});
    std::this_thread::sleep_for(20ms);
    meter.work_begins();
    compute(meter, 1, 3, 1ms);
    ASSERT_FALSE(meter.close(1, 0, figure, [&](Figure later) { answered.set_value(later.has_value()); }));
    meter.stop_waiting();
    EXPECT_FALSE(answered.get_future().get());
    compute(meter, 2, 3, 1ms);
    EXPECT_TRUE(meter.close(2, 0, figure, {})) << "nobody waits from now on";
  }
}

TEST(EnergyMeter, ManyThreadsAsk) {
  auto script = std::make_shared<CounterScript>();
  EnergyMeter meter(std::make_unique<ScriptedCounter>(script), {.rest = 20ms});
  std::atomic<int> answered = 0;
  std::thread engine([&] {
    for (uint64_t i = 0; i < 300; ++i) {
      if (i % 10 == 0) meter.work_begins();
      compute(meter, i, 2, 0ms);
      if (i % 10 == 9) meter.work_ends();
      std::this_thread::sleep_for(100us);
    }
  });
  std::vector<std::thread> askers;
  for (uint64_t who = 0; who < 3; ++who) {
    askers.emplace_back([&, who] {
      for (uint64_t i = who; i < 300; i += 3) {
        Figure figure;
        if (meter.close(i, 0, figure, [&](Figure) { ++answered; })) ++answered;
        meter.totals();
      }
    });
  }
  engine.join();
  for (std::thread& asker : askers) asker.join();
  meter.stop_waiting();
  EXPECT_EQ(answered, 300);
}

}  // namespace
}  // namespace jewel

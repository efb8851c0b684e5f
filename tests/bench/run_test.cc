// One run: who is under way when, what the steady window is, and what its figures are.
#include "bench/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>

#include "bench/fake_target.h"
#include "bench/run_figures.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using Clock = RunRecord::Clock;

RunPlan plan_of(int requests, const Load& load, uint64_t seed = 1) {
  return {.load = load, .exact_tokens = std::vector<int>(static_cast<size_t>(requests), 0), .seed = seed};
}

TEST(Arrivals, AreExponentialAndComeFromTheSeed) {
  const std::vector<double> times = arrival_times(20'000, 4, 1);
  EXPECT_EQ(times.front(), 0);
  EXPECT_EQ(times, arrival_times(20'000, 4, 1));
  EXPECT_NE(times, arrival_times(20'000, 4, 2));
  double sum = 0, squares = 0;
  for (size_t i = 1; i < times.size(); ++i) {
    const double gap = times[i] - times[i - 1];
    ASSERT_GT(gap, 0);
    sum += gap;
    squares += gap * gap;
  }
  const auto n = static_cast<double>(times.size() - 1);
  const double mean = sum / n;
  // Mean 1/4, and a standard deviation as large: both known to 1/√n = 0.7 %, so 3 % is four times that.
  EXPECT_NEAR(mean, 0.25, 0.25 * 0.03);
  EXPECT_NEAR(std::sqrt(squares / n - mean * mean), 0.25, 0.25 * 0.03);
}

TEST(Run, ByConcurrencyTheNextOneGoesWhenOneEnds) {
  FakeTarget target({.first = 1ms, .between = 1ms, .tokens = 2});
  int seen = 0;
  const RunRecord run =
      run_requests(target, plan_of(23, {.concurrency = 4}), [&](int ended) { EXPECT_EQ(ended, ++seen); });
  EXPECT_EQ(seen, 23);
  EXPECT_EQ(target.most_under_way(), 4);
  ASSERT_EQ(target.started().size(), 23U);
  for (size_t i = 0; i < 23; ++i) EXPECT_EQ(target.started()[i], i);
  for (const RequestRecord& request : run.requests) {
    EXPECT_TRUE(request.ok());
    EXPECT_EQ(request.answer.usage->completion_tokens, 2);
    EXPECT_TRUE(request.answer.content.empty());
    EXPECT_LE(request.due, request.sent);
    EXPECT_LE(request.sent, request.answer.ended);
  }
  EXPECT_TRUE(run.steady);
}

// A target that keeps everybody waiting does not put off those who come later.
TEST(Run, ByRateRequestsComeWhateverTheTargetDoes) {
  FakeTarget target({.first = 300ms, .between = 0ms, .tokens = 1});
  const RunRecord run = run_requests(target, plan_of(20, {.rate = 200}));
  const std::vector<double> times = arrival_times(20, 200, 1);
  for (size_t i = 0; i < 20; ++i) {
    const std::chrono::duration<double> due = run.requests[i].due - run.begun;
    EXPECT_NEAR(due.count(), times[i], 1e-6);
    EXPECT_GE(run.requests[i].sent, run.requests[i].due);
  }
  EXPECT_EQ(target.most_under_way(), 20) << "all came before the first answer";
}

TEST(Run, FailuresAreKeptAndTheRestGoesOn) {
  FakeTarget target({.first = 1ms, .between = 0ms, .tokens = 3, .fail_every = 4});
  const RunRecord run = run_requests(target, plan_of(12, {.concurrency = 2}));
  const RunFigures figures = figures_of(run, nullptr);
  EXPECT_EQ(figures.requests, 12);
  EXPECT_EQ(figures.failed, 3);
  EXPECT_EQ(figures.first_error, "the fake target fails this one");
  EXPECT_FALSE(figures.joules);
}

TEST(Run, StopsWhenItIsTold) {
  FakeTarget target({.first = 10s, .between = 0ms, .tokens = 1});
  RunPlan plan = plan_of(8, {.concurrency = 2});
  std::atomic<bool> cancel = false;
  plan.cancel = &cancel;
  std::jthread soon([&] {
    std::this_thread::sleep_for(20ms);
    cancel = true;
  });
  const RunRecord run = run_requests(target, plan);
  EXPECT_TRUE(run.cancelled);
  EXPECT_EQ(target.started().size(), 2U) << "nothing is sent afterwards";
  EXPECT_LT(run.ended - run.begun, 5s);
}

// A record by hand; times in milliseconds since its begin.
class Record {
 public:
  Record(const Load& load, int ended_ms) {
    run_.load = load;
    run_.begun = begin_;
    run_.ended = at(ended_ms);
  }
  Clock::time_point at(int ms) const { return begin_ + std::chrono::milliseconds(ms); }
  RequestRecord& add(int due_ms, const std::vector<int>& pieces_ms, int ended_ms, int tokens) {
    RequestRecord& request = run_.requests.emplace_back();
    request.due = request.sent = request.answer.begun = at(due_ms);
    for (const int ms : pieces_ms) request.answer.pieces.push_back(at(ms));
    request.answer.ended = at(ended_ms);
    request.answer.usage = ServerUsage{.prompt_tokens = 10, .completion_tokens = tokens};
    return request;
  }
  RunRecord& run() { return run_; }
  std::pair<int64_t, int64_t> window_ms() const {
    return {(run_.window_begin - begin_) / 1ms, (run_.window_end - begin_) / 1ms};
  }

 private:
  const Clock::time_point begin_ = Clock::time_point(1h);
  RunRecord run_;
};

TEST(Window, BeginsWhenAllAreUnderWayAndEndsWithTheLastSent) {
  Record record({.concurrency = 2}, 600);
  record.add(0, {20, 90}, 100, 2);
  record.add(0, {50, 110}, 120, 2);  // the second to have its first token: the window begins
  record.add(100, {130, 190}, 200, 2);
  record.add(120, {160, 290}, 300, 2);
  record.add(200, {230, 390}, 400, 2);
  record.add(300, {330, 590}, 600, 2);  // the last that is sent: it ends
  find_window(record.run());
  EXPECT_TRUE(record.run().steady);
  EXPECT_THAT(record.window_ms(), testing::Pair(50, 300));
}

TEST(Window, ByRateBeginsWithTheFirstAnswer) {
  Record record({.rate = 10}, 500);
  record.add(0, {20}, 40, 1);
  record.add(10, {15}, 30, 1);
  record.add(300, {320}, 500, 1);
  find_window(record.run());
  EXPECT_TRUE(record.run().steady);
  EXPECT_THAT(record.window_ms(), testing::Pair(30, 300));
}

TEST(Window, OneAfterTheOtherIsSteadyThroughoutAndAShortRunIsNot) {
  Record alone({.concurrency = 1}, 200);
  alone.add(0, {20}, 90, 1);
  alone.add(90, {110}, 200, 1);
  find_window(alone.run());
  EXPECT_TRUE(alone.run().steady);
  EXPECT_THAT(alone.window_ms(), testing::Pair(0, 200));

  Record brief({.concurrency = 2}, 200);  // fewer than three rounds
  for (int i = 0; i < 5; ++i) brief.add(i * 20, {i * 20 + 10}, i * 20 + 30, 1);
  find_window(brief.run());
  EXPECT_FALSE(brief.run().steady);
  EXPECT_THAT(brief.window_ms(), testing::Pair(0, 200));
}

TEST(Figures, AreThoseOfTheWindow) {
  Record record({.concurrency = 1}, 1000);
  record.add(0, {100, 200, 300, 400}, 500, 8);  // two tokens a piece
  record.add(500, {700, 900}, 1000, 2);
  find_window(record.run());
  const RunFigures figures = figures_of(record.run(), nullptr);
  EXPECT_EQ(figures.in_window, 2);
  EXPECT_DOUBLE_EQ(figures.window_s, 1);
  EXPECT_THAT(figures.first_tokens_s, ElementsAre(testing::DoubleEq(0.1), testing::DoubleEq(0.2)));
  // Gaps of 100 ms between pieces of two tokens, and one of 200 ms between single ones.
  EXPECT_THAT(figures.gaps_s, ElementsAre(testing::DoubleEq(0.05), testing::DoubleEq(0.05),
                                          testing::DoubleEq(0.05), testing::DoubleEq(0.2)));
  EXPECT_DOUBLE_EQ(figures.output_tokens_per_s, 10);
  EXPECT_DOUBLE_EQ(figures.prompt_tokens_per_s, 20);
  EXPECT_DOUBLE_EQ(figures.requests_per_s, 2);
  EXPECT_DOUBLE_EQ(figures.output_tokens, 5);
  EXPECT_DOUBLE_EQ(figures.request_s->p50, 0.5);
  EXPECT_FALSE(figures.cached_tokens) << "the server did not say";
}

TEST(Figures, WhatCameOutsideTheWindowDoesNotCount) {
  Record record({.concurrency = 1}, 1000);
  record.add(0, {100, 200, 300, 400}, 450, 4);
  record.add(450, {600}, 650, 1);
  record.run().steady = true;
  record.run().window_begin = record.at(250);
  record.run().window_end = record.at(650);
  const RunFigures figures = figures_of(record.run(), nullptr);
  EXPECT_EQ(figures.in_window, 1) << "the first was sent before it";
  EXPECT_DOUBLE_EQ(figures.output_tokens_per_s, 3 / 0.4);
}

TEST(Figures, CountWhatIsWrongWithAnswers) {
  Record record({.concurrency = 1}, 1000);
  record.add(0, {100, 200}, 300, 2).exact_tokens = 5;
  record.add(300, {400}, 500, 5).exact_tokens = 5;
  record.add(500, {600, 700, 800}, 900, 0).answer.usage.reset();
  find_window(record.run());
  const RunFigures figures = figures_of(record.run(), nullptr);
  EXPECT_EQ(figures.wrong_length, 1);
  EXPECT_EQ(figures.without_usage, 1);
  EXPECT_DOUBLE_EQ(figures.output_tokens, (2 + 5 + 3) / 3.0) << "events stand in for tokens";
}

}  // namespace
}  // namespace jewel

// Random schedules against the oracle: the same tokens, balanced books after every step, nobody starves, no
// page is used by two, nothing is leaked.
//
//   JEWEL_PROPERTY_SCHEDULES=n   how many (default: 150,000, some 10 s on two idle cores; fewer under
//   sanitizers) JEWEL_PROPERTY_SEED=s        this one alone; when it fails it is made as small as it still
//   fails, and printed
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "base/threads.h"
#include "run_schedule.h"

namespace jewel {
namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr int kDefaultSchedules = 4'000;
#else
constexpr int kDefaultSchedules = 150'000;
#endif
#endif

std::optional<uint64_t> from_environment(const char* name) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): nobody sets it
  if (text == nullptr) return std::nullopt;
  return std::strtoull(text, nullptr, 10);
}

// A JEWEL_CHECK ends the process: say which schedule it was.
thread_local uint64_t running_seed = 0;

void say_seed(int) {
  char text[80];
  const int n = std::snprintf(text, sizeof text, "\nto run it alone: JEWEL_PROPERTY_SEED=%llu\n",
                              static_cast<unsigned long long>(running_seed));
  if (n > 0) (void)!::write(STDERR_FILENO, text, static_cast<size_t>(n));
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// In a child, because our own checks end the process.
bool fails(const Schedule& schedule) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(3);
    ::_exit(run_schedule(schedule).failure ? 1 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status != 0;
}

// Leaves out requests (halves, quarters, … single ones), then what the rest can do without.
Schedule shrink(Schedule schedule) {
  const auto try_to = [&](const auto& change) {
    Schedule smaller = schedule;
    change(smaller);
    if (!fails(smaller)) return false;
    schedule = std::move(smaller);
    return true;
  };
  for (size_t piece = (schedule.requests.size() + 1) / 2; piece > 0; piece /= 2) {
    for (size_t at = 0; at < schedule.requests.size();) {
      const size_t end = std::min(at + piece, schedule.requests.size());
      const bool gone = end - at < schedule.requests.size() && try_to([&](Schedule& s) {
                          s.requests.erase(s.requests.begin() + static_cast<ptrdiff_t>(at),
                                           s.requests.begin() + static_cast<ptrdiff_t>(end));
                        });
      if (!gone) at = end;
    }
  }
  try_to([](Schedule& s) { s.faults = {}; });
  try_to([](Schedule& s) { s.options.one_ahead = false; });
  try_to([](Schedule& s) { s.options.prefix_cache = false; });
  try_to([](Schedule& s) { s.options.exact_prefix = s.backend.exact_phases = false; });
  try_to([](Schedule& s) { s.options.swap_bytes = 0; });
  try_to([](Schedule& s) { s.options.long_prefill_chunk = 0; });
  try_to([](Schedule& s) { s.options.max_num_seqs = 0; });
  try_to([](Schedule& s) { s.options.max_num_batched_tokens = 2048; });
  for (size_t i = 0; i < schedule.requests.size(); ++i) {
    const auto try_request = [&](const auto& change) {
      return try_to([&](Schedule& s) { change(s.requests[i]); });
    };
    try_request([](PlannedRequest& r) { r.cancelled_after = -1; });
    try_request([](PlannedRequest& r) { r.deadline_after = -1; });
    try_request([](PlannedRequest& r) { r.sink_stops_after = -1; });
    try_request([](PlannedRequest& r) { r.mask_seed = 0; });
    try_request([](PlannedRequest& r) { r.thinking.reset(); });
    try_request([](PlannedRequest& r) { r.guard.reset(); });
    try_request([](PlannedRequest& r) { r.images.clear(); });
    try_request([](PlannedRequest& r) { r.resume_points.clear(); });
    try_request([](PlannedRequest& r) { r.stop_token_ids.clear(), r.min_tokens = 0; });
    try_request([](PlannedRequest& r) { r.salt.clear(); });
    try_request([](PlannedRequest& r) { r.priority = 0; });
    try_request([](PlannedRequest& r) { r.n_prompt_logprobs = r.sampling.n_logprobs = -1; });
    while (schedule.requests[i].max_tokens > 1 && try_request([](PlannedRequest& r) { r.max_tokens /= 2; })) {
    }
  }
  return schedule;
}

void expect_good(uint64_t seed) {
  running_seed = seed;
  const Schedule schedule = random_schedule(seed);
  if (!fails(schedule)) return;
  const Schedule small = shrink(schedule);
  fmt::print(stderr, "seed {} fails; the smallest that still does:\n{}", seed, describe(small));
  const ScheduleRun run = run_schedule(small);  // may end the process, with its own words
  ADD_FAILURE() << run.failure.value_or("(only in a child process?)");
}

TEST(Property, RandomSchedulesGetTheirOracleAnswers) {
  const auto previous = std::signal(SIGABRT, say_seed);
  if (const auto seed = from_environment("JEWEL_PROPERTY_SEED")) {
    expect_good(*seed);
    std::signal(SIGABRT, previous);
    return;
  }
  const auto n = static_cast<int64_t>(
      from_environment("JEWEL_PROPERTY_SCHEDULES").value_or(static_cast<uint64_t>(kDefaultSchedules)));
  std::atomic<int64_t> next = 0;
  std::atomic<int64_t> requests = 0, steps = 0, preempted = 0, swapped = 0, hits = 0, finished = 0;
  std::mutex mutex;
  std::optional<uint64_t> failed;
  const auto work = [&] {
    while (true) {
      const int64_t i = next.fetch_add(1);
      if (i >= n) return;
      running_seed = static_cast<uint64_t>(i);
      const Schedule schedule = random_schedule(running_seed);
      const ScheduleRun run = run_schedule(schedule);
      if (run.failure) {
        const std::lock_guard lock(mutex);
        if (!failed || *failed > running_seed) failed = running_seed;
        next = n;
        return;
      }
      requests += static_cast<int64_t>(schedule.requests.size());
      steps += run.steps;
      preempted += static_cast<int64_t>(run.stats.preemptions);
      swapped += static_cast<int64_t>(run.stats.preemptions_swapped);
      hits += static_cast<int64_t>(run.stats.prefix_hits);
      for (const uint64_t count : run.stats.requests_finished) finished += static_cast<int64_t>(count);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < usable_cores(); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (failed) expect_good(*failed);
  std::signal(SIGABRT, previous);
  if (failed) FAIL() << "to run it alone: JEWEL_PROPERTY_SEED=" << *failed;
  fmt::print(
      "{} schedules: {} requests, {} steps, {} preemptions ({} swapped), {} prompt tokens from the cache\n",
      n, requests.load(), steps.load(), preempted.load(), swapped.load(), hits.load());
  EXPECT_EQ(finished.load(), requests.load());
  // Schedules that never reach the hard parts would prove nothing.
  EXPECT_GT(preempted.load(), n / 20);
  EXPECT_GT(swapped.load(), n / 100);
  EXPECT_GT(hits.load(), n);
}

}  // namespace
}  // namespace jewel

#include "bench/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "bench/draws.h"

namespace jewel {
namespace {

using Clock = RunRecord::Clock;

// Answers on their way from the target's threads to ours.
class Ended {
 public:
  void push(int number, Result<ChatAnswer> answer) {
    const std::lock_guard lock(mutex_);
    answers_.emplace_back(number, std::move(answer));
    changed_.notify_one();
  }

  // The next answer, or none at `limit`.
  std::optional<std::pair<int, Result<ChatAnswer>>> pop(std::optional<Clock::time_point> limit) {
    std::unique_lock lock(mutex_);
    const auto any = [&] { return !answers_.empty(); };
    if (!limit) {
      changed_.wait(lock, any);
    } else if (!changed_.wait_until(lock, *limit, any)) {
      return std::nullopt;
    }
    auto answer = std::move(answers_.front());
    answers_.pop_front();
    return answer;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<int, Result<ChatAnswer>>> answers_;
};

class Runner {
 public:
  Runner(Target& target, const RunPlan& plan) : target_(target), plan_(plan) {
    run_.load = plan.load;
    run_.requests.resize(static_cast<size_t>(plan.requests()));
  }

  RunRecord run(const std::function<void(int)>& on_progress) {
    run_.begun = Clock::now();
    if (plan_.load.rate > 0) {
      due_ = arrival_times(plan_.requests(), plan_.load.rate, plan_.seed);
    } else {
      for (int i = 0; i < std::min(plan_.load.concurrency, plan_.requests()); ++i) send(Clock::now());
    }
    while (ended_count_ < plan_.requests()) {
      auto answer = ended_->pop(next_look());
      if (plan_.cancel != nullptr && *plan_.cancel) {
        run_.cancelled = true;
        break;
      }
      if (answer) {
        take(answer->first, std::move(answer->second));
        if (plan_.load.rate <= 0 && sent_ < plan_.requests()) send(Clock::now());
        if (on_progress) on_progress(ended_count_);
      }
      for (auto due = next_due(); due && *due <= Clock::now(); due = next_due()) send(*due);
    }
    run_.ended = Clock::now();
    find_window(run_);
    return std::move(run_);
  }

 private:
  std::optional<Clock::time_point> next_due() const {
    if (plan_.load.rate <= 0 || sent_ >= plan_.requests()) return std::nullopt;
    return run_.begun + std::chrono::duration_cast<Clock::duration>(
                            std::chrono::duration<double>(due_[static_cast<size_t>(sent_)]));
  }

  // When to wake up though no answer came: for the next arrival, and to see whether we are cancelled.
  std::optional<Clock::time_point> next_look() const {
    std::optional<Clock::time_point> due = next_due();
    if (plan_.cancel == nullptr) return due;
    const Clock::time_point look = Clock::now() + std::chrono::milliseconds(100);
    return due ? std::min(*due, look) : look;
  }

  void send(Clock::time_point due) {
    const int number = sent_++;
    RequestRecord& record = run_.requests[static_cast<size_t>(number)];
    record.exact_tokens = plan_.exact_tokens[static_cast<size_t>(number)];
    record.due = due;
    record.sent = Clock::now();
    run_.late_s = std::max(run_.late_s, std::chrono::duration<double>(record.sent - due).count());
    target_.start(static_cast<size_t>(number), [ended = ended_, number](Result<ChatAnswer> answer) {
      ended->push(number, std::move(answer));
    });
  }

  void take(int number, Result<ChatAnswer> answer) {
    ++ended_count_;
    RequestRecord& record = run_.requests[static_cast<size_t>(number)];
    if (!answer.ok()) {
      record.error = answer.error().message;
      record.answer.ended = Clock::now();
      return;
    }
    record.answer = std::move(answer).value();
    record.answer.content = {};  // thousands of them add up
    record.answer.reasoning = {};
  }

  Target& target_;
  const RunPlan plan_;
  RunRecord run_;
  std::vector<double> due_;
  int sent_ = 0;
  int ended_count_ = 0;
  // Shared with callbacks, the last of which may still be returning when we are done.
  const std::shared_ptr<Ended> ended_ = std::make_shared<Ended>();
};

}  // namespace

std::string Load::text() const {
  return rate > 0 ? fmt::format("{:g}/s", rate) : fmt::format("{} at once", concurrency);
}

std::vector<double> arrival_times(int requests, double rate, uint64_t seed) {
  Draws draws(seed ^ 0x61727269);  // not the stream that made the requests
  std::vector<double> times;
  times.reserve(static_cast<size_t>(requests));
  double now = 0;
  for (int i = 0; i < requests; ++i) {
    times.push_back(now);
    now += draws.exponential(1 / rate);
  }
  return times;
}

RunRecord run_requests(Target& target, const RunPlan& plan, const std::function<void(int)>& on_progress) {
  return Runner(target, plan).run(on_progress);
}

void find_window(RunRecord& run) {
  run.window_begin = run.begun;
  run.window_end = run.ended;
  run.steady = run.load.rate <= 0 && run.load.concurrency == 1;  // one after the other: steady throughout
  const auto n = static_cast<int>(run.requests.size());
  if (run.steady || n < 3 * std::max(1, run.load.concurrency)) return;
  std::vector<Clock::time_point> firsts;
  Clock::time_point first_end = Clock::time_point::max();
  Clock::time_point last_sent = Clock::time_point::min();
  for (const RequestRecord& request : run.requests) {
    last_sent = std::max(last_sent, request.sent);
    if (!request.ok() || request.answer.pieces.empty()) continue;
    firsts.push_back(request.answer.pieces.front());
    first_end = std::min(first_end, request.answer.ended);
  }
  Clock::time_point begin = first_end;
  if (run.load.rate <= 0) {
    const auto c = static_cast<size_t>(run.load.concurrency);
    if (firsts.size() < c) return;
    std::ranges::nth_element(firsts, firsts.begin() + static_cast<std::ptrdiff_t>(c - 1));
    begin = firsts[c - 1];
  }
  if (begin >= last_sent) return;
  run.window_begin = begin;
  run.window_end = last_sent;
  run.steady = true;
}

}  // namespace jewel

#include "run_schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "backend/releasable_backend.h"

namespace jewel {
namespace {

constexpr EngineTime kStepTime = std::chrono::milliseconds(1);

bool same(const TokenLogprob& a, const TokenLogprob& b) {
  return a.id == b.id && a.logprob == b.logprob && a.rank == b.rank;
}

bool same(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return std::ranges::equal(a, b, [](const auto& x, const auto& y) { return same(x, y); });
}

// One request from its arrival to its end: holds every event to the oracle's answer.
class Watch : public SequenceSink {
 public:
  explicit Watch(const PlannedRequest& planned) : planned_(planned), expected_(expected_answer(planned)) {}

  Continue on_token(const TokenEvent& event) override {
    const auto n = tokens_.size();
    if (finished_) fail("a token after the end");
    if (event.index != static_cast<int>(n)) fail(fmt::format("token index {}, expected {}", event.index, n));
    tokens_.push_back(event.token.id);
    if (n >= expected_.tokens.size() || expected_.tokens[n] != event.token.id) {
      fail(fmt::format("token {} is {}, the answer is {}", n, event.token.id, expected_.tokens));
    } else if (planned_.sampling.n_logprobs >= 0 &&
               (!same(event.token.logprob, expected_.logprobs[n]) ||
                static_cast<int>(event.token.top.size()) != planned_.sampling.n_logprobs)) {
      fail(fmt::format("token {} has another log-probability", n));
    }
    return static_cast<int>(tokens_.size()) == planned_.sink_stops_after ? Continue::kNo : Continue::kYes;
  }

  void on_prompt_logprobs(SequenceId, PromptLogprobs logprobs) override {
    const PromptLogprobs expected = expected_prompt_logprobs(planned_);
    if (planned_.n_prompt_logprobs < 0 || prompt_logprobs_ || !tokens_.empty())
      fail("prompt log-probabilities that nobody asked for, twice, or late");
    prompt_logprobs_ = true;
    const bool equal = same(logprobs.token, expected.token) && logprobs.top.size() == expected.top.size() &&
                       std::ranges::equal(logprobs.top, expected.top,
                                          [](const auto& a, const auto& b) { return same(a, b); });
    if (!equal)
      fail(fmt::format("prompt log-probabilities differ ({} and {}, expected {} and {})",
                       logprobs.token.size(), logprobs.top.size(), expected.token.size(),
                       expected.top.size()));
  }

  void on_finished(const Finished& finished) override {
    if (finished_) fail("finished twice");
    finished_ = true;
    const SequenceStats& stats = finished.stats;
    if (stats.output_tokens != static_cast<int>(tokens_.size()) ||
        stats.prompt_tokens != static_cast<int>(planned_.prompt.size())) {
      fail(fmt::format("statistics say {} + {} tokens, events {} + {}", stats.prompt_tokens,
                       stats.output_tokens, planned_.prompt.size(), tokens_.size()));
    }
    if (stats.cached_tokens >= stats.prompt_tokens ||
        (stats.cached_tokens > 0 && (!planned_.use_prefix_cache || planned_.n_prompt_logprobs >= 0)))
      fail(fmt::format("{} of {} prompt tokens were cached", stats.cached_tokens, stats.prompt_tokens));
    check_reason(finished);
  }

  void fail(std::string what) {
    if (!failure_) failure_ = std::move(what);
  }

  const std::optional<std::string>& failure() const { return failure_; }
  bool finished() const { return finished_; }

  bool cancelled = false;
  bool deadline_passed = false;
  bool may_fail = false;  // faults are injected
  SequenceId id = 0;

 private:
  void check_reason(const Finished& finished) {
    const FinishReason reason = finished.reason;
    if ((reason == FinishReason::kError) != finished.error.has_value())
      fail("an error without words, or words without an error");
    if (reason == FinishReason::kCancelled && cancelled) return;
    if (reason == FinishReason::kDeadline && deadline_passed) return;
    if (reason == FinishReason::kError && may_fail) return;
    const bool stop_or_length = expected_.either_stop_or_length && reason == FinishReason::kLength;
    if (reason != expected_.reason && !stop_or_length) {
      fail(fmt::format("finished with reason {}{}, expected {}", static_cast<int>(reason),
                       finished.error ? " (" + finished.error->message + ")" : "",
                       static_cast<int>(expected_.reason)));
    }
    if (tokens_ != expected_.tokens)
      fail(fmt::format("finished after {}, the answer is {}", tokens_, expected_.tokens));
    if (planned_.n_prompt_logprobs >= 0 && !prompt_logprobs_ && reason != FinishReason::kError)
      fail("no prompt log-probabilities");
    if (reason == FinishReason::kStop && finished.stop_token >= 0 &&
        (tokens_.empty() || finished.stop_token != tokens_.back()))
      fail(fmt::format("stop token {} is not the last one", finished.stop_token));
  }

  const PlannedRequest& planned_;
  ExpectedAnswer expected_;
  std::vector<TokenId> tokens_;
  bool prompt_logprobs_ = false;
  bool finished_ = false;
  std::optional<std::string> failure_;
};

std::optional<std::string> unbalanced(const PoolCounts& counts, const char* name, int all) {
  const bool good = counts.all == all && counts.free >= 0 && counts.held >= 0 && counts.cached >= 0 &&
                    counts.free + counts.held + counts.cached == counts.all;
  if (good) return std::nullopt;
  return fmt::format("{} pages: {} free + {} held + {} cached, {} in all", name, counts.free, counts.held,
                     counts.cached, all);
}

// Says so when it goes while something of the engine's is in it.
class ClosingBackend final : public FakeBackend {
 public:
  using Complain = std::function<void(std::string)>;
  ClosingBackend(FakeOptions options, FakeFaults faults, Complain complain)
      : FakeBackend(std::move(options), std::move(faults)), complain_(std::move(complain)) {}
  ~ClosingBackend() override {
    if (n_live_slots() > 0 || n_live_features() > 0 || n_steps_in_flight() > 0) {
      complain_(fmt::format("a backend goes with {} slots, {} features, {} steps", n_live_slots(),
                            n_live_features(), n_steps_in_flight()));
    }
  }

 private:
  Complain complain_;
};

class Runner {
 public:
  explicit Runner(const Schedule& schedule) : schedule_(schedule), dice_(schedule.seed + 1) {}

  ScheduleRun run() {
    ReleasableBackend backend(
        make_fake(),
        [this]() -> Result<std::unique_ptr<Backend>> {
          if (schedule_.restore_fails_one_in > 0 && dice_.one_in(schedule_.restore_fails_one_in))
            return unavailable("fake: no device");
          return make_fake();
        },
        [this] { fake_ = nullptr; });
    const ModelConfig config = fake_config(schedule_.window, 4096);
    SchedulerOptions scheduler_options = schedule_.options;
    scheduler_options.now = [this] { return now_; };
    auto made = Scheduler::make(backend, config, scheduler_options);
    if (!made.ok()) {
      fail("make: " + made.error().message);
      return std::move(run_);
    }
    scheduler_ = std::move(*made);
    drive();
    run_.stats = scheduler_->stats();
    if (!run_.failure) check_end();
    // After a failure sequences are live and steps in flight; what is left is leaked, not ended.
    if (run_.failure) (void)scheduler_.release();
    return std::move(run_);
  }

 private:
  void fail(std::string what) {
    if (!run_.failure) run_.failure = fmt::format("step {}: {}", run_.steps, std::move(what));
  }

  std::unique_ptr<Backend> make_fake() {
    FakeOptions options = schedule_.backend;
    options.on_violation = [this](const std::string& what) { fail("backend: " + what); };
    auto fake = std::make_unique<ClosingBackend>(options, schedule_.faults,
                                                 [this](std::string what) { fail(std::move(what)); });
    fake_ = fake.get();
    return fake;
  }

  void maybe_release() {
    if (schedule_.release_one_in == 0 || scheduler_->device_released() ||
        !dice_.one_in(schedule_.release_one_in)) {
      return;
    }
    const SchedulerStats before = scheduler_->stats();
    const ReleaseReport report = scheduler_->release_device();
    ++run_.releases;
    run_.pages_kept += report.pages_kept;
    check_books();
    const SchedulerStats& stats = scheduler_->stats();
    const int kept = stats.full_pages.cached + stats.sliding_pages.cached;
    if (fake_ != nullptr || !scheduler_->device_released()) fail("the backend outlives its release");
    if (report.pages_kept != kept || report.bytes_kept > schedule_.options.swap_bytes)
      fail(fmt::format("{} pages ({} bytes) are kept, the books say {}", report.pages_kept, report.bytes_kept,
                       kept));
    if (report.checkpoints_dropped == 0 && stats.full_pages.cached != before.full_pages.cached)
      fail("pages went with a release that dropped none");
  }

  bool restore() {
    if (!scheduler_->device_released()) return true;
    if (scheduler_->restore_device().ok()) {
      if (fake_ == nullptr) fail("restored without a backend");
      check_books();
      return true;
    }
    ++run_.restores_failed;
    if (fake_ != nullptr || !scheduler_->device_released()) fail("half restored");
    return false;
  }

  void drive() {
    size_t next = 0;
    int idle = 0;
    const int limit = step_limit();
    for (int t = 0; !run_.failure; ++t) {
      now_ = t * kStepTime;
      for (; next < schedule_.requests.size() && schedule_.requests[next].arrives <= t; ++next) arrive(next);
      for (size_t i = 0; i < watches_.size(); ++i) go_on(i, t);
      if (run_.failure) return;
      if (!scheduler_->has_work()) {
        idle = 0;
        maybe_release();
        if (next == schedule_.requests.size()) return;
        continue;
      }
      if (!restore()) continue;
      const StepReport report = scheduler_->step();
      check_step();
      // A turn may only notice a deadline, and a pipeline fills and drains; three idle ones are a standstill.
      idle = report.submitted || report.collected || report.tokens_delivered > 0 ? 0 : idle + 1;
      if (idle > 3) fail("no progress, but has_work()");
      if (++run_.steps > limit) fail(fmt::format("not done after {} steps: somebody starves", limit));
    }
  }

  // The head of the line always moves, so in the worst case the requests run one after the other, each
  // computed twice (preempted before it became the head).
  int step_limit() const {
    int limit = 0;
    for (const PlannedRequest& request : schedule_.requests)
      limit += 2 * static_cast<int>(request.prompt.size()) + 2 * request.max_tokens + 8;
    return limit;
  }

  void arrive(size_t i) {
    const PlannedRequest& planned = schedule_.requests[i];
    auto watch = std::make_shared<Watch>(planned);
    watch->may_fail = !schedule_.faults.steps.empty() || !schedule_.faults.encode_image.empty();
    watches_.push_back(watch);
    const auto id = scheduler_->add(to_request(planned, now_, kStepTime), watch);
    if (!id.ok()) return fail(fmt::format("request {} is refused: {}", i, id.error().message));
    watch->id = *id;
  }

  void go_on(size_t i, int t) {
    const PlannedRequest& planned = schedule_.requests[i];
    Watch& watch = *watches_[i];
    if (watch.finished()) return;
    if (planned.deadline_after >= 0 && t >= planned.arrives + planned.deadline_after)
      watch.deadline_passed = true;
    if (planned.cancelled_after >= 0 && t == planned.arrives + planned.cancelled_after) {
      watch.cancelled = true;
      scheduler_->cancel(watch.id);
      if (!watch.finished()) fail(fmt::format("request {} goes on after cancel()", i));
    }
  }

  void check_step() {
    for (size_t i = 0; i < watches_.size(); ++i) {
      if (watches_[i]->failure()) return fail(fmt::format("request {}: {}", i, *watches_[i]->failure()));
      if (watches_[i]->deadline_passed && !watches_[i]->finished())
        fail(fmt::format("request {} goes on after its deadline", i));
    }
    check_books();
  }

  void check_books() {
    const SchedulerStats& stats = scheduler_->stats();
    auto wrong = unbalanced(stats.full_pages, "full", schedule_.options.kv.n_full_pages);
    if (!wrong) wrong = unbalanced(stats.sliding_pages, "sliding", schedule_.options.kv.n_sliding_pages);
    if (wrong) fail(*wrong);
    scheduler_->check_books();
  }

  void check_end() {
    for (size_t i = 0; i < watches_.size(); ++i) {
      if (watches_[i]->failure()) return fail(fmt::format("request {}: {}", i, *watches_[i]->failure()));
      if (!watches_[i]->finished()) fail(fmt::format("request {} never finished", i));
    }
    const SchedulerStats& stats = scheduler_->stats();
    if (stats.full_pages.held != 0 || stats.sliding_pages.held != 0)
      fail(fmt::format("{} full and {} sliding pages are held by nobody", stats.full_pages.held,
                       stats.sliding_pages.held));
    const int slots = fake_ == nullptr ? 0 : fake_->n_live_slots();
    if (stats.running != 0 || stats.waiting != 0 || slots != 0)
      fail(fmt::format("{} running, {} waiting, {} slots in use", stats.running, stats.waiting, slots));
    if (fake_ != nullptr && fake_->n_steps_in_flight() != 0) fail("a step was never collected");
    scheduler_->clear_cache();
    scheduler_->check_books();
    const SchedulerStats& cleared = scheduler_->stats();
    const int features = fake_ == nullptr ? 0 : fake_->n_live_features();
    if (cleared.full_pages.cached != 0 || cleared.sliding_pages.cached != 0 || features != 0)
      fail(fmt::format("after clear_cache(): {} full and {} sliding pages cached, {} features held",
                       cleared.full_pages.cached, cleared.sliding_pages.cached, features));
  }

  const Schedule& schedule_;
  Dice dice_;                          // of releases
  const FakeBackend* fake_ = nullptr;  // null: released
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::shared_ptr<Watch>> watches_;
  EngineTime now_{};
  ScheduleRun run_;
};

}  // namespace

ScheduleRun run_schedule(const Schedule& schedule) {
  return Runner(schedule).run();
}

}  // namespace jewel

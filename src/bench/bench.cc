#include "bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>

#include "bench/model_work.h"

namespace jewel {
namespace {

using Clock = RunRecord::Clock;

constexpr int kWarmupRun = -1;
constexpr int kMostRequests = 1'000'000;
constexpr int kWarmupAtOnceByRate = 4;
constexpr char kLetters[] = "AB";

int exact_tokens_of(const boost::json::object& body) {
  const boost::json::value* exact = body.if_contains("ignore_eos");
  if (exact == nullptr || !exact->is_bool() || !exact->get_bool()) return 0;
  const boost::json::value* tokens = body.if_contains("max_tokens");
  return tokens != nullptr && tokens->is_int64() ? static_cast<int>(tokens->get_int64()) : 0;
}

// Requests of a run, made ready in the target.
Result<RunPlan> make_ready(Target& target, const RequestSet& set, const Load& load, int run, int requests,
                           const BenchPlan& bench) {
  RunPlan plan{.load = load,
               .exact_tokens = {},
               .seed = bench.seed + static_cast<uint64_t>(run),
               .cancel = bench.cancel};
  target.clear();
  for (int i = 0; i < requests; ++i) {
    const boost::json::object body = set.request(run, i);
    JEWEL_TRY(target.add(body));
    plan.exact_tokens.push_back(exact_tokens_of(body));
  }
  return plan;
}

// Requests a second towards the end of a warm-up: those that ended behind the first wave.
double pace_of(const RunRecord& warmup) {
  std::vector<Clock::time_point> ends;
  ends.reserve(warmup.requests.size());
  for (const RequestRecord& request : warmup.requests) ends.push_back(request.answer.ended);
  std::ranges::sort(ends);
  const size_t wave = std::min(static_cast<size_t>(warmup.load.concurrency), ends.size() - 1);
  const bool second = wave > 0 && wave < ends.size() && ends.back() > ends[wave - 1];
  const Clock::time_point from = second ? ends[wave - 1] : warmup.begun;
  const auto count = static_cast<double>(second ? ends.size() - wave : ends.size());
  return count / std::max(1e-6, std::chrono::duration<double>(ends.back() - from).count());
}

class Bench {
 public:
  Bench(const std::vector<std::unique_ptr<Target>>& targets, BenchPlan plan, FoundCounter counter,
        const BenchProgress& say)
      : targets_(targets), say_(say) {
    result_.plan = std::move(plan);
    for (const auto& target : targets_) result_.targets.push_back(target->info());
    result_.why_no_energy = std::move(counter.why);
    if (counter.counter != nullptr) meter_ = std::make_unique<MeterTrace>(std::move(counter.counter));
  }

  Result<BenchResult> run() {
    if (meter_ != nullptr) measure_idle();
    if (result_.plan.ceilings) result_.rates_before = measure_rates();
    JEWEL_TRY(not_cancelled());
    for (RequestSet& set : result_.plan.sets) {
      if (set.made_up()) JEWEL_TRY(calibrate(set));
      for (const Load& load : result_.plan.loads) JEWEL_TRY(run_point(set, load));
    }
    if (result_.plan.ceilings) result_.rates_after = measure_rates();
    add_ceilings();
    result_.sets = result_.plan.sets;
    add_notes();
    return std::move(result_);
  }

 private:
  Result<void> not_cancelled() const {
    if (result_.plan.cancel != nullptr && *result_.plan.cancel)
      return Error{ErrorCode::kCancelled, "interrupted", {}};
    return {};
  }

  void measure_idle() {
    result_.energy_method = meter_->method();
    result_.energy_device = meter_->device();
    say_(fmt::format("idle power for {:g} s", result_.plan.idle_seconds), 0, 0);
    const auto begin = Clock::now();
    const auto end = begin + std::chrono::milliseconds(std::lround(result_.plan.idle_seconds * 1e3));
    std::this_thread::sleep_until(end);
    if (const auto joules = meter_->joules(begin, end))
      result_.idle_watts = *joules / result_.plan.idle_seconds;
  }

  std::vector<Rates> measure_rates() {
    if (std::ranges::any_of(targets_, [](const auto& target) { return target->info().in_process; }))
      say_("what the device can read and multiply", 0, 0);
    std::vector<Rates> rates;
    rates.reserve(targets_.size());
    for (const auto& target : targets_) rates.push_back(target->measure_rates());
    return rates;
  }

  Result<void> calibrate(RequestSet& set) {
    say_(set.name() + ": how many tokens a word has", 0, 0);
    return set.calibrate([&](const boost::json::object& body) -> Result<int> {
      JEWEL_ASSIGN(const ChatAnswer answer, ask(*targets_.front(), body));
      if (!answer.usage) {
        return unsupported(
            fmt::format("{}: its answer has no usage, without which made-up prompts cannot be "
                        "given their length; use a JSONL file",
                        targets_.front()->info().name));
      }
      return answer.usage->prompt_tokens;
    });
  }

  Result<void> run_point(const RequestSet& set, const Load& load) {
    BenchPoint point{.set = set.name(),
                     .load = load,
                     .made_up = set.made_up(),
                     .requests = 0,
                     .runs = {},
                     .least_output_tok_per_s = {}};
    point.runs.resize(targets_.size());
    double pace = load.rate;
    for (size_t t = 0; t < targets_.size(); ++t) {
      JEWEL_ASSIGN(const double seen, warm_up(set, load, t));
      if (load.rate <= 0) pace = std::max(pace, seen);
    }
    point.requests = requests_of_a_run(set, load, pace);
    for (int run = 0; run < result_.plan.runs; ++run) {
      for (const size_t t : turn_order(targets_.size(), run)) {
        JEWEL_ASSIGN(RunFigures figures, measure(set, point, run, t));
        point.runs[t].push_back(std::move(figures));
      }
    }
    for (const auto& target : targets_) target->clear();
    result_.points.push_back(std::move(point));
    return {};
  }

  Result<double> warm_up(const RequestSet& set, const Load& load, size_t t) {
    const Load closed{.concurrency = load.rate > 0 ? kWarmupAtOnceByRate : load.concurrency};
    const int requests = result_.plan.warmup >= 0 ? std::max(1, result_.plan.warmup) : 2 * closed.concurrency;
    say_(where(set.name(), load, t) + ": warm-up", 0, requests);
    JEWEL_ASSIGN(const RunPlan plan,
                 make_ready(*targets_[t], set, closed, kWarmupRun, requests, result_.plan));
    const RunRecord run = run_requests(*targets_[t], plan);
    JEWEL_TRY(not_cancelled());
    for (const RequestRecord& request : run.requests) {
      if (!request.ok())
        return unavailable(fmt::format("{}, {}: {}", targets_[t]->info().name, set.name(), request.error));
    }
    return pace_of(run);
  }

  int requests_of_a_run(const RequestSet& set, const Load& load, double pace) const {
    if (result_.plan.requests > 0) return result_.plan.requests;
    // Whole rounds of a file, so that every run asks the same.
    const int round = set.made_up() ? 1 : set.size();
    const int least = std::max(3, load.rate > 0 ? 0 : 4 * load.concurrency);
    const double wanted = std::clamp(std::ceil(result_.plan.seconds * pace), static_cast<double>(least),
                                     static_cast<double>(kMostRequests));
    return static_cast<int>(std::ceil(wanted / round)) * round;
  }

  Result<RunFigures> measure(const RequestSet& set, const BenchPoint& point, int run, size_t t) {
    const std::string what =
        fmt::format("{}: run {} of {}", where(set.name(), point.load, t), run + 1, result_.plan.runs);
    say_(what, 0, point.requests);
    JEWEL_ASSIGN(const RunPlan plan,
                 make_ready(*targets_[t], set, point.load, run, point.requests, result_.plan));
    const RunRecord record =
        run_requests(*targets_[t], plan, [&](int ended) { say_(what, ended, point.requests); });
    JEWEL_TRY(not_cancelled());
    return figures_of(record, meter_.get());
  }

  std::string where(const std::string& set, const Load& load, size_t t) const {
    std::string text = fmt::format("{}, {}", set, load.text());
    if (targets_.size() > 1) text += fmt::format(", {}", kLetters[t]);
    return text;
  }

  // Tokens a second of a device that did nothing but this model's products at its measured rates.
  void add_ceilings() {
    for (BenchPoint& point : result_.points) {
      for (size_t t = 0; t < targets_.size(); ++t) {
        const Rates rates = result_.rates(t);
        const ModelWork& work = result_.targets[t].work;
        double ceiling = 0;
        if (rates.known() && work.known() && point.load.rate <= 0 && !point.runs[t].empty()) {
          const RunFigures& run = point.runs[t].front();
          const double rows = point.load.concurrency;
          const double request_s =
              least_prompt_s(work, rates, run.prompt_tokens - run.cached_tokens.value_or(0)) +
              run.output_tokens * least_step_s(work, rates, rows) / rows;
          if (request_s > 0) ceiling = run.output_tokens / request_s;
        }
        point.least_output_tok_per_s.push_back(ceiling);
      }
    }
  }

  void add_notes() {
    const auto note = [&](std::string text) { result_.notes.push_back(std::move(text)); };
    for (const BenchPoint& point : result_.points) {
      const std::string name = fmt::format("{}, {}", point.set, point.load.text());
      for (size_t t = 0; t < targets_.size(); ++t) {
        const std::string whose = targets_.size() > 1 ? fmt::format("{}, {}", name, kLetters[t]) : name;
        int failed = 0, unsteady = 0, uncounted = 0, wrong = 0;
        double late = 0;
        std::string error;
        for (const RunFigures& run : point.runs[t]) {
          failed += run.failed;
          if (error.empty()) error = run.first_error;
          unsteady += run.steady ? 0 : 1;
          uncounted += run.without_usage;
          wrong += run.wrong_length;
          late = std::max(late, run.late_s);
        }
        if (failed > 0) note(fmt::format("{}: {} requests failed, the first with: {}", whose, failed, error));
        if (unsteady > 0)
          note(
              fmt::format("{}: {} of {} runs had no steady window and were taken whole; give more --requests",
                          whose, unsteady, point.runs[t].size()));
        if (uncounted > 0)
          note(fmt::format("{}: {} answers came without usage; their tokens are events of the stream", whose,
                           uncounted));
        if (wrong > 0)
          note(
              fmt::format("{}: {} answers are not as long as asked; does the server know ignore_eos, and "
                          "does the length fit its context?",
                          whose, wrong));
        if (point.load.rate > 0 && late > 0.01)
          note(fmt::format("{}: a request was sent {:.0f} ms late; this machine is too busy to keep the rate",
                           whose, late * 1e3));
      }
    }
    for (size_t t = 0; t < targets_.size() && t < result_.rates_after.size(); ++t) {
      const double before = result_.rates_before[t].bytes_per_s;
      const double after = result_.rates_after[t].bytes_per_s;
      if (before > 0 && std::abs(before - after) > 0.1 * std::max(before, after)) {
        note(
            fmt::format("the read rate moved from {:.1f} to {:.1f} GB/s while this ran: something else uses "
                        "the machine",
                        before * 1e-9, after * 1e-9));
        break;
      }
    }
  }

  const std::vector<std::unique_ptr<Target>>& targets_;
  const BenchProgress& say_;
  BenchResult result_;
  std::unique_ptr<MeterTrace> meter_;
};

}  // namespace

Rates BenchResult::rates(size_t target) const {
  if (target >= rates_before.size()) return {};
  Rates best = rates_before[target];
  if (target < rates_after.size()) {
    best.bytes_per_s = std::max(best.bytes_per_s, rates_after[target].bytes_per_s);
    best.flop_per_s = std::max(best.flop_per_s, rates_after[target].flop_per_s);
    best.prompt_flop_per_s = std::max(best.prompt_flop_per_s, rates_after[target].prompt_flop_per_s);
  }
  return best;
}

int BenchResult::failed() const {
  int failed = 0;
  for (const BenchPoint& point : points) {
    for (const auto& runs : point.runs) {
      for (const RunFigures& run : runs) failed += run.failed;
    }
  }
  return failed;
}

std::vector<size_t> turn_order(size_t targets, int run) {
  std::vector<size_t> order(targets);
  for (size_t i = 0; i < targets; ++i) order[i] = run % 2 == 0 ? i : targets - 1 - i;
  return order;
}

Result<BenchResult> run_bench(const std::vector<std::unique_ptr<Target>>& targets, BenchPlan plan,
                              FoundCounter counter, const BenchProgress& say) {
  return Bench(targets, std::move(plan), std::move(counter), say).run();
}

}  // namespace jewel

// A benchmark: sets of requests × loads × runs, on one target or on two that are compared.
//
// Protocol, for each set and load: a warm-up on each target, then runs. Two targets take turns as A B B A …,
// so that a machine that warms up or slows down does both of them the same harm. Run k asks both the same
// requests, and no run asks those of another. The device's rates are measured before the first and after the
// last run; where a meter is, idle watts before the first.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/meter.h"
#include "bench/request_set.h"
#include "bench/run_figures.h"
#include "bench/target.h"

namespace jewel {

struct BenchPlan {
  std::vector<RequestSet> sets;
  std::vector<Load> loads;
  int runs = 3;
  int requests = 0;  // of a run; 0: as many as take about `seconds`, by the warm-up
  double seconds = 10;
  int warmup = -1;  // requests; -1: twice as many as are under way at once
  uint64_t seed = 0;
  bool ceilings = true;
  double idle_seconds = 3;
  const std::atomic<bool>* cancel = nullptr;  // raised by a signal handler: run_bench() ends as kCancelled
};

// All runs of a set under a load: runs[target][run].
struct BenchPoint {
  std::string set;
  Load load;
  bool made_up = true;
  int requests = 0;  // of a run
  std::vector<std::vector<RunFigures>> runs;
  std::vector<double> least_output_tok_per_s;  // ceiling by target; 0: not known
};

struct BenchResult {
  std::vector<TargetInfo> targets;
  std::vector<RequestSet> sets;
  BenchPlan plan;
  std::vector<BenchPoint> points;
  std::vector<Rates> rates_before, rates_after;  // by target; not known: zeros
  std::string energy_method = "none";
  std::string energy_device;
  std::string why_no_energy;
  std::optional<double> idle_watts;
  std::vector<std::string> notes;

  // The better of before and after.
  Rates rates(size_t target) const;
  int failed() const;
};

// What is going on ("text:512:128, 1 at once, B: run 2 of 3"), how many of its requests have ended, and how
// many it has; 0 of 0 for parts without requests. Called by the thread that called run_bench().
using BenchProgress = std::function<void(const std::string& what, int ended, int requests)>;

// An Error: the warm-up failed, the target cannot do this at all. Requests that fail in a run are counted.
Result<BenchResult> run_bench(const std::vector<std::unique_ptr<Target>>& targets, BenchPlan plan,
                              FoundCounter counter, const BenchProgress& say);

// The targets' order in run `run`, of n runs: A B, B A, A B …
std::vector<size_t> turn_order(size_t targets, int run);

}  // namespace jewel

// Recovery: what a candidate keeps of its base's score, category by category, and whether that is enough.
//
// score      mean of the tasks' points (metrics.h), 0 to 1
// recovery   candidate's score / base's score over the same tasks; none where the base scored nothing
// interval   95 %, percentile bootstrap over tasks, paired: a resample draws tasks, with both models' points
// (Efron,
//            1979; Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13). The same seed gives
//            the same interval on every machine. It cannot see what no task asks: where no task differs it
//            has no width
// gate       every category's recovery must reach it; a category without one is not judged and does not pass
//
// Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/subject.h"

namespace jewel {

struct RecoveryInterval {
  double low = 0;
  double high = 0;
};

struct RecoverySettings {
  double gate = 0.8;
  int resamples = 2000;
  uint64_t seed = 1;
};

// One model's side of a category.
struct SideScore {
  double score = 0;
  std::optional<double> mean_output_tokens;  // over tasks whose tokens are known
  std::optional<double> word_error_rate;     // of the category's word_error tasks: all edits / all words
  int failed = 0;                            // tasks without an answer; they score 0
  int cut_off = 0;                           // answers that ended at max_tokens
};

struct CategoryRecovery {
  std::string category;
  int n = 0;
  SideScore base, candidate;
  std::optional<double> recovery;
  std::optional<RecoveryInterval> interval;
  bool passes = false;
};

struct TaskScore {
  double base = 0;
  double candidate = 0;
};

struct RecoveryTable {
  std::vector<CategoryRecovery> categories;  // in the suite's order
  CategoryRecovery all;                      // over all tasks; passes when every category does
  std::vector<TaskScore> tasks;
};

RecoveryTable recovery_of(std::span<const EvalTask> tasks, std::span<const TaskAnswer> base,
                          std::span<const TaskAnswer> candidate, const RecoverySettings& settings);

// The bootstrap by itself; none where no resample has points of the base.
std::optional<RecoveryInterval> recovery_interval(std::span<const TaskScore> scores, int resamples,
                                                  uint64_t seed);

}  // namespace jewel

#include "eval/recovery.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace jewel {
namespace {

constexpr double kTail = 0.025;  // of each side: 95 % between

// Uniform below n. The standard leaves its distributions' algorithms open; this one is the same everywhere
// (the bias of a 64-bit product is below n / 2^64).
size_t below(std::mt19937_64& random, size_t n) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<size_t>(static_cast<Wide>(random()) * n >> 64);
}

double quantile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const auto first = static_cast<size_t>(at);
  const size_t second = std::min(first + 1, sorted.size() - 1);
  return sorted[first] + (at - static_cast<double>(first)) * (sorted[second] - sorted[first]);
}

double points(const EvalTask& task, const TaskAnswer& answer) {
  return answer.failed ? 0 : score(task.metric, answer.text, task.answers, task.choices);
}

SideScore side(std::span<const EvalTask> tasks, std::span<const TaskAnswer> answers,
               std::span<const size_t> members, const std::vector<TaskScore>& scores,
               double TaskScore::* which) {
  SideScore out;
  double sum = 0, tokens = 0, edits = 0, words = 0;
  int with_tokens = 0;
  for (const size_t i : members) {
    const TaskAnswer& answer = answers[i];
    sum += scores[i].*which;
    out.failed += answer.failed ? 1 : 0;
    out.cut_off += answer.finish_reason == "length" ? 1 : 0;
    if (answer.output_tokens) tokens += *answer.output_tokens, ++with_tokens;
    if (tasks[i].metric != Metric::kWordError) continue;
    // Of several wanted texts, the one that is nearest.
    WordErrors best{.edits = -1};
    for (const std::string& wanted : tasks[i].answers) {
      const WordErrors errors = word_errors(answer.failed ? "" : answer.text, wanted);
      if (best.edits < 0 ||
          int64_t{errors.edits} * std::max(best.words, 1) < int64_t{best.edits} * std::max(errors.words, 1))
        best = errors;
    }
    edits += best.edits;
    words += best.words;
  }
  out.score = members.empty() ? 0 : sum / static_cast<double>(members.size());
  if (with_tokens > 0) out.mean_output_tokens = tokens / with_tokens;
  if (words > 0) out.word_error_rate = edits / words;
  return out;
}

}  // namespace

std::optional<RecoveryInterval> recovery_interval(std::span<const TaskScore> scores, int resamples,
                                                  uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<double> ratios;
  for (int r = 0; r < resamples && !scores.empty(); ++r) {
    double base = 0, candidate = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      const TaskScore& drawn = scores[below(random, scores.size())];
      base += drawn.base;
      candidate += drawn.candidate;
    }
    if (base > 0) ratios.push_back(candidate / base);
  }
  if (ratios.empty()) return std::nullopt;
  std::ranges::sort(ratios);
  return RecoveryInterval{quantile(ratios, kTail), quantile(ratios, 1 - kTail)};
}

RecoveryTable recovery_of(std::span<const EvalTask> tasks, std::span<const TaskAnswer> base,
                          std::span<const TaskAnswer> candidate, const RecoverySettings& settings) {
  JEWEL_CHECK(tasks.size() == base.size() && tasks.size() == candidate.size(), "{} tasks, {} and {} answers",
              tasks.size(), base.size(), candidate.size());
  RecoveryTable table;
  std::vector<size_t> everything;
  std::vector<std::vector<size_t>> members;
  for (size_t i = 0; i < tasks.size(); ++i) {
    table.tasks.push_back({points(tasks[i], base[i]), points(tasks[i], candidate[i])});
    auto row = std::ranges::find(table.categories, tasks[i].category, &CategoryRecovery::category);
    if (row == table.categories.end()) {
      row = table.categories.insert(row, {.category = tasks[i].category});
      members.emplace_back();
    }
    members[static_cast<size_t>(row - table.categories.begin())].push_back(i);
    everything.push_back(i);
  }
  const auto fill = [&](CategoryRecovery& row, std::span<const size_t> of) {
    row.n = static_cast<int>(of.size());
    row.base = side(tasks, base, of, table.tasks, &TaskScore::base);
    row.candidate = side(tasks, candidate, of, table.tasks, &TaskScore::candidate);
    std::vector<TaskScore> scores;
    scores.reserve(of.size());
    for (const size_t i : of) scores.push_back(table.tasks[i]);
    if (row.base.score > 0) {
      row.recovery = row.candidate.score / row.base.score;
      row.interval = recovery_interval(scores, settings.resamples, settings.seed);
    }
    // The sum of many points that should reach 0.8 exactly may lie a rounding below.
    row.passes = row.recovery && *row.recovery >= settings.gate - 1e-9;
  };
  for (size_t c = 0; c < table.categories.size(); ++c) fill(table.categories[c], members[c]);
  table.all.category = "all";
  fill(table.all, everything);
  table.all.passes =
      !table.categories.empty() && std::ranges::all_of(table.categories, &CategoryRecovery::passes);
  return table;
}

}  // namespace jewel

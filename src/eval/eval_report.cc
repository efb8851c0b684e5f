// What an evaluation found: figures, a page, a table for the terminal.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value_from.hpp>
#include <filesystem>

#include "eval/eval_run.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kMostListed = 200;      // wrong answers on the page; the JSON has all
constexpr size_t kMostCharacters = 600;  // of an answer on the page
constexpr std::string_view kBootstrap = "95 % bootstrap over tasks";

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

std::string recovery_text(const CategoryRecovery& row) {
  return row.recovery ? percent(*row.recovery) : "not judged";
}

std::string interval_text(const CategoryRecovery& row) {
  return row.interval ? fmt::format("{:.1f} to {:.1f}", 100 * row.interval->low, 100 * row.interval->high)
                      : "–";
}

std::string tokens_text(const std::optional<double>& tokens) {
  return tokens ? fmt::format("{:.1f}", *tokens) : "–";
}

void add_category(ResultFile& result, const CategoryRecovery& row, double gate) {
  const auto figure = [&](std::string_view what, std::optional<double> value, const char* unit) -> Figure& {
    return result.figures.emplace_back(
        Figure{.name = fmt::format("{}: {}", what, row.category), .value = value, .unit = unit, .n = row.n});
  };
  Figure& recovery = figure("recovery", row.recovery, "of base");
  if (row.interval) recovery.spread = Spread{row.interval->low, row.interval->high, std::string(kBootstrap)};
  recovery.note = !row.recovery ? "not judged: the base scored nothing here"
                  : row.passes  ? ""
                                : fmt::format("below the gate of {}", percent(gate));
  figure("score of base", row.base.score, "");
  figure("score of candidate", row.candidate.score, "");
  figure("output tokens of base", row.base.mean_output_tokens, "tokens per task");
  figure("output tokens of candidate", row.candidate.mean_output_tokens, "tokens per task");
  if (row.base.word_error_rate || row.candidate.word_error_rate) {
    figure("word error rate of base", row.base.word_error_rate, "");
    figure("word error rate of candidate", row.candidate.word_error_rate, "");
  }
}

json::object task_json(const EvalTask& task, const TaskScore& scores, const TaskAnswer& base,
                       const TaskAnswer& candidate) {
  const auto side = [](const TaskAnswer& answer, double points) {
    json::object out = {{"text", answer.text}, {"score", points}, {"finish_reason", answer.finish_reason}};
    out["output_tokens"] = answer.output_tokens ? json::value(*answer.output_tokens) : json::value(nullptr);
    if (answer.failed) out["error"] = *answer.failed;
    if (answer.joules) out["joules"] = *answer.joules;
    return out;
  };
  return {{"id", task.input.id},
          {"category", task.category},
          {"metric", name_of(task.metric)},
          {"answers", json::value_from(task.answers)},
          {"base", side(base, scores.base)},
          {"candidate", side(candidate, scores.candidate)}};
}

std::string shown(const TaskAnswer& answer) {
  if (answer.failed) return "no answer: " + *answer.failed;
  if (answer.text.size() <= kMostCharacters) return answer.text;
  size_t end = kMostCharacters;
  while (end > 0 && (static_cast<unsigned char>(answer.text[end]) & 0xC0) == 0x80) --end;
  return answer.text.substr(0, end) + " […]";
}

// Tasks that the candidate does not get whole: first what it lost, then what neither gets.
std::vector<size_t> wrong_tasks(const RecoveryTable& table) {
  std::vector<size_t> wrong;
  for (size_t i = 0; i < table.tasks.size(); ++i) {
    if (table.tasks[i].candidate < 1) wrong.push_back(i);
  }
  const auto lost = [&](size_t i) { return table.tasks[i].base - table.tasks[i].candidate; };
  std::ranges::sort(wrong,
                    [&](size_t a, size_t b) { return lost(a) != lost(b) ? lost(a) > lost(b) : a < b; });
  return wrong;
}

void add_quality(HtmlPage& page, const EvalOutcome& outcome, double gate) {
  const RecoveryTable& table = *outcome.recovery;
  page.section("Quality by category");
  std::vector<Interval> intervals;
  std::vector<TableRow> rows;
  std::vector<StackedBar> tokens;
  for (const CategoryRecovery& row : table.categories) {
    Interval one{.name = row.category, .passes = row.passes};
    if (row.recovery) {
      const RecoveryInterval range = row.interval.value_or(RecoveryInterval{*row.recovery, *row.recovery});
      one.value = 100 * *row.recovery, one.low = 100 * range.low, one.high = 100 * range.high;
    }
    intervals.push_back(std::move(one));
  }
  page.plot(interval_plot("Recovery, with its 95 % interval", "recovery, % of base (dashed: the gate)",
                          intervals, 100 * gate));
  for (const CategoryRecovery& row : table.categories) {
    for (const auto& [name, side] : {std::pair("base", &row.base), {"candidate", &row.candidate}}) {
      if (side->mean_output_tokens)
        tokens.push_back({fmt::format("{}, {}", row.category, name), {*side->mean_output_tokens}});
    }
  }
  page.plot(stacked_bars("Length of answers", "tokens per task", {"output tokens"}, tokens));
  const auto add = [&](const CategoryRecovery& row) {
    rows.push_back({row.category, number_text(row.n), percent(row.base.score), percent(row.candidate.score),
                    recovery_text(row), interval_text(row), tokens_text(row.base.mean_output_tokens),
                    tokens_text(row.candidate.mean_output_tokens), row.passes ? "passed" : "failed"});
  };
  for (const CategoryRecovery& row : table.categories) add(row);
  add(table.all);
  page.table({{"category"},
              {"tasks", true},
              {"base", true},
              {"candidate", true},
              {"recovery", true},
              {"95 % interval", true},
              {"tokens, base", true},
              {"tokens, candidate", true},
              {fmt::format("gate {}", percent(gate))}},
             rows);
}

void add_wrong_answers(HtmlPage& page, const EvalOutcome& outcome) {
  const std::vector<size_t> wrong = wrong_tasks(*outcome.recovery);
  page.section("Answers that miss");
  if (wrong.empty()) {
    page.paragraph("The candidate got every task.");
    return;
  }
  page.paragraph(fmt::format(
      "{} of {} tasks, those first that the base gets{}.", wrong.size(), outcome.tasks.size(),
      wrong.size() > kMostListed ? fmt::format("; the first {} are shown, the JSON has all", kMostListed)
                                 : ""));
  std::vector<TableRow> rows;
  for (size_t k = 0; k < std::min(wrong.size(), kMostListed); ++k) {
    const size_t i = wrong[k];
    const EvalTask& task = outcome.tasks[i];
    const TaskScore& points = outcome.recovery->tasks[i];
    rows.push_back({fmt::format("{} ({})", task.input.id, task.category),
                    fmt::format("{}", fmt::join(task.answers, "\nor ")), fmt::format("{:.2f}", points.base),
                    shown(outcome.base_answers[i]), fmt::format("{:.2f}", points.candidate),
                    shown(outcome.candidate_answers[i])});
  }
  page.table({{"task"}, {"wanted"}, {"base", true}, {"its answer"}, {"candidate", true}, {"its answer"}},
             rows);
}

void add_divergence(HtmlPage& page, const Divergence& divergence) {
  page.section("Divergence on the texts");
  Samples kls{"tokens", {divergence.kls.begin(), divergence.kls.end()}};
  page.plot(distribution_plot(
      divergence.exact ? "KL divergence by token" : "KL divergence by token (lower bounds)",
      {.title = "KL(base ‖ candidate), nats", .scale = Scale::kLog}, {kls}, "share of tokens, %"));
  page.table(
      {{"figure"}, {"value", true}},
      {{"tokens", number_text(static_cast<double>(divergence.tokens))},
       {divergence.exact ? "mean KL, nats" : "mean KL, nats (lower bound)", number_text(divergence.mean_kl)},
       {"its 95 % interval", fmt::format("{} to {}", number_text(divergence.kl_interval.low),
                                         number_text(divergence.kl_interval.high))},
       {"99 % of tokens at most", number_text(divergence.kl_p99)},
       {"most", number_text(divergence.kl_most)},
       {"top-1 agreement", percent(divergence.agreement)},
       {"perplexity of base", number_text(divergence.base_perplexity)},
       {"perplexity of candidate", number_text(divergence.candidate_perplexity)}});
}

double gate_of(const ResultFile& result) {
  const json::value* gate = result.settings.if_contains("gate");
  return gate != nullptr && gate->is_number() ? gate->to_number<double>() : 0;
}

void add_divergence_figures(ResultFile& result, const Divergence& d) {
  const std::string note = d.exact
                               ? "exact: the sum over the whole vocabulary"
                               : "a lower bound: tokens among both models' known best, and all others as one";
  const auto add = [&](const char* name, double value, const char* unit) -> Figure& {
    return result.figures.emplace_back(Figure{.name = name, .value = value, .unit = unit, .n = d.tokens});
  };
  Figure& kl = add("KL divergence, mean", d.mean_kl, "nats per token");
  kl.spread = Spread{d.kl_interval.low, d.kl_interval.high, "95 % bootstrap over texts"};
  kl.note = note;
  add("KL divergence, 99th percentile", d.kl_p99, "nats").note = note;
  add("KL divergence, most", d.kl_most, "nats").note = note;
  add("top-1 agreement", d.agreement, "share of tokens");
  add("perplexity of base", d.base_perplexity, "");
  add("perplexity of candidate", d.candidate_perplexity, "");
}

}  // namespace

std::string verdict_of(const RecoveryTable& table, double gate) {
  std::vector<std::string> failed;
  for (const CategoryRecovery& row : table.categories) {
    if (row.passes) continue;
    failed.push_back(
        row.recovery ? fmt::format("{} recovers {}", row.category, percent(*row.recovery))
                     : fmt::format("{} is not judged, because the base scored nothing there", row.category));
  }
  if (failed.empty())
    return fmt::format("every category recovers at least {} of the base's score", percent(gate));
  return fmt::format("the gate is {} in every category: {}", percent(gate), fmt::join(failed, "; "));
}

ResultFile eval_result(const EvalSettings& settings, const EvalOutcome& outcome) {
  ResultFile result = begin_result(fmt::format("jewel eval: {} against {}", outcome.candidate, outcome.base));
  result.settings = {{"base", outcome.base}, {"candidate", outcome.candidate}};
  if (outcome.recovery) {
    const AnswerSettings& answers = settings.answers;
    result.settings["suite"] = std::filesystem::path(settings.suite_file).filename().string();
    result.settings["tasks"] = outcome.tasks.size();
    result.settings["gate"] = settings.recovery.gate;
    result.settings["temperature"] = answers.temperature;
    if (answers.top_p) result.settings["top_p"] = *answers.top_p;
    if (answers.top_k) result.settings["top_k"] = *answers.top_k;
    result.settings["seed"] = answers.seed;
    result.settings["max_tokens"] = answers.max_tokens;
    result.settings["resamples"] = settings.recovery.resamples;
    for (const CategoryRecovery& row : outcome.recovery->categories)
      add_category(result, row, settings.recovery.gate);
    add_category(result, outcome.recovery->all, settings.recovery.gate);
    json::array tasks;
    for (size_t i = 0; i < outcome.tasks.size(); ++i)
      tasks.push_back(task_json(outcome.tasks[i], outcome.recovery->tasks[i], outcome.base_answers[i],
                                outcome.candidate_answers[i]));
    result.details = {{"passed", outcome.recovery->all.passes},
                      {"verdict", verdict_of(*outcome.recovery, settings.recovery.gate)},
                      {"tasks", std::move(tasks)}};
    const CategoryRecovery& all = outcome.recovery->all;
    for (const auto& [name, side] : {std::pair("base", &all.base), {"candidate", &all.candidate}}) {
      if (side->failed > 0)
        result.notes.push_back(
            fmt::format("{} tasks got no answer from the {} and score 0", side->failed, name));
      if (side->cut_off > 0)
        result.notes.push_back(fmt::format("{} answers of the {} ended at max_tokens", side->cut_off, name));
    }
    result.notes.emplace_back(
        "Intervals are 95 % percentile bootstraps over tasks, both models' points drawn together; where no "
        "task differs, an interval has no width, whatever tasks were not asked.");
  }
  if (outcome.divergence) {
    result.settings["text"] = std::filesystem::path(settings.text_file).filename().string();
    result.settings["kl"] = outcome.divergence->exact
                                ? "whole vocabulary"
                                : fmt::format("{} best of each model", settings.base_options.n_top);
    add_divergence_figures(result, *outcome.divergence);
  }
  return result;
}

void add_to_page(HtmlPage& page, const EvalOutcome& outcome, double gate) {
  if (outcome.recovery) {
    add_quality(page, outcome, gate);
    add_wrong_answers(page, outcome);
  }
  if (outcome.divergence) add_divergence(page, *outcome.divergence);
}

std::string eval_page(const EvalOutcome& outcome, const ResultFile& result) {
  HtmlPage page("Does the candidate keep what its base can?",
                fmt::format("candidate: {} · base: {}", outcome.candidate, outcome.base));
  const double gate = gate_of(result);
  std::vector<HtmlPage::Headline> heads;
  if (outcome.recovery) {
    const RecoveryTable& table = *outcome.recovery;
    page.verdict(table.all.passes, verdict_of(table, gate));
    heads.push_back({"recovery, all tasks", recovery_text(table.all),
                     fmt::format("95 %: {}; {} tasks", interval_text(table.all), table.all.n)});
    const auto least = std::ranges::min_element(
        table.categories, {}, [](const CategoryRecovery& row) { return row.recovery.value_or(-1); });
    heads.push_back({"least category", recovery_text(*least), least->category});
    heads.push_back({"output tokens per task", tokens_text(table.all.candidate.mean_output_tokens),
                     fmt::format("base: {}", tokens_text(table.all.base.mean_output_tokens))});
  }
  if (outcome.divergence) {
    heads.push_back({"mean KL per token", fmt::format("{} nats", number_text(outcome.divergence->mean_kl)),
                     outcome.divergence->exact ? "whole vocabulary" : "lower bound"});
    heads.push_back({"top-1 agreement", percent(outcome.divergence->agreement),
                     fmt::format("{} tokens", outcome.divergence->tokens)});
  }
  page.headlines(heads);
  add_to_page(page, outcome, gate);
  page.method(result);
  page.section("All figures");
  page.figures(result);
  return page.text();
}

std::string eval_text(const EvalOutcome& outcome, double gate) {
  std::string out;
  if (outcome.recovery) {
    out += fmt::format("{:<24}{:>6}{:>9}{:>11}{:>12}{:>18}{:>16}\n", "category", "tasks", "base", "candidate",
                       "recovery", "95 % interval", "output tokens");
    const auto line = [&](const CategoryRecovery& row) {
      out += fmt::format("{:<24}{:>6}{:>9}{:>11}{:>12}{:>18}{:>16}{}\n", row.category, row.n,
                         percent(row.base.score), percent(row.candidate.score), recovery_text(row),
                         interval_text(row),
                         fmt::format("{} -> {}", tokens_text(row.base.mean_output_tokens),
                                     tokens_text(row.candidate.mean_output_tokens)),
                         row.passes ? "" : "  below the gate");
    };
    for (const CategoryRecovery& row : outcome.recovery->categories) line(row);
    line(outcome.recovery->all);
    out += fmt::format("\n{}: {}\n", outcome.recovery->all.passes ? "passed" : "failed",
                       verdict_of(*outcome.recovery, gate));
  }
  if (outcome.divergence) {
    const Divergence& d = *outcome.divergence;
    out += fmt::format(
        "{}over {} tokens: KL {} nats per token ({}; 95 %: {} to {}), top-1 agreement {}, perplexity {} -> "
        "{}\n",
        out.empty() ? "" : "\n", d.tokens, number_text(d.mean_kl),
        d.exact ? "whole vocabulary" : "lower bound", number_text(d.kl_interval.low),
        number_text(d.kl_interval.high), percent(d.agreement), number_text(d.base_perplexity),
        number_text(d.candidate_perplexity));
  }
  return out;
}

}  // namespace jewel

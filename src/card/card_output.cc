// The outcome as a result file, a page and a Markdown table.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <boost/json/array.hpp>

#include "bench/output.h"
#include "card/card.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr std::array<std::string_view, 4> kHeads = {"", "BF16", "FP8", "Change"};

std::array<std::string_view, 4> cells(const CardRow& row) {
  return {row.metric, row.bf16, row.fp8, row.change};
}

size_t width_of(std::string_view text) {  // characters, not bytes
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string markdown(const std::vector<CardRow>& rows) {
  std::array<size_t, 4> widths{};
  for (size_t c = 0; c < 4; ++c) {
    widths[c] = std::max<size_t>(3, width_of(kHeads[c]));
    for (const CardRow& row : rows) widths[c] = std::max(widths[c], width_of(cells(row)[c]));
  }
  std::string out;
  const auto line = [&](const std::array<std::string_view, 4>& texts) {
    for (size_t c = 0; c < 4; ++c)
      out += fmt::format("| {}{} ", texts[c], std::string(widths[c] - width_of(texts[c]), ' '));
    out += "|\n";
  };
  line(kHeads);
  for (const size_t width : widths) out += fmt::format("|{}", std::string(width + 2, '-'));
  out += "|\n";
  for (const CardRow& row : rows) line(cells(row));
  return out;
}

std::string name_of(const CardSettings& settings) {
  return settings.name.empty() ? settings.source : settings.name;
}

std::string joules_text(const BenchResult& bench) {
  if (bench.energy_method == "none") return fmt::format("method: none; {}", bench.why_no_energy);
  std::string text =
      fmt::format("method: {}, {}; the idle draw is in them", bench.energy_method, bench.energy_device);
  if (bench.idle_watts) text += fmt::format(" ({:.1f} W before the first run)", *bench.idle_watts);
  return text;
}

// How the speed was measured, one sentence.
std::string speed_text(const CardOutcome& outcome) {
  const BenchResult& bench = outcome.bench;
  std::vector<std::string> points;
  points.reserve(bench.points.size());
  for (const BenchPoint& point : bench.points)
    points.push_back(fmt::format("{}, {}: {} requests", point.set, point.load.text(), point.requests));
  return fmt::format(
      "{} runs of each model in the order A B B A (A = BF16, B = FP8), both asked the same, a warm-up "
      "before; a run "
      "is {}. Figures are medians of the runs, changes those of pairs of runs (lowest and highest in "
      "brackets)",
      bench.plan.runs, fmt::join(points, "; "));
}

std::string quality_text(const CardSettings& settings, const CardOutcome& outcome) {
  if (!outcome.eval) return "not measured: neither a suite (--suite) nor texts (--text) were given";
  std::string text;
  if (outcome.eval->recovery) {
    const AnswerSettings& answers = settings.eval.answers;
    text = fmt::format(
        "{} tasks in {} categories, temperature {:g}, at most {} tokens; scores are shares of the points, "
        "in brackets the 95 % bootstrap interval over tasks",
        outcome.eval->recovery->all.n, outcome.eval->recovery->categories.size(), answers.temperature,
        answers.max_tokens);
  }
  if (outcome.eval->divergence) {
    if (!text.empty()) text += "; ";
    text += fmt::format("divergence over {} tokens of text, {}", outcome.eval->divergence->tokens,
                        outcome.eval->divergence->exact ? "whole vocabulary" : "a lower bound");
  }
  return text;
}

std::string quantized_text(const CardOutcome& outcome) {
  return fmt::format("{}, {} linears of the text decoder, {:.1f} s", outcome.scheme,
                     outcome.quantized.plan.n_quantized, outcome.quantized.convert_s);
}

void add_sizes(ResultFile& result, const CardOutcome& outcome) {
  const auto before = static_cast<double>(outcome.quantized.source_file_bytes);
  const auto after = static_cast<double>(outcome.quantized.result_file_bytes);
  result.figures.push_back({.name = "size of the weights, A", .value = before, .unit = "bytes", .n = 1});
  result.figures.push_back({.name = "size of the weights, B", .value = after, .unit = "bytes", .n = 1});
  result.figures.push_back(
      {.name = "size of the weights, B / A", .value = after / before, .unit = "ratio", .n = 1});
}

json::array rows_json(const std::vector<CardRow>& rows) {
  json::array out;
  for (const CardRow& row : rows)
    out.push_back(
        json::object{{"metric", row.metric}, {"bf16", row.bf16}, {"fp8", row.fp8}, {"change", row.change}});
  return out;
}

// The eval's own settings, but for those that this result says in another place.
json::object quality_json(const ResultFile& eval) {
  json::object settings = eval.settings;
  settings.erase("base");
  settings.erase("candidate");
  return settings;
}

void add_eval(ResultFile& result, const CardSettings& settings, const EvalOutcome& outcome) {
  ResultFile eval = eval_result(settings.eval, outcome);
  for (Figure& figure : eval.figures) result.figures.push_back(std::move(figure));
  for (std::string& note : eval.notes) result.notes.push_back(std::move(note));
  for (auto& [key, value] : eval.details) result.details[key] = std::move(value);
  result.settings["quality"] = quality_json(eval);
}

}  // namespace

ResultFile card_result(const CardSettings& settings, const CardOutcome& outcome) {
  ResultFile result = begin_result(
      fmt::format("jewel report: {}, BF16 (A, base) against FP8 (B, candidate)", name_of(settings)));
  ResultFile bench = result_file(outcome.bench);
  result.settings = {{"source", name_of(settings)},
                     {"quantization",
                      {{"scheme", outcome.scheme},
                       {"linears", outcome.quantized.plan.n_quantized},
                       {"convert_s", outcome.quantized.convert_s}}},
                     {"speed", std::move(bench.settings)}};
  result.ceilings = std::move(bench.ceilings);
  result.energy_method = bench.energy_method;
  add_sizes(result, outcome);
  for (Figure& figure : bench.figures) result.figures.push_back(std::move(figure));
  result.notes = std::move(bench.notes);
  result.details = {{"table", rows_json(card_rows(settings, outcome))},
                    {"points", std::move(bench.details["points"])}};
  if (outcome.eval) add_eval(result, settings, *outcome.eval);
  return result;
}

std::string card_page(const CardSettings& settings, const CardOutcome& outcome, const ResultFile& result) {
  HtmlPage page("BF16 against FP8: " + name_of(settings), quantized_text(outcome));
  if (outcome.eval && outcome.eval->recovery)
    page.verdict(outcome.passes(), verdict_of(*outcome.eval->recovery, settings.eval.recovery.gate));
  if (outcome.bench.failed() > 0)
    page.verdict(false,
                 fmt::format("{} requests failed; the figures are of the others", outcome.bench.failed()));
  const std::vector<CardRow> rows = card_rows(settings, outcome);
  page.section("Expected performance");
  std::vector<TableRow> table;
  table.reserve(rows.size());
  for (const CardRow& row : rows) table.push_back({row.metric, row.bf16, row.fp8, row.change});
  page.table({{""}, {"BF16", true}, {"FP8", true}, {"change"}}, table);
  page.paragraph(fmt::format("Speed: {}.", speed_text(outcome)));
  page.paragraph(fmt::format("Joules: {}.", joules_text(outcome.bench)));
  page.paragraph(fmt::format("Quality: {}.", quality_text(settings, outcome)));
  if (outcome.eval) add_to_page(page, *outcome.eval, settings.eval.recovery.gate);
  add_to_page(page, outcome.bench);
  page.method(result);
  page.section("All figures");
  page.figures(result);
  return page.text();
}

std::string card_text(const CardSettings& settings, const CardOutcome& outcome, const ResultFile& result) {
  std::string out = markdown(card_rows(settings, outcome));
  out += fmt::format("\nMeasured on {} with Jewel {} on {}.\n", result.machine, result.version, result.date);
  out += fmt::format("\n- FP8: {}.\n- Speed: {}.\n- Joules: {}.\n- Quality: {}.\n", quantized_text(outcome),
                     speed_text(outcome), joules_text(outcome.bench), quality_text(settings, outcome));
  if (outcome.eval && outcome.eval->recovery) {
    out += fmt::format("- Gate: {}: {}.\n", outcome.passes() ? "passed" : "failed",
                       verdict_of(*outcome.eval->recovery, settings.eval.recovery.gate));
  }
  for (const std::string& note : outcome.bench.notes) out += fmt::format("- Note: {}.\n", note);
  return out;
}

}  // namespace jewel

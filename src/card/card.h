// A model card's table of expected performance, made in one go: a BF16 checkpoint is quantized, both models
// are measured against each other (A B B A, the same requests), both answer the suite, and what came of it
// stands beside each other: size, speed, joules, quality.
//
//   BF16 is A of the benchmark and the base of the evaluation, FP8 is B and the candidate.
//
// Nothing is estimated: what was not measured (no meter, no suite) says so in its row. One thread; `cancel`
// may be raised by a signal handler, and then no half result stays.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/bench.h"
#include "checkpoint/quantizer.h"
#include "eval/eval_run.h"
#include "report/html_page.h"
#include "report/result_file.h"

namespace jewel {

struct CardSettings {
  std::string source;  // directory of the BF16 checkpoint
  std::string name;    // what it is called; empty: `source`
  std::string fp8;     // directory that the FP8 checkpoint is made in; must not exist
  QuantizeOptions quantize;
  EngineOptions engine;  // of both models, in speed and quality
  BenchPlan bench;       // empty `sets`: text, and a picture where the model sees
  std::vector<std::string> sets;
  std::string meter = "auto";
  EvalSettings eval;  // suite, texts, gate, answers; its models are filled in
};

struct CardOutcome {
  QuantizeReport quantized;
  std::string scheme;  // "fp8-tensor"
  BenchResult bench;
  std::optional<EvalOutcome> eval;  // none: neither suite nor texts were given

  bool passes() const { return !eval || eval->passes(); }
};

// `what` names the work, one line; `done` of `total`, 0 of 0 for work without steps.
using CardProgress = std::function<void(const std::string& what, size_t done, size_t total)>;

Result<CardOutcome> run_card(const CardSettings& settings, const std::atomic<bool>& cancel,
                             const CardProgress& progress);

// card_rows.cc: one row of the table, in words.
struct CardRow {
  std::string metric, bf16, fp8, change;
};
std::vector<CardRow> card_rows(const CardSettings& settings, const CardOutcome& outcome);

// card_output.cc: the outcome for people and programs.

ResultFile card_result(const CardSettings& settings, const CardOutcome& outcome);
std::string card_page(const CardSettings& settings, const CardOutcome& outcome, const ResultFile& result);
// A Markdown table whose columns are aligned, and how it was measured: for a terminal and for a README alike.
std::string card_text(const CardSettings& settings, const CardOutcome& outcome, const ResultFile& result);

}  // namespace jewel

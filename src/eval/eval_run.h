// One evaluation: base and candidate answer a suite, read texts, or both; what came of it as figures, a
// table, a page.
//
// Models in process are loaded one after the other, so one must fit at a time; only divergence over the whole
// vocabulary (Logits::kFull) has both loaded, and keeps the log-probabilities of one text of each (vocabulary
// × tokens × 4 bytes).
//
// One thread; `cancel` may be raised by a signal handler.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/divergence.h"
#include "eval/recovery.h"
#include "report/html_page.h"
#include "report/result_file.h"

namespace jewel {

enum class Logits : uint8_t {
  kAuto,  // kFull when both models run in process
  kFull,
  kTop,  // the 20 best of each: a lower bound of the KL divergence
};

struct EvalSettings {
  std::string base, candidate;  // directories or URLs
  std::string suite_file;       // empty: no tasks
  std::string text_file;        // empty: no divergence
  SubjectOptions base_options, candidate_options;
  AnswerSettings answers;
  RecoverySettings recovery;
  int most_tasks = 0;         // of each category, the first ones; 0: all
  size_t piece_bytes = 1500;  // of a plain text
  Logits logits = Logits::kAuto;
};

struct EvalOutcome {
  std::string base, candidate;  // as the subjects describe themselves
  std::vector<EvalTask> tasks;
  std::vector<TaskAnswer> base_answers, candidate_answers;
  std::optional<RecoveryTable> recovery;
  std::optional<Divergence> divergence;

  bool passes() const { return !recovery || recovery->all.passes; }
};

// `what` names the work: "base answers", "candidate answers", "divergence".
using EvalProgress = std::function<void(std::string_view what, size_t done, size_t total)>;

Result<EvalOutcome> run_eval(const EvalSettings& settings, const std::atomic<bool>& cancel,
                             const EvalProgress& progress);

// Engine options that suit an evaluation: short contexts, little memory for KV pages.
EngineOptions eval_engine_options();

// eval_report.cc: the outcome for people and programs.

ResultFile eval_result(const EvalSettings& settings, const EvalOutcome& outcome);
std::string eval_page(const EvalOutcome& outcome, const ResultFile& result);
// Its parts alone, for a page that has more to say: categories, answers that miss, divergence.
void add_to_page(HtmlPage& page, const EvalOutcome& outcome, double gate);
// The table of categories and the verdict, for a terminal.
std::string eval_text(const EvalOutcome& outcome, double gate);
// One sentence: which categories did not reach the gate, or that all did.
std::string verdict_of(const RecoveryTable& table, double gate);

}  // namespace jewel

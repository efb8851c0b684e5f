#include "eval/eval_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace jewel {
namespace {

std::vector<EvalTask> first_of_each(std::vector<EvalTask> tasks, int most) {
  if (most <= 0) return tasks;
  std::map<std::string, int> taken;
  std::erase_if(tasks, [&](const EvalTask& task) { return ++taken[task.category] > most; });
  return tasks;
}

Result<void> answer_suite(const EvalSettings& settings, const std::atomic<bool>& cancel,
                          const EvalProgress& progress, EvalOutcome& outcome) {
  JEWEL_ASSIGN(std::vector<EvalTask> tasks, read_suite(settings.suite_file));
  outcome.tasks = first_of_each(std::move(tasks), settings.most_tasks);
  const auto side = [&](const std::string& source, const SubjectOptions& options, const char* what,
                        std::string& name, std::vector<TaskAnswer>& answers) -> Result<void> {
    JEWEL_ASSIGN(const auto subject, open_subject(source, options));
    name = subject->describe();
    progress(what, 0, outcome.tasks.size());
    JEWEL_ASSIGN(answers, subject->answer(outcome.tasks, settings.answers, cancel,
                                          [&](size_t done) { progress(what, done, outcome.tasks.size()); }));
    return {};
  };
  JEWEL_TRY(side(settings.base, settings.base_options, "base answers", outcome.base, outcome.base_answers));
  JEWEL_TRY(side(settings.candidate, settings.candidate_options, "candidate answers", outcome.candidate,
                 outcome.candidate_answers));
  outcome.recovery =
      recovery_of(outcome.tasks, outcome.base_answers, outcome.candidate_answers, settings.recovery);
  return {};
}

Error of_text(Error error, const std::string& id) {
  error.message = fmt::format("text {}: {}", id, error.message);
  return error;
}

Result<void> read_all_texts(const EvalSettings& settings, const std::atomic<bool>& cancel,
                            const EvalProgress& progress, EvalOutcome& outcome) {
  JEWEL_ASSIGN(const std::vector<Conversation> texts, read_texts(settings.text_file, settings.piece_bytes));
  const bool both_here = !is_server(settings.base) && !is_server(settings.candidate);
  if (settings.logits == Logits::kFull && !both_here)
    return unsupported(
        "the whole vocabulary's log-probabilities are known of models in process alone; leave --logits at "
        "auto",
        "logits");
  SubjectOptions base_options = settings.base_options, candidate_options = settings.candidate_options;
  base_options.full_logits = candidate_options.full_logits = both_here && settings.logits != Logits::kTop;
  const size_t steps = 2 * texts.size();
  size_t done = 0;
  const auto odds_of = [&](Subject& subject, const Conversation& text) -> Result<TextOdds> {
    if (cancel) return Error{ErrorCode::kCancelled, "interrupted", {}};
    auto odds = subject.odds(text);
    progress("divergence", ++done, steps);
    if (!odds.ok()) return of_text(std::move(odds).error(), text.id);
    return odds;
  };
  DivergenceSum sum;
  JEWEL_ASSIGN(auto base, open_subject(settings.base, base_options));
  outcome.base = base->describe();
  std::vector<TextOdds> kept;  // of the base, when the models are not there at the same time
  if (!base_options.full_logits) {
    for (const Conversation& text : texts) {
      JEWEL_ASSIGN(TextOdds odds, odds_of(*base, text));
      kept.push_back(std::move(odds));
    }
    base.reset();
  }
  JEWEL_ASSIGN(const auto candidate, open_subject(settings.candidate, candidate_options));
  outcome.candidate = candidate->describe();
  for (size_t i = 0; i < texts.size(); ++i) {
    TextOdds of_base;
    if (base) {
      JEWEL_ASSIGN(of_base, odds_of(*base, texts[i]));
    } else {
      of_base = std::move(kept[i]);
    }
    JEWEL_ASSIGN(const TextOdds of_candidate, odds_of(*candidate, texts[i]));
    JEWEL_TRY(sum.add(texts[i].id, of_base, of_candidate));
  }
  if (sum.tokens() == 0)
    return invalid(fmt::format("{}: no text has two tokens", settings.text_file), "text");
  outcome.divergence = sum.result(settings.recovery.resamples, settings.recovery.seed);
  return {};
}

}  // namespace

EngineOptions eval_engine_options() {
  EngineOptions options;
  options.prefix_cache_gib = 0.5;
  options.max_images = 1 << 10;
  options.max_unread_bytes = size_t{1} << 30;  // log-probabilities of a long text
  return options;
}

Result<EvalOutcome> run_eval(const EvalSettings& settings, const std::atomic<bool>& cancel,
                             const EvalProgress& progress) {
  if (settings.suite_file.empty() && settings.text_file.empty())
    return invalid("nothing to compare on: name tasks (--suite FILE.jsonl), texts (--text FILE) or both");
  EvalOutcome outcome;
  if (!settings.suite_file.empty()) JEWEL_TRY(answer_suite(settings, cancel, progress, outcome));
  if (!settings.text_file.empty()) JEWEL_TRY(read_all_texts(settings, cancel, progress, outcome));
  return outcome;
}

}  // namespace jewel

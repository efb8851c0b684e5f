// jewel eval BASE CANDIDATE: whether a candidate (a quantized model, another server) keeps what its base can.

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <filesystem>

#include "cli/commands.h"
#include "eval/eval_run.h"
#include "model/json_text.h"

namespace jewel {
namespace {

std::atomic<bool> interrupted = false;

struct EvalFlags {
  EvalSettings settings;
  std::string out;
  std::string logits = "auto";
  std::string device = "auto";
  std::string dtype = "auto";
  std::string kv_cache_dtype = "auto";
  int max_model_len = 0;
  double top_p = 0;
  int top_k = -2;
  bool json = false;
  bool quiet = false;
};

// A line on stderr that is rewritten, when stderr is a terminal.
EvalProgress progress_line(bool quiet) {
  const bool terminal = !quiet && ::isatty(STDERR_FILENO) != 0;
  return [=](std::string_view what, size_t done, size_t total) {
    if (!terminal) return;
    fmt::print(stderr, "\r\033[K{}: {} of {}{}", what, done, total, done == total ? "\r\033[K" : "");
    std::fflush(stderr);
  };
}

// Before an evaluation of an hour, not behind it.
Result<void> make_folder(const std::string& folder) {
  std::error_code trouble;
  std::filesystem::create_directories(folder, trouble);
  if (trouble || ::access(folder.c_str(), W_OK) != 0)
    return unavailable(fmt::format("--out: {} cannot be written", folder), "out");
  return {};
}

int eval(EvalFlags& flags) {
  EvalSettings& settings = flags.settings;
  if (flags.top_p > 0) settings.answers.top_p = flags.top_p;
  if (flags.top_k > -2) settings.answers.top_k = flags.top_k;
  settings.logits = flags.logits == "full"  ? Logits::kFull
                    : flags.logits == "top" ? Logits::kTop
                                            : Logits::kAuto;
  EngineOptions engine = eval_engine_options();
  engine.device = flags.device;
  engine.dtype = flags.dtype;
  engine.kv_cache_dtype = flags.kv_cache_dtype;
  engine.max_model_len = flags.max_model_len;
  settings.base_options.engine = settings.candidate_options.engine = engine;
  settings.candidate_options.api_key = settings.base_options.api_key;
  if (!flags.out.empty()) {
    if (const auto made = make_folder(flags.out); !made.ok()) return report(made.error());
  }
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });
  const auto outcome = run_eval(settings, interrupted, progress_line(flags.quiet));
  if (!outcome.ok()) return report(outcome.error());
  const ResultFile result = eval_result(settings, *outcome);
  if (!flags.out.empty()) {
    if (const auto written = write_result(result, eval_page(*outcome, result), flags.out, "eval");
        !written.ok())
      return report(written.error());
    if (!flags.quiet) fmt::print(stderr, "wrote eval.json, eval.csv and eval.html to {}\n", flags.out);
  }
  if (flags.json) {
    fmt::print("{}\n", json_line(as_json(result)));
  } else {
    fmt::print("{}", eval_text(*outcome, settings.recovery.gate));
  }
  return outcome->passes() ? kExitDone : kExitGate;
}

}  // namespace

Command add_eval_command(CLI::App& app) {
  auto flags = std::make_shared<EvalFlags>();
  EvalSettings& settings = flags->settings;
  CLI::App* command =
      app.add_subcommand("eval", "Judges a candidate against its base: recovered quality, divergence");
  command->footer(
      "BASE and CANDIDATE are model directories (run here) or URLs of OpenAI servers (http://host:8000/v1).\n"
      "Exit code 0: every category recovers the gate's share of the base's score; 3: one does not.\n"
      "docs/eval.md describes suites, metrics and figures.\n"
      "\n"
      "Examples:\n"
      "  jewel eval gemma-4-E4B-it gemma-4-E4B-it-FP8 --suite tasks.jsonl --out report\n"
      "  jewel eval http://one:8000/v1 http://two:8000/v1 --suite tasks.jsonl --gate 0.95\n"
      "  jewel eval gemma-4-E4B-it gemma-4-E4B-it-FP8 --text book.txt");
  command->add_option("BASE", settings.base, "What is to be kept: directory or URL")->required();
  command->add_option("CANDIDATE", settings.candidate, "What is judged: directory or URL")->required();
  command->add_option("--suite", settings.suite_file, "Tasks with wanted answers, JSONL")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--text", settings.text_file, "Text, or JSONL of conversations, to measure divergence on")
      ->check(CLI::ExistingFile);
  command->add_option("--gate", settings.recovery.gate, "Least recovery of every category")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--limit", settings.most_tasks, "Only the first so many tasks of each category")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--out", flags->out, "Folder for eval.json, eval.csv and eval.html");
  command->add_flag("--json", flags->json, "Print the result file instead of a table");
  command->add_flag("--quiet", flags->quiet, "Nothing on stderr but errors");
  command->add_option("--max-tokens", settings.answers.max_tokens, "Most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--temperature", settings.answers.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str();
  command->add_option("--top-p", flags->top_p, "Unset: the model's")->check(CLI::Range(0.0001, 1.0));
  command->add_option("--top-k", flags->top_k, "Unset: the model's")->check(CLI::Range(-1, 1 << 20));
  command->add_option("--seed", settings.answers.seed, "Of sampling, for every task")->capture_default_str();
  command->add_option("--concurrency", settings.answers.concurrency, "Tasks under way at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--resamples", settings.recovery.resamples, "Of the bootstrap")
      ->check(CLI::Range(100, 1000000))
      ->capture_default_str();
  command->add_option("--bootstrap-seed", settings.recovery.seed, "Of the bootstrap")->capture_default_str();
  command
      ->add_option("--logits", flags->logits,
                   "Divergence from the whole vocabulary (full; both models loaded at once) or from each "
                   "model's 20 best (top); auto: full in "
                   "process")
      ->check(CLI::IsMember({"auto", "full", "top"}))
      ->capture_default_str();
  command
      ->add_option("--piece-bytes", settings.piece_bytes, "A plain text is read in pieces of so many bytes")
      ->check(CLI::Range(16, 1 << 20))
      ->capture_default_str();
  command->add_option("--api-key", settings.base_options.api_key, "Bearer token for servers");
  command->add_option("--base-model", settings.base_options.served_model,
                      "Name on the base's server (default: the first it lists)");
  command->add_option("--candidate-model", settings.candidate_options.served_model,
                      "Name on the candidate's server");
  command->add_option("--device", flags->device, "In process: auto, cpu, cuda, cuda:1")
      ->capture_default_str();
  command->add_option("--dtype", flags->dtype, "In process: auto, bfloat16, float32 (CPU)")
      ->capture_default_str();
  command
      ->add_option("--kv-cache-dtype", flags->kv_cache_dtype,
                   "In process: auto, bfloat16, fp8, float32 (CPU)")
      ->capture_default_str();
  command->add_option("--max-model-len", flags->max_model_len, "In process: most tokens of prompt and answer")
      ->check(CLI::Range(16, 1 << 20));
  return [flags] { return eval(*flags); };
}

}  // namespace jewel

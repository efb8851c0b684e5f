// jewel report SRC: what FP8 makes of a BF16 model: size, speed, joules and quality side by side, the table
// of a model card, in one command.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "card/card.h"
#include "cli/commands.h"
#include "cli/model_directory.h"
#include "cli/output_files.h"
#include "model/json_text.h"

namespace jewel {
namespace {

std::atomic<bool> interrupted = false;

struct ReportFlags {
  CardSettings card;
  std::string revision;
  std::string scheme = "fp8-tensor";
  std::string keep;
  std::vector<int> concurrency = {1};
  bool drop_unused = false;
  bool no_ceilings = false;
  OutputFiles files;
  bool quiet = false;
};

// A folder in $TMPDIR (/tmp) that is gone with this object, however the command ends.
class TemporaryFolder {
 public:
  static Result<std::unique_ptr<TemporaryFolder>> make() {
    std::error_code trouble;
    const std::filesystem::path parent = std::filesystem::temp_directory_path(trouble);
    std::string path = (parent / "jewel-report-XXXXXX").string();
    if (trouble || ::mkdtemp(path.data()) == nullptr)
      return unavailable("no temporary folder can be made; name a place for the FP8 checkpoint (--keep DIR)");
    return std::unique_ptr<TemporaryFolder>(new TemporaryFolder(std::move(path)));
  }
  ~TemporaryFolder() {
    std::error_code trouble;
    std::filesystem::remove_all(path_, trouble);
    if (trouble) fmt::print(stderr, "jewel: {} cannot be removed: {}\n", path_, trouble.message());
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  std::string path_of(const std::string& name) const {
    return (std::filesystem::path(path_) / name).string();
  }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// A line that is rewritten on a terminal, else one line for each part of the work.
class ReportProgress {
 public:
  explicit ReportProgress(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) != 0) {}
  ~ReportProgress() {
    if (!quiet_ && terminal_) fmt::print(stderr, "\r\033[K");
  }
  ReportProgress(const ReportProgress&) = delete;
  ReportProgress& operator=(const ReportProgress&) = delete;

  void operator()(const std::string& what, size_t done, size_t total) {
    if (quiet_) return;
    if (!terminal_) {
      if (what != last_) fmt::print(stderr, "{}\n", what);
      last_ = what;
      return;
    }
    if (total == 0)
      fmt::print(stderr, "\r\033[K{}", what);
    else
      fmt::print(stderr, "\r\033[K{}: {} %", what, 100 * done / total);
    std::fflush(stderr);
  }

 private:
  bool quiet_;
  bool terminal_;
  std::string last_;
};

Result<void> write_all(const ReportFlags& flags, const CardOutcome& outcome) {
  const ResultFile result = card_result(flags.card, outcome);
  const std::string json = pretty_json(as_json(result));
  const std::string text = card_text(flags.card, outcome, result);
  fmt::print("{}", flags.files.json_to_stdout() ? json : text);
  JEWEL_TRY(write_output_file("--json", flags.files.json, json));
  JEWEL_TRY(write_output_file("--csv", flags.files.csv, as_csv(result)));
  JEWEL_TRY(write_output_file("--html", flags.files.html, card_page(flags.card, outcome, result)));
  if (!flags.keep.empty()) {  // the checkpoint's model card
    const std::string card = (std::filesystem::path(flags.keep) / "README.md").string();
    std::ofstream file(card, std::ios::app);
    file << "## Expected performance\n\n" << text;
    file.close();
    if (!file) return unavailable(fmt::format("--keep: {} cannot be written", card));
    if (!flags.quiet) fmt::print(stderr, "the FP8 checkpoint and its model card are in {}\n", flags.keep);
  }
  return {};
}

Result<CardOutcome> run(ReportFlags& flags) {
  CardSettings& card = flags.card;
  JEWEL_TRY(check_output_files(flags.files));
  card.name = card.source;
  JEWEL_ASSIGN(card.source, model_directory(card.source, flags.revision));
  std::unique_ptr<TemporaryFolder> temporary;
  if (flags.keep.empty()) {
    JEWEL_ASSIGN(temporary, TemporaryFolder::make());
    card.fp8 = temporary->path_of("fp8");
  } else {
    card.fp8 = flags.keep;
  }
  ReportProgress progress(flags.quiet);
  return run_card(card, interrupted, std::ref(progress));
}

int report_on(ReportFlags& flags) {
  CardSettings& card = flags.card;
  card.quantize.strategy = flags.scheme == "fp8-channel" ? ScaleStrategy::kChannel : ScaleStrategy::kTensor;
  card.quantize.unused = flags.drop_unused ? Unused::kDrop : Unused::kKeep;
  card.quantize.n_threads = card.engine.n_threads;
  card.bench.ceilings = !flags.no_ceilings;
  for (const int concurrency : flags.concurrency) card.bench.loads.push_back({.concurrency = concurrency});
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });
  const Result<CardOutcome> outcome = run(flags);
  if (!outcome.ok()) return report(outcome.error());
  if (const auto written = write_all(flags, *outcome); !written.ok()) return report(written.error());
  if (!outcome->passes()) return kExitGate;
  return outcome->bench.failed() > 0 ? kExitError : kExitDone;
}

void add_speed_options(CLI::App& app, ReportFlags& flags) {
  const char* group = "Speed and joules (as of jewel bench)";
  BenchPlan& bench = flags.card.bench;
  app.add_option("--set", flags.card.sets,
                 "text:IN:OUT, image:BUDGET:IN:OUT or FILE.jsonl; several by commas (text:256:128, and "
                 "image:280:64:64 where the model sees)")
      ->delimiter(',')
      ->group(group);
  app.add_option("--concurrency", flags.concurrency, "Requests at once; several by commas")
      ->delimiter(',')
      ->capture_default_str()
      ->check(CLI::Range(1, 4096))
      ->group(group);
  app.add_option("--requests", bench.requests, "Of a run; when not given: as many as fill --seconds")
      ->check(CLI::Range(1, 10'000'000))
      ->group(group);
  app.add_option("--seconds", bench.seconds, "About how long a run takes")
      ->capture_default_str()
      ->check(CLI::Range(0.01, 86400.0))
      ->group(group);
  app.add_option("--runs", bench.runs, "Of each model, in the order A B B A")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000))
      ->group(group);
  app.add_option("--seed", bench.seed, "Of what is made up")->capture_default_str()->group(group);
  app.add_flag("--no-ceilings", flags.no_ceilings, "Do not measure what the device can read and multiply")
      ->group(group);
  app.add_option("--meter", flags.card.meter, "Of joules: auto, none, nvml, rapl")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "none", "nvml", "rapl"}))
      ->group(group);
}

void add_quality_options(CLI::App& app, EvalSettings& eval) {
  const char* group = "Quality (as of jewel eval)";
  app.add_option("--suite", eval.suite_file, "Tasks with wanted answers, JSONL")
      ->check(CLI::ExistingFile)
      ->group(group);
  app.add_option("--text", eval.text_file, "Text, or JSONL of conversations, to measure divergence on")
      ->check(CLI::ExistingFile)
      ->group(group);
  app.add_option("--gate", eval.recovery.gate, "Least recovery of every category")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str()
      ->group(group);
  app.add_option("--limit", eval.most_tasks, "Only the first so many tasks of each category")
      ->check(CLI::Range(1, 1 << 20))
      ->group(group);
  app.add_option("--max-tokens", eval.answers.max_tokens, "Most tokens of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(group);
  app.add_option("--temperature", eval.answers.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0))
      ->capture_default_str()
      ->group(group);
}

void add_engine_options(CLI::App& app, EngineOptions& engine) {
  const char* group = "Both engines (as of jewel serve)";
  app.add_option("--device", engine.device, "auto, cpu, cuda, cuda:N")->capture_default_str()->group(group);
  app.add_option("--kv-cache-dtype", engine.kv_cache_dtype, "auto, bfloat16, fp8, float32 (CPU)")
      ->capture_default_str()
      ->group(group);
  app.add_option("--threads", engine.n_threads, "Of the CPU; 0: all cores")
      ->capture_default_str()
      ->check(CLI::Range(0, 1024))
      ->group(group);
  app.add_option("--max-model-len", engine.max_model_len, "Prompt and answer; 0: the model's")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20))
      ->group(group);
  app.add_option("--gpu-memory-utilization", engine.gpu_memory_utilization,
                 "Share of the card; while speed is measured both models have to fit into it")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 1.0))
      ->group(group);
}

}  // namespace

Command add_report_command(CLI::App& app) {
  auto flags = std::make_shared<ReportFlags>();
  flags->card.bench.runs = 4;
  CLI::App* command = app.add_subcommand(
      "report", "BF16 against FP8 in one command: size, speed, joules, quality, as a model card has them");
  command->footer(
      "SRC is quantized, both models are measured in turns with the same requests and answer the same "
      "tasks.\n"
      "Exit code 0: measured, and every category of the suite recovers the gate's share; 3: one does not.\n"
      "Joules need a meter; without one there are none. docs/report.md says what each row means.\n"
      "\n"
      "Examples:\n"
      "  jewel report models/jewel-demo --suite models/heldout/suite.jsonl\n"
      "  jewel report gemma-4-E4B-it --suite tasks.jsonl --text book.txt --keep gemma-4-E4B-it-FP8 --html "
      "report.html");
  command->add_option("SRC", flags->card.source, std::string("BF16 model. ") + kModelHelp)->required();
  command->add_option("--revision", flags->revision, kRevisionHelp);
  command->add_option(
      "--keep", flags->keep,
      "Directory to make for the FP8 checkpoint, with the table in its README.md; without it the "
      "checkpoint is a temporary one ($TMPDIR) that is removed at the end");
  command
      ->add_option("--scheme", flags->scheme,
                   "fp8-tensor (one scale per tensor) or fp8-channel (one per output row)")
      ->check(CLI::IsMember({"fp8-tensor", "fp8-channel"}))
      ->capture_default_str();
  command->add_flag("--drop-unused", flags->drop_unused,
                    "Leave out K and V of layers that read another layer's");
  add_output_options(*command, flags->files);
  command->add_flag("-q,--quiet", flags->quiet, "Nothing on stderr but errors");
  add_speed_options(*command, *flags);
  add_quality_options(*command, flags->card.eval);
  add_engine_options(*command, flags->card.engine);
  return [flags] { return report_on(*flags); };
}

}  // namespace jewel

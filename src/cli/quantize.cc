// jewel quantize SRC DST: a BF16 checkpoint becomes an FP8 one that Jewel, vLLM, SGLang and Transformers
// load.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>

#include "api/engine_parts.h"
#include "checkpoint/quantizer.h"
#include "checkpoint/safetensors_writer.h"
#include "cli/commands.h"
#include "cli/local_model.h"
#include "cli/model_directory.h"
#include "cli/quality.h"
#include "model/json_reader.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr size_t kWorstShown = 10;

std::atomic<bool> interrupted = false;

struct QuantizeFlags {
  std::string source;
  std::string revision;
  std::string destination;
  std::string scheme = "fp8-tensor";
  std::string ple_linears = "bf16";
  std::string kv_scales_file;
  std::string quality_file;
  std::string report_file;
  double shard_gib = 0;
  bool drop_unused = false;
  bool dry_run = false;
  bool verify = true;
  bool quiet = false;
  QuantizeOptions options;
};

// Runs conversations through the BF16 model and keeps, for each layer that owns K and V, the largest
// magnitudes.
Result<std::map<int, std::pair<float, float>>> measure_kv_scales(const std::string& model_directory,
                                                                 const std::string& file) {
  EngineOptions options = one_by_one();
  options.progress = loading_progress(model_directory);
  JEWEL_ASSIGN(EngineParts parts, open_parts(model_directory, options));
  std::map<int, std::pair<float, float>> amax;
  parts.backend->observe_stages([&](Stage stage, int layer, std::span<const float> values, int, int) {
    if (stage != Stage::kK && stage != Stage::kV) return;
    float& largest = stage == Stage::kK ? amax[layer].first : amax[layer].second;
    for (const float value : values) largest = std::max(largest, std::fabs(value));
  });
  JEWEL_ASSIGN(const auto engine, make_engine(std::move(parts), options));
  const Sampling greedy{.temperature = 0};
  JEWEL_TRY(for_each_json_line(file, [&](const json::object& line, const std::string& where) -> Result<void> {
    if (interrupted) return Error{ErrorCode::kCancelled, "interrupted; nothing was left behind", {}};
    JEWEL_ASSIGN(const ChatInput input, parse_conversation(line, where, directory_of(file)));
    const auto output = answer(*engine, input, greedy, 1, {});
    if (!output.ok()) return output.error();
    return {};
  }));
  if (amax.empty()) return invalid(fmt::format("{}: holds no conversation", file), "kv_scales");
  for (auto& [layer, largest] : amax) largest = {fp8_scale(largest.first), fp8_scale(largest.second)};
  return amax;
}

QuantizeProgress progress_line() {
  const auto start = std::make_shared<std::chrono::steady_clock::time_point>();
  const auto phase = std::make_shared<std::string>();
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  return [=](std::string_view what, size_t done, size_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (*phase != what) *phase = what, *start = now;
    if (!terminal) return;
    const double elapsed = std::chrono::duration<double>(now - *start).count();
    const double rate = static_cast<double>(done) / std::max(elapsed, 1e-9);
    const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
    const int filled =
        static_cast<int>(30.0 * static_cast<double>(done) / static_cast<double>(std::max<size_t>(total, 1)));
    fmt::print(stderr, "\r\033[K{} [{:<30}] {} of {}, {}/s, {:.0f} s left{}", what,
               std::string(static_cast<size_t>(filled), '#'), human_bytes(static_cast<double>(done)),
               human_bytes(static_cast<double>(total)), human_bytes(rate), left,
               done == total ? "\r\033[K" : "");
    std::fflush(stderr);
  };
}

json::object report_as_json(const QuantizeFlags& flags, const QuantizeReport& report) {
  json::array tensors;
  for (const QuantizedTensor& tensor : report.verified) {
    const Fp8Error& error = tensor.error;
    const double sqnr = error.sqnr_db();
    tensors.push_back(
        json::object{{"name", tensor.name},
                     {"sqnr_db", std::isfinite(sqnr) ? json::value(sqnr) : json::value(nullptr)},
                     {"max_error", error.max_error},
                     {"clipped", error.clipped},
                     {"saturated_channels", error.saturated_rows},
                     {"zero_channels", error.zero_rows}});
  }
  return {{"what", "jewel quantize"},
          {"version", JEWEL_VERSION},
          {"settings",
           {{"scheme", flags.scheme},
            {"ple_linears", flags.ple_linears},
            {"drop_unused", flags.drop_unused},
            {"kv_scales", !flags.options.kv_scales.empty()}}},
          {"figures",
           {{"quantized_linears", report.plan.n_quantized},
            {"source_bytes", report.source_file_bytes},
            {"result_bytes", report.result_file_bytes},
            {"convert_s", report.convert_s},
            {"verify_s", report.verify_s}}},
          {"tensors", std::move(tensors)}};
}

std::string worst_table(const QuantizeReport& report) {
  std::string text = fmt::format(
      "| tensor | SQNR, dB | largest error | clipped | saturated channels | zero channels "
      "|\n|---|---|---|---|---|---|\n");
  for (size_t i = 0; i < std::min(kWorstShown, report.verified.size()); ++i) {
    const Fp8Error& e = report.verified[i].error;
    text += fmt::format("| {} | {:.2f} | {:.3g} | {} | {} | {} |\n", report.verified[i].name, e.sqnr_db(),
                        e.max_error, e.clipped, e.saturated_rows, e.zero_rows);
  }
  return text;
}

// README.md of the result: what was done and what it cost, from this run's figures.
std::string model_card(const QuantizeFlags& flags, const QuantizeReport& report,
                       const std::optional<QualityTable>& quality) {
  std::string card =
      fp8_card_head(flags.options, report.plan) +
      fmt::format("| | BF16 | FP8 |\n|---|---|---|\n| size of the weights on disk | {} | {} |\n\n",
                  human_bytes(static_cast<double>(report.source_file_bytes)),
                  human_bytes(static_cast<double>(report.result_file_bytes)));
  if (!flags.options.kv_scales.empty()) {
    card += fmt::format(
        "The KV cache has FP8 scales of its own in {} layers, measured on calibration conversations.\n\n",
        flags.options.kv_scales.size());
  }
  if (quality) {
    card += fmt::format(
        "## Answers\n\nGreedy answers that are exactly the wanted ones, on {} tasks of `{}`, run by Jewel on "
        "a CPU:\n\n"
        "| | n | BF16 | FP8 |\n|---|---|---|---|\n",
        quality->all.n, std::filesystem::path(flags.quality_file).filename().string());
    const auto row = [&](const QualityRow& r) {
      const auto percent = [&](int right) { return 100.0 * right / std::max(r.n, 1); };
      card += fmt::format("| {} | {} | {:.1f} % | {:.1f} % |\n", r.category, r.n, percent(r.right_source),
                          percent(r.right_result));
    };
    for (const QualityRow& r : quality->rows) row(r);
    row(quality->all);
    card += fmt::format("\nFP8 keeps {:.1f} % of BF16's right answers.\n\n", 100 * quality->recovery());
  }
  if (!report.verified.empty()) {
    card += fmt::format(
                "## What quantizing lost\n\nThe result was read again and compared with the source. The {} "
                "tensors that lost most:\n\n",
                std::min(kWorstShown, report.verified.size())) +
            worst_table(report);
  }
  return card;
}

void print_plan(const QuantizePlan& plan) {
  for (const PlannedTensor& tensor : plan.tensors) {
    const char* action = tensor.action == TensorAction::kQuantize ? "fp8"
                         : tensor.action == TensorAction::kCopy   ? "copy"
                                                                  : "drop";
    fmt::print("{:<5}{}\n", action, tensor.name);
  }
}

void print_sizes(const QuantizePlan& plan) {
  fmt::print(stderr, "{} decoder linears to FP8; tensors {} ({} bytes) -> {} ({} bytes), {:+.1f} %\n",
             plan.n_quantized, human_bytes(static_cast<double>(plan.source_bytes)), plan.source_bytes,
             human_bytes(static_cast<double>(plan.result_bytes)), plan.result_bytes,
             100.0 * (static_cast<double>(plan.result_bytes) / static_cast<double>(plan.source_bytes) - 1));
}

void print_report(const QuantizeReport& report) {
  print_sizes(report.plan);
  const auto rate = [&](double seconds) {
    return human_bytes(static_cast<double>(report.plan.source_bytes) / std::max(seconds, 1e-9));
  };
  fmt::print(stderr, "converted in {:.1f} s ({}/s of source)", report.convert_s, rate(report.convert_s));
  if (report.verified.empty()) {
    fmt::print(stderr, "; not verified\n");
    return;
  }
  fmt::print(stderr, ", verified in {:.1f} s ({}/s)\n", report.verify_s, rate(report.verify_s));
  fmt::print(stderr, "the worst of {}:\n{:<58}{:>9}{:>12}{:>9}{:>11}{:>7}\n", report.verified.size(),
             "tensor", "SQNR dB", "max error", "clipped", "saturated", "zero");
  for (size_t i = 0; i < std::min(kWorstShown, report.verified.size()); ++i) {
    const Fp8Error& e = report.verified[i].error;
    fmt::print(stderr, "{:<58}{:>9.2f}{:>12.3g}{:>9}{:>11}{:>7}\n", report.verified[i].name, e.sqnr_db(),
               e.max_error, e.clipped, e.saturated_rows, e.zero_rows);
  }
}

int quantize(QuantizeFlags flags) {
  auto found = model_directory(flags.source, flags.revision);
  if (!found.ok()) return report(found.error());
  flags.source = *std::move(found);
  QuantizeOptions& options = flags.options;
  options.strategy = flags.scheme == "fp8-channel" ? ScaleStrategy::kChannel : ScaleStrategy::kTensor;
  options.ple_linears = flags.ple_linears == "fp8" ? PleLinears::kFp8 : PleLinears::kBf16;
  options.unused = flags.drop_unused ? Unused::kDrop : Unused::kKeep;
  options.shard_bytes = static_cast<size_t>(flags.shard_gib * static_cast<double>(size_t{1} << 30));
  if (flags.dry_run) {
    const auto plan = plan_quantize(flags.source, options);
    if (!plan.ok()) return report(plan.error());
    print_plan(*plan);
    print_sizes(*plan);
    return kExitDone;
  }
  std::signal(SIGINT, [](int) { interrupted = true; });
  std::signal(SIGTERM, [](int) { interrupted = true; });
  if (!flags.kv_scales_file.empty()) {
    auto scales = measure_kv_scales(flags.source, flags.kv_scales_file);
    if (!scales.ok()) return report(scales.error());
    options.kv_scales = *std::move(scales);
  }
  std::optional<QualityTable> quality;
  const auto card = [&](const QuantizeReport& done, const std::string& built) -> Result<std::string> {
    if (!flags.quality_file.empty()) {
      JEWEL_ASSIGN(quality, compare_answers(flags.source, built, flags.quality_file, interrupted));
    }
    return model_card(flags, done, quality);
  };
  const auto result = quantize_checkpoint(flags.source, flags.destination, options, flags.verify, interrupted,
                                          progress_line(), card);
  if (!result.ok()) return report(result.error());
  if (!flags.report_file.empty()) {
    if (auto written = write_file(flags.report_file, pretty_json(report_as_json(flags, *result)));
        !written.ok())
      return report(written.error());
  }
  if (!flags.quiet) {
    print_report(*result);
    if (quality) {
      fmt::print(stderr, "right answers on {} tasks: BF16 {}, FP8 {} ({:.1f} % kept)\n", quality->all.n,
                 quality->all.right_source, quality->all.right_result, 100 * quality->recovery());
    }
  }
  return kExitDone;
}

}  // namespace

Command add_quantize_command(CLI::App& app) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command =
      app.add_subcommand("quantize", "Makes an FP8 checkpoint (compressed-tensors) from a BF16 one");
  command->footer(
      "DST is complete or absent at every moment; SRC is only read. It loads in Jewel, vLLM, SGLang and "
      "Transformers.\n"
      "\n"
      "Examples:\n"
      "  jewel quantize gemma-4-E4B-it gemma-4-E4B-it-FP8\n"
      "  jewel quantize gemma-4-E4B-it out --scheme fp8-channel --drop-unused --report report.json\n"
      "  jewel quantize gemma-4-E4B-it out --dry-run");
  command->add_option("SRC", flags->source, std::string("BF16 model. ") + kModelHelp)->required();
  command->add_option("--revision", flags->revision, kRevisionHelp);
  command->add_option("DST", flags->destination, "Directory to make; must not exist")->required();
  command
      ->add_option("--scheme", flags->scheme,
                   "fp8-tensor (one scale per tensor) or fp8-channel (one per output row)")
      ->check(CLI::IsMember({"fp8-tensor", "fp8-channel"}))
      ->capture_default_str();
  command
      ->add_option("--ignore", flags->options.ignore,
                   "Leave modules whose name matches this regular expression in BF16; repeatable")
      ->allow_extra_args(false);
  command
      ->add_option("--ple-linears", flags->ple_linears,
                   "Per-layer input linears: bf16 or fp8 (costs quality)")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  command->add_flag("--drop-unused", flags->drop_unused,
                    "Leave out K and V of layers that read another layer's");
  command
      ->add_option("--kv-scales", flags->kv_scales_file,
                   "JSONL of calibration conversations ({\"messages\", \"images\", \"tools\"}): measures "
                   "scales for an FP8 KV cache")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--quality", flags->quality_file,
                   "JSONL of tasks (conversations with \"answer\"): answers of SRC and DST are compared in "
                   "the model card")
      ->check(CLI::ExistingFile);
  command->add_option("--shard-size", flags->shard_gib, "GiB per file (default: one file)")
      ->check(CLI::PositiveNumber);
  command->add_option("--threads", flags->options.n_threads, "Threads (default: one per usable core)")
      ->check(CLI::Range(1, 1024));
  command->add_option("--report", flags->report_file, "Write figures of every tensor to this JSON file");
  command->add_flag("--dry-run", flags->dry_run,
                    "Print what would happen to each tensor, and the sizes; write nothing");
  command->add_flag("--verify,!--no-verify", flags->verify,
                    "Read the result again and compare it with the source (on unless --no-verify)");
  command->add_flag("--quiet", flags->quiet, "No report on stderr");
  return [flags] { return quantize(*flags); };
}

}  // namespace jewel

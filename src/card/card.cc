#include "card/card.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <utility>

namespace jewel {
namespace {

Error interrupted() {
  return {ErrorCode::kCancelled, "interrupted", {}};
}

// The quantizer makes room only for what it writes; without any it would fail after minutes.
Result<void> check_room(const QuantizePlan& plan, const std::string& fp8) {
  std::filesystem::path folder = std::filesystem::absolute(fp8).parent_path();
  std::error_code trouble;
  const std::filesystem::space_info space = std::filesystem::space(folder, trouble);
  if (trouble || space.available >= plan.result_bytes) return {};
  return unavailable(
      fmt::format(
          "{}: the FP8 checkpoint takes {:.1f} GB and {:.1f} GB are free; name another place (--keep DIR, or "
          "TMPDIR in the environment)",
          folder.string(), static_cast<double>(plan.result_bytes) * 1e-9,
          static_cast<double>(space.available) * 1e-9),
      "keep");
}

class CardRun {
 public:
  CardRun(const CardSettings& settings, const std::atomic<bool>& cancel, const CardProgress& progress)
      : settings_(settings), cancel_(cancel), progress_(progress) {}

  Result<CardOutcome> run() {
    JEWEL_TRY(check_sources());
    JEWEL_TRY(quantize());
    JEWEL_TRY(measure());
    JEWEL_TRY(judge());
    return std::move(outcome_);
  }

 private:
  // Before minutes of work: whatever is wrong with a file that is read late.
  Result<void> check_sources() const {
    for (const std::string& set : settings_.sets) JEWEL_TRY(RequestSet::parse(set, {}));
    if (!settings_.eval.suite_file.empty()) JEWEL_TRY(read_suite(settings_.eval.suite_file));
    if (!settings_.eval.text_file.empty())
      JEWEL_TRY(read_texts(settings_.eval.text_file, settings_.eval.piece_bytes));
    JEWEL_ASSIGN(const QuantizePlan plan, plan_quantize(settings_.source, settings_.quantize));
    return check_room(plan, settings_.fp8);
  }

  Result<void> quantize() {
    outcome_.scheme = settings_.quantize.strategy == ScaleStrategy::kChannel ? "fp8-channel" : "fp8-tensor";
    const auto card = [&](const QuantizeReport& done, const std::string&) -> Result<std::string> {
      return fp8_card_head(settings_.quantize, done.plan);
    };
    JEWEL_ASSIGN(outcome_.quantized, quantize_checkpoint(
                                         settings_.source, settings_.fp8, settings_.quantize, true, cancel_,
                                         [&](std::string_view what, size_t done, size_t total) {
                                           progress_(std::string(what), done, total);
                                         },
                                         card));
    return {};
  }

  Result<std::unique_ptr<Target>> open(const std::string& directory, const std::string& name,
                                       double memory_share) const {
    EngineOptions engine = settings_.engine;
    engine.max_waiting = 1 << 20;
    engine.gpu_memory_utilization *= memory_share;
    for (const Load& load : settings_.bench.loads)
      engine.max_num_seqs = std::max(engine.max_num_seqs, load.concurrency);
    return make_local_target(directory, engine, name);
  }

  Result<void> measure() {
    if (cancel_) return interrupted();
    progress_("loading both models", 0, 0);
    std::vector<std::unique_ptr<Target>> targets(2);
    JEWEL_ASSIGN(targets[0], open(settings_.source, "BF16", kMemoryOfTwo[0]));
    JEWEL_ASSIGN(targets[1], open(settings_.fp8, "FP8", kMemoryOfTwo[1]));
    const TargetInfo& info = targets.front()->info();
    BenchPlan plan = settings_.bench;
    plan.cancel = &cancel_;
    std::vector<std::string> sets = settings_.sets;
    if (sets.empty())
      sets = info.has_images ? std::vector<std::string>{"text:256:128", "image:280:64:64"}
                             : std::vector<std::string>{"text:256:128"};
    for (const std::string& text : sets) {
      JEWEL_ASSIGN(RequestSet set, RequestSet::parse(text, {.seed = plan.seed}));
      plan.sets.push_back(std::move(set));
    }
    FoundCounter counter = find_counter({.which = settings_.meter, .on_gpu = info.where.starts_with("cuda")});
    JEWEL_ASSIGN(outcome_.bench, run_bench(targets, std::move(plan), std::move(counter),
                                           [&](const std::string& what, int ended, int requests) {
                                             progress_(what, static_cast<size_t>(ended),
                                                       static_cast<size_t>(requests));
                                           }));
    return {};
  }

  Result<void> judge() {
    if (cancel_) return interrupted();
    EvalSettings eval = settings_.eval;
    if (eval.suite_file.empty() && eval.text_file.empty()) return {};
    eval.base = settings_.source;
    eval.candidate = settings_.fp8;
    EngineOptions engine = eval_engine_options();
    engine.device = settings_.engine.device;
    engine.kv_cache_dtype = settings_.engine.kv_cache_dtype;
    engine.max_model_len = settings_.engine.max_model_len;
    engine.n_threads = settings_.engine.n_threads;
    engine.gpu_memory_utilization = settings_.engine.gpu_memory_utilization;
    eval.base_options.engine = eval.candidate_options.engine = engine;
    JEWEL_ASSIGN(EvalOutcome judged,
                 run_eval(eval, cancel_, [&](std::string_view what, size_t done, size_t total) {
                   progress_(std::string(what), done, total);
                 }));
    judged.base = shown(judged.base, settings_.source, "BF16");
    judged.candidate = shown(judged.candidate, settings_.fp8, "FP8");
    outcome_.eval = std::move(judged);
    return {};
  }

  // A subject's description without its directory, which may be one that is gone when this is read.
  static std::string shown(const std::string& text, const std::string& directory, const std::string& name) {
    return text.starts_with(directory) ? name + text.substr(directory.size()) : text;
  }

  const CardSettings& settings_;
  const std::atomic<bool>& cancel_;
  const CardProgress& progress_;
  CardOutcome outcome_;
};

}  // namespace

Result<CardOutcome> run_card(const CardSettings& settings, const std::atomic<bool>& cancel,
                             const CardProgress& progress) {
  return CardRun(settings, cancel, progress).run();
}

}  // namespace jewel

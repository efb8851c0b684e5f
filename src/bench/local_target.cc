#include <fmt/format.h>

#include <future>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/create.h"
#include "bench/cpu_rates.h"
#include "bench/model_work.h"
#include "bench/target.h"
#include "checkpoint/checkpoint.h"
#include "server/openai/asked.h"

namespace jewel {
namespace {

using Clock = ChatAnswer::Clock;

// An answer as a client would have put it together, but from tokens: a piece is an update with at least one.
class Collected {
 public:
  explicit Collected(Clock::time_point begun) { answer_.begun = begun; }

  // True with the last update.
  bool take(Update&& update, Clock::time_point now) {
    tokens_ += update.tokens.size();
    if (!update.tokens.empty()) answer_.pieces.push_back(now);
    for (const OutputPiece& piece : update.pieces) {
      if (piece.kind == OutputPiece::Kind::kContent) answer_.content += piece.text;
      if (piece.kind == OutputPiece::Kind::kReasoning) answer_.reasoning += piece.text;
      if (piece.kind == OutputPiece::Kind::kCallStart) answer_.tool_calls.push_back({"", piece.text, ""});
      if (piece.kind == OutputPiece::Kind::kCallEnd) answer_.tool_calls.back().arguments = piece.text;
    }
    if (!update.finish) return false;
    answer_.ended = now;
    finish_ = std::move(*update.finish);
    return true;
  }

  Result<ChatAnswer> result() {
    if (finish_.error) return *finish_.error;
    const Usage& usage = finish_.usage;
    if (static_cast<size_t>(usage.completion_tokens) != tokens_) {
      return internal(fmt::format("the engine's usage says {} tokens, its updates had {}",
                                  usage.completion_tokens, tokens_));
    }
    answer_.finish_reason = name_of(finish_.reason);
    answer_.usage = ServerUsage{.prompt_tokens = usage.prompt_tokens,
                                .completion_tokens = usage.completion_tokens,
                                .cached_tokens = usage.cached_tokens,
                                .image_tokens = usage.image_tokens,
                                .reasoning_tokens = usage.reasoning_tokens,
                                .energy = energy()};
    return std::move(answer_);
  }

 private:
  std::optional<ServerEnergy> energy() const {
    if (!finish_.energy) return std::nullopt;
    const Energy& own = *finish_.energy;
    return ServerEnergy{.method = own.method,
                        .joules = own.joules,
                        .image_joules = own.image_joules,
                        .prefill_joules = own.prefill_joules,
                        .decode_joules = own.decode_joules,
                        .reasoning_joules = own.reasoning_joules,
                        .idle_share_joules = own.idle_share_joules};
  }

  ChatAnswer answer_;
  size_t tokens_ = 0;
  Finish finish_;
};

class LocalTarget final : public Target {
 public:
  LocalTarget(std::unique_ptr<Engine> engine, TargetInfo info, EngineOptions options, bool prompts_in_fp8)
      : engine_(std::move(engine)),
        info_(std::move(info)),
        options_(std::move(options)),
        prompts_in_fp8_(prompts_in_fp8) {}

  const TargetInfo& info() const override { return info_; }

  Result<void> add(const boost::json::object& body) override {
    JEWEL_ASSIGN(Asked asked, read_chat(body, defaults_));
    if (asked.requests.size() != 1)
      return unsupported(fmt::format("n: found {}, expected 1 in a benchmark", asked.requests.size()), "n");
    requests_.push_back(std::move(asked.requests.front()));
    return {};
  }
  void clear() override { requests_.clear(); }

  void start(size_t number, OnEnd on_end) override {
    const auto collected = std::make_shared<Collected>(Clock::now());
    auto shared_end = std::make_shared<OnEnd>(std::move(on_end));
    const auto ticket = engine_->submit(requests_[number], [collected, shared_end](Update&& update) {
      if (collected->take(std::move(update), Clock::now())) (*shared_end)(collected->result());
    });
    if (!ticket.ok()) (*shared_end)(ticket.error());
  }

  Rates measure_rates() override {
    const auto bytes = static_cast<size_t>(info_.work.decode_bytes);
    if (info_.where.starts_with("cpu")) return measure_cpu_rates(options_.n_threads, bytes);
    const auto gpu = measure_gpu_rates(options_.device, bytes);
    if (!gpu) return {};
    return {.bytes_per_s = gpu->bytes_per_s,
            .flop_per_s = gpu->bf16_flop_per_s,
            .prompt_flop_per_s = prompts_in_fp8_ ? gpu->fp8_flop_per_s : 0,
            .how = gpu->how};
  }

 private:
  const AskDefaults defaults_{.model_names = {"bench"}};
  std::vector<Request> requests_;
  std::unique_ptr<Engine> engine_;
  TargetInfo info_;
  EngineOptions options_;
  bool prompts_in_fp8_;
};

}  // namespace

Result<std::unique_ptr<Target>> make_local_target(const std::string& directory, const EngineOptions& options,
                                                  const std::string& name) {
  JEWEL_ASSIGN(const auto checkpoint, Checkpoint::open(directory));  // the names and sizes alone
  JEWEL_ASSIGN(auto engine, Engine::load(directory, options));
  const ModelInfo& model = engine->info();
  TargetInfo info{.name = name.empty() ? directory : name,
                  .served = directory,
                  .where = model.backend,
                  .in_process = true,
                  .has_images = model.has_vision,
                  .work = work_of(*checkpoint, {.head_fp8 = options.lm_head_dtype == "fp8",
                                                .per_layer_table = !model.backend.starts_with("cpu")}),
                  .settings = {{"backend", model.backend},
                               {"dtype", model.dtype},
                               {"kv_cache_dtype", model.kv_cache_dtype},
                               {"max_num_seqs", model.max_num_seqs},
                               {"max_num_batched_tokens", options.max_num_batched_tokens},
                               {"max_model_len", model.max_model_len},
                               {"prefix_caching", options.prefix_caching}}};
  if (options.lm_head_dtype != "auto") info.settings["lm_head_dtype"] = options.lm_head_dtype;
  if (options.prefill_activations != "auto")
    info.settings["prefill_activations"] = options.prefill_activations;
  const bool asks_for_fp8 = checkpoint->quantization() && checkpoint->quantization()->dynamic_activations;
  const bool prompts_in_fp8 =
      options.prefill_activations == "fp8" || (options.prefill_activations == "auto" && asks_for_fp8);
  return std::unique_ptr<Target>(
      new LocalTarget(std::move(engine), std::move(info), options, prompts_in_fp8));
}

Result<ChatAnswer> ask(Target& target, const boost::json::object& body) {
  target.clear();
  JEWEL_TRY(target.add(body));
  // Shared: we may be gone before set_value() has returned.
  const auto promise = std::make_shared<std::promise<Result<ChatAnswer>>>();
  auto answer = promise->get_future();
  target.start(0, [promise](Result<ChatAnswer> result) { promise->set_value(std::move(result)); });
  Result<ChatAnswer> result = answer.get();
  target.clear();
  return result;
}

}  // namespace jewel

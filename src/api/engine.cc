// Engine: the public class over preparer, engine loop and live requests (include/jewel/engine.h).
#include "jewel/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <limits>
#include <mutex>
#include <utility>

#include "api/engine_parts.h"
#include "api/live_request.h"
#include "api/prepare.h"
#include "api/worker_pool.h"
#include "engine/engine_loop.h"
#include "engine/kv_plan.h"

namespace jewel {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

}  // namespace

class Engine::Impl {
 public:
  static Result<std::unique_ptr<Impl>> make(EngineParts parts, const EngineOptions& options);
  ~Impl();

  Result<std::shared_ptr<LiveRequest>> submit(Request request, UpdateCallback on_update);
  Result<PromptInfo> prompt_of(const Request& request) { return preparer_->prompt_of(request); }
  const PromptBuilder& prompts() const { return *parts_.prompts; }
  const ModelInfo& info() const { return info_; }
  Stats stats() const;
  std::optional<EnergyStats> energy_stats() const;
  bool drain(std::chrono::milliseconds limit);
  void set_load_s(double seconds) { load_s_ = seconds; }

 private:
  Impl(EngineParts parts, const EngineOptions& options) : parts_(std::move(parts)), options_(options) {}
  void describe(int max_model_len, const KvSizes& kv);
  void prepare_and_start(const Request& request, const std::shared_ptr<LiveRequest>& live);
  void on_end(const Finish& finish);

  EngineParts parts_;
  EngineOptions options_;
  ModelInfo info_;
  double load_s_ = 0;
  std::unique_ptr<Preparer> preparer_;
  std::unique_ptr<EnergyMeter> meter_;  // nullptr: none
  std::unique_ptr<EngineLoop> loop_;
  std::shared_ptr<EngineLink> link_;

  mutable std::mutex mutex_;
  std::condition_variable idle_;
  bool closing_ = false;   // no more requests
  bool stopping_ = false;  // nor preparing of those that are here
  int under_way_ = 0;
  int preparing_ = 0;
  Stats totals_;  // finished, cancelled, failed, cached_prompt_tokens

  // Last, so that their threads end first.
  std::unique_ptr<WorkerPool> output_;
  std::unique_ptr<WorkerPool> workers_;
};

Result<std::unique_ptr<Engine::Impl>> Engine::Impl::make(EngineParts parts, const EngineOptions& options) {
  std::unique_ptr<Impl> impl(new Impl(std::move(parts), options));
  EngineParts& own = impl->parts_;
  const BackendInfo& backend = own.backend->info();
  const int model_limit = own.config.text.max_position_embeddings;
  if (options.max_model_len < 0 || options.max_model_len > model_limit) {
    return invalid(fmt::format("--max-model-len: found {}, expected 1 to {}, the model's own",
                               options.max_model_len, model_limit),
                   "max_model_len");
  }
  const int max_num_seqs = options.max_num_seqs > 0 ? options.max_num_seqs : backend.max_slots;
  const auto memory =
      options.kv_cache_gib > 0 ? static_cast<size_t>(options.kv_cache_gib * kGiB) : own.kv_memory_bytes;
  KvBudget budget{
      .memory_bytes = memory,
      .prefix_cache_bytes = options.prefix_caching ? static_cast<size_t>(options.prefix_cache_gib * kGiB) : 0,
      .max_num_seqs = max_num_seqs,
      .max_model_len = options.max_model_len,
      .max_num_batched_tokens = options.max_num_batched_tokens};
  JEWEL_ASSIGN(const KvPlan plan, plan_kv(budget, backend, own.config.text));
  SchedulerOptions scheduler;
  scheduler.kv = plan.sizes;
  scheduler.max_model_len = plan.max_model_len;
  scheduler.max_num_seqs = max_num_seqs;
  scheduler.max_num_batched_tokens = options.max_num_batched_tokens;
  // submit() counts what is under way. The loop would count as waiting what it has not yet taken up, and
  // refuse some of a burst that was accepted though there is room.
  scheduler.max_waiting = std::numeric_limits<int>::max();
  scheduler.one_ahead = own.one_ahead;
  scheduler.prefix_cache = options.prefix_caching;
  scheduler.exact_prefix = options.exact_prefix;
  if (own.energy.counter != nullptr)
    impl->meter_ = std::make_unique<EnergyMeter>(std::move(own.energy.counter), own.meter_options);
  scheduler.watch = impl->meter_.get();
  impl->preparer_ = std::make_unique<Preparer>(own, options, plan.max_model_len);
  JEWEL_ASSIGN(impl->loop_, EngineLoop::start(*own.backend, own.config, scheduler, own.idle_release_s));
  impl->link_ = std::make_shared<EngineLink>(impl->loop_.get());
  impl->output_ = std::make_unique<WorkerPool>(1);
  impl->workers_ = std::make_unique<WorkerPool>(std::max(options.n_workers, 1));
  const int wanted = options.max_model_len > 0 ? options.max_model_len : model_limit;
  if (plan.max_model_len < wanted) {
    own.notes.push_back(
        fmt::format("memory for KV pages allows {} tokens per request, not {}", plan.max_model_len, wanted));
  }
  impl->describe(plan.max_model_len, plan.sizes);
  if (options.prepare_grammars)
    impl->workers_->post([self = impl.get()] { self->preparer_->prepare_grammars(); });
  return impl;
}

void Engine::Impl::describe(int max_model_len, const KvSizes& kv) {
  const BackendInfo& backend = parts_.backend->info();
  const SamplingParams sampling = default_sampling(parts_.config, parts_.generation);
  info_ = {.directory = parts_.directory,
           .backend = backend.name,
           .dtype = std::string(dtype_name(backend.activation_dtype)),
           .kv_cache_dtype = std::string(dtype_name(backend.kv_dtype)),
           .max_model_len = max_model_len,
           .vocab_size = parts_.config.text.vocab_size,
           .max_num_seqs = options_.max_num_seqs > 0 ? options_.max_num_seqs : backend.max_slots,
           .has_vision = parts_.config.vision.has_value(),
           .has_chat_template = parts_.prompts->has_template(),
           .max_soft_tokens = parts_.processor.max_soft_tokens,
           .max_logprobs = std::min(backend.max_logprobs, parts_.config.text.vocab_size),
           .page_tokens = kPageTokens,
           .n_full_pages = kv.n_full_pages,
           .n_sliding_pages = kv.n_sliding_pages,
           .max_new_tokens = parts_.generation.max_new_tokens,
           .stop_token_ids = parts_.stop_token_ids,
           .why_no_energy = parts_.energy.why,
           .notes = parts_.notes};
  if (meter_ != nullptr) {
    info_.energy_method = meter_->method();
    info_.energy_device = meter_->device();
  }
  info_.default_sampling.temperature = sampling.temperature;
  info_.default_sampling.top_k = sampling.top_k;
  info_.default_sampling.top_p = sampling.top_p;
  info_.default_sampling.min_p = sampling.min_p;
  info_.default_sampling.repetition_penalty = sampling.repetition_penalty;
}

// Preparing ends first, then the engine, then what turns its last events into Updates; readers that are left
// find their request ended.
Engine::Impl::~Impl() {
  {
    const std::scoped_lock lock(mutex_);
    closing_ = stopping_ = true;
  }
  if (workers_) workers_->stop();
  if (loop_) loop_->shutdown(Shutdown::kNow);
  if (meter_) meter_->stop_waiting();
  if (link_) link_->cut();
  if (output_) output_->stop();
}

Result<std::shared_ptr<LiveRequest>> Engine::Impl::submit(Request request, UpdateCallback on_update) {
  JEWEL_TRY(preparer_->check(request));
  {
    const std::scoped_lock lock(mutex_);
    if (closing_) return unavailable("the engine is shutting down; send the request to another");
    if (under_way_ >= options_.max_waiting + info_.max_num_seqs) {
      return unavailable(fmt::format("{} requests are under way, the limit is {}; try again later",
                                     under_way_, options_.max_waiting + info_.max_num_seqs));
    }
    ++under_way_;
    ++preparing_;
  }
  auto live = std::make_shared<LiveRequest>(
      LiveRequest::Wiring{.tokenizer = &parts_.prompts->tokenizer(),
                          .special = &parts_.prompts->special(),
                          .output = output_.get(),
                          .engine = link_,
                          .meter = meter_.get(),
                          .max_unread_bytes = options_.max_unread_bytes,
                          .load_s = load_s_,
                          .on_update = std::move(on_update),
                          .on_end = [this](const Finish& finish) { on_end(finish); }});
  workers_->post([this, live, shared = std::make_shared<const Request>(std::move(request))] {
    prepare_and_start(*shared, live);
    const std::scoped_lock lock(mutex_);
    --preparing_;
  });
  return live;
}

void Engine::Impl::prepare_and_start(const Request& request, const std::shared_ptr<LiveRequest>& live) {
  const Error gone{ErrorCode::kCancelled, "the request was cancelled before it began", {}};
  const auto given_up = [&] {
    const std::scoped_lock lock(mutex_);
    return stopping_ || live->cancelled();
  };
  if (given_up()) return live->fail(gone);
  auto prepared = preparer_->prepare(request);
  if (!prepared.ok()) return live->fail(std::move(prepared).error());
  if (given_up()) return live->fail(gone);
  live->begin(std::move(prepared->format));
  auto id = loop_->submit(std::move(prepared->sequence), live);
  if (!id.ok()) return live->fail(std::move(id).error());
  live->started(*id);
}

void Engine::Impl::on_end(const Finish& finish) {
  const std::scoped_lock lock(mutex_);
  --under_way_;
  ++totals_.finished;
  if (finish.reason == EndReason::kCancelled) ++totals_.cancelled;
  if (finish.reason == EndReason::kError) ++totals_.failed;
  totals_.cached_prompt_tokens += static_cast<uint64_t>(finish.usage.cached_tokens);
  if (under_way_ == 0) idle_.notify_all();
}

std::optional<EnergyStats> Engine::Impl::energy_stats() const {
  if (meter_ == nullptr) return std::nullopt;
  const EnergyMeter::Totals totals = meter_->totals();
  const EnergyTotals& joules = totals.joules;
  return EnergyStats{.image_joules = joules.image_joules,
                     .prefill_joules = joules.prefill_joules,
                     .decode_joules = joules.decode_joules,
                     .idle_joules = joules.idle_joules,
                     .unattributed_joules = joules.unattributed_joules,
                     .counter_joules = joules.counter_joules,
                     .residual_joules = joules.residual_joules,
                     .watts = joules.watts,
                     .tick_s = totals.tick_s};
}

Stats Engine::Impl::stats() const {
  const EngineStats loop = loop_->stats();
  const SchedulerStats& engine = loop.scheduler;
  const std::optional<EnergyStats> energy = energy_stats();
  const std::scoped_lock lock(mutex_);
  Stats stats = totals_;
  stats.energy = energy;
  stats.under_way = under_way_;
  stats.running = engine.running;
  stats.waiting = engine.waiting;
  stats.preparing = preparing_;
  stats.kv_usage =
      engine.full_pages.all > 0 ? static_cast<double>(engine.full_pages.held) / engine.full_pages.all : 0;
  stats.prompt_tokens = engine.prompt_tokens;
  stats.generated_tokens = engine.tokens_generated;
  stats.prefix_queries = engine.prefix_queries;
  stats.prefix_hits = engine.prefix_hits;
  stats.image_queries = engine.image_queries;
  stats.image_hits = engine.image_hits;
  stats.preemptions = engine.preemptions;
  stats.steps = engine.steps;
  stats.steps_failed_in_a_row = engine.steps_failed_in_a_row;
  stats.idle_released = loop.idle.released;
  stats.idle_releases = loop.idle.releases;
  stats.idle_released_s = loop.idle.released_s;
  stats.idle_wakes = loop.idle.wakes;
  stats.idle_wake_s = loop.idle.wake_s;
  stats.idle_wakes_failed = loop.idle.wakes_failed;
  stats.idle_wakes_failed_in_a_row = loop.idle.wakes_failed_in_a_row;
  return stats;
}

bool Engine::Impl::drain(std::chrono::milliseconds limit) {
  std::unique_lock lock(mutex_);
  closing_ = true;
  return idle_.wait_for(lock, limit, [this] { return under_way_ == 0; });
}

// ---- the public classes

struct Stream::State {
  std::shared_ptr<LiveRequest> request;
};

Stream::Stream(std::shared_ptr<State> state) : state_(std::move(state)) {}
Stream::Stream(Stream&&) noexcept = default;

Stream& Stream::operator=(Stream&& other) noexcept {
  if (this != &other) {
    if (state_) state_->request->cancel();
    state_ = std::move(other.state_);
  }
  return *this;
}

Stream::~Stream() {
  if (state_) state_->request->cancel();
}

std::optional<Update> Stream::next() {
  return state_->request->next(std::nullopt);
}

std::optional<Update> Stream::next_for(std::chrono::milliseconds limit) {
  return state_->request->next(limit);
}

void Stream::cancel() {
  state_->request->cancel();
}

Ticket::Ticket() = default;
Ticket::Ticket(std::weak_ptr<void> request) : request_(std::move(request)) {}

void Ticket::cancel() const {
  if (const auto request = std::static_pointer_cast<LiveRequest>(request_.lock())) request->cancel();
}

struct EngineAccess {
  static std::unique_ptr<Engine> wrap(std::unique_ptr<Engine::Impl> impl) {
    return std::unique_ptr<Engine>(new Engine(std::move(impl)));
  }
  static void set_load_s(Engine& engine, double seconds) { engine.impl_->set_load_s(seconds); }
  static Result<std::unique_ptr<Engine>> make(EngineParts parts, const EngineOptions& options) {
    JEWEL_ASSIGN(auto impl, Engine::Impl::make(std::move(parts), options));
    return wrap(std::move(impl));
  }
};

Result<std::unique_ptr<Engine>> make_engine(EngineParts parts, const EngineOptions& options) {
  return EngineAccess::make(std::move(parts), options);
}

Result<std::unique_ptr<Engine>> Engine::load(const std::string& directory, const EngineOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  JEWEL_ASSIGN(EngineParts parts, open_parts(directory, options));
  JEWEL_ASSIGN(auto engine, make_engine(std::move(parts), options));
  EngineAccess::set_load_s(*engine,
                           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return engine;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<Stream> Engine::submit(Request request) {
  JEWEL_ASSIGN(auto live, impl_->submit(std::move(request), {}));
  return Stream(std::make_shared<Stream::State>(Stream::State{std::move(live)}));
}

Result<Ticket> Engine::submit(Request request, UpdateCallback on_update) {
  JEWEL_CHECK(on_update, "a callback must be callable");
  JEWEL_ASSIGN(auto live, impl_->submit(std::move(request), std::move(on_update)));
  return Ticket(std::weak_ptr<void>(live));
}

Result<PromptInfo> Engine::prompt_of(const Request& request) const {
  return impl_->prompt_of(request);
}

Result<std::vector<int32_t>> Engine::tokenize(std::string_view text, bool parse_special) const {
  return impl_->prompts().tokenizer().encode(text,
                                             parse_special ? SpecialTokens::kParse : SpecialTokens::kAsText);
}

Result<std::string> Engine::detokenize(std::span<const int32_t> ids) const {
  return impl_->prompts().tokenizer().decode(ids);
}

const ModelInfo& Engine::info() const {
  return impl_->info();
}

Stats Engine::stats() const {
  return impl_->stats();
}

bool Engine::drain(std::chrono::milliseconds limit) {
  return impl_->drain(limit);
}

}  // namespace jewel

#include "engine/scheduler.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/prefix_keys.h"
#include "engine/scheduler_impl.h"

namespace jewel {
namespace {

constexpr int kMaxPriority = 1'000'000;

Result<void> check_ids(std::span<const TokenId> ids, int vocab_size, const char* name) {
  for (const TokenId id : ids) {
    if (id >= 0 && id < vocab_size) continue;
    return invalid(
        fmt::format("{}: token id {} is outside the model's vocabulary of {}", name, id, vocab_size), name);
  }
  return {};
}

Result<void> check_images(const SequenceRequest& request) {
  int end = 0;
  for (const PromptImage& image : request.images) {
    if (image.count < 1 || image.position < end ||
        image.position > static_cast<int>(request.prompt.size()) - image.count) {
      return invalid(
          fmt::format("images: soft tokens at {} + {}, expected inside the prompt's {} tokens, in order",
                      image.position, image.count, request.prompt.size()),
          "images");
    }
    if (image.patches == nullptr) return invalid("images: an image without patches", "images");
    end = image.position + image.count;
  }
  return {};
}

Result<void> check_options(const SchedulerOptions& options, const BackendInfo& info) {
  if (options.max_num_seqs < 1 || options.max_num_seqs > info.max_slots) {
    return invalid(fmt::format("max_num_seqs: found {}, expected 1 to {}, the backend's slots",
                               options.max_num_seqs, info.max_slots),
                   "max_num_seqs");
  }
  if (options.max_num_batched_tokens < 1) {
    return invalid(
        fmt::format("max_num_batched_tokens: found {}, expected at least 1", options.max_num_batched_tokens),
        "max_num_batched_tokens");
  }
  if (options.max_model_len < 1) {
    return invalid(fmt::format("max_model_len: found {}, expected at least 1", options.max_model_len),
                   "max_model_len");
  }
  return {};
}

}  // namespace

Scheduler::Impl::Impl(Backend& backend, const ModelConfig& config, SchedulerOptions options)
    : backend_(backend),
      config_(config),
      options_(std::move(options)),
      window_(config.text.sliding_window),
      full_(options_.kv.n_full_pages),
      sliding_(options_.kv.n_sliding_pages),
      cache_(full_, sliding_, window_),
      features_(backend, options_.feature_cache_rows) {
  for (SlotId slot = options_.max_num_seqs - 1; slot >= 0; --slot) free_slots_.push_back(slot);
}

Scheduler::Impl::~Impl() {
  cancel_all(FinishReason::kCancelled);
  while (in_flight() > 0) collect();
  cache_.clear();
}

EngineTime Scheduler::Impl::clock() const {
  if (options_.now) return options_.now();
  return std::chrono::duration_cast<EngineTime>(std::chrono::steady_clock::now().time_since_epoch());
}

Result<void> Scheduler::Impl::check(const SequenceRequest& request) const {
  const int vocab_size = config_.text.vocab_size;
  if (request.prompt.empty()) return invalid("the prompt has no tokens", "prompt");
  if (request.max_tokens < 1) {
    return invalid(fmt::format("max_tokens: found {}, expected at least 1", request.max_tokens),
                   "max_tokens");
  }
  JEWEL_TRY(check_ids(request.prompt, vocab_size, "prompt"));
  JEWEL_TRY(check_ids(request.stop_token_ids, vocab_size, "stop_token_ids"));
  const size_t total = request.prompt.size() + static_cast<size_t>(request.max_tokens);
  if (total > static_cast<size_t>(options_.max_model_len)) {
    return too_large(
        fmt::format(
            "the prompt has {} tokens and {} are asked for, {} in all, but the limit is {}; shorten the "
            "prompt or lower max_tokens",
            request.prompt.size(), request.max_tokens, total, options_.max_model_len),
        "max_tokens");
  }
  // Alone, with steps as short as they have to be, it must fit. (+1: a step's page while the page behind the
  // window is still in use.)
  const KvSizes needed = SequencePages::needed(static_cast<int>(total), kPageTokens, window_);
  if (needed.n_full_pages > full_.n_pages() || needed.n_sliding_pages > sliding_.n_pages()) {
    return too_large(
        fmt::format("{} tokens need {} full and {} sliding KV pages, but there are {} and {}; shorten "
                    "the prompt or lower max_tokens, or give the KV cache more memory",
                    total, needed.n_full_pages, needed.n_sliding_pages, full_.n_pages(), sliding_.n_pages()),
        "max_tokens");
  }
  JEWEL_TRY(check_images(request));
  if (request.n_prompt_logprobs >= 0 && backend_.info().max_step_tokens < 2) {
    return unsupported("prompt_logprobs: steps of one token cannot tell a successor; allow at least 2",
                       "prompt_logprobs");
  }
  if (request.thinking_budget) {
    const ThinkingBudget& budget = *request.thinking_budget;
    if (budget.max_tokens < 0 || budget.forced.empty()) {
      return invalid(
          fmt::format("thinking budget: found {} tokens and {} ids to end with, expected at least 0 and 1",
                      budget.max_tokens, budget.forced.size()),
          "thinking_budget");
    }
    const std::array<TokenId, 2> ends = {budget.start, budget.end};
    JEWEL_TRY(check_ids(ends, vocab_size, "thinking_budget"));
    JEWEL_TRY(check_ids(budget.forced, vocab_size, "thinking_budget"));
  }
  if (!request.page_keys.empty()) {
    JEWEL_CHECK(request.page_keys.size() == request.prompt.size() / kPageTokens, "{} keys for {} tokens",
                request.page_keys.size(), request.prompt.size());
  }
  return {};
}

Result<SequenceId> Scheduler::Impl::add(SequenceRequest request, std::shared_ptr<SequenceSink> sink) {
  JEWEL_TRY(check(request));
  if (static_cast<int>(waiting_.size()) >= options_.max_waiting) {
    return unavailable(fmt::format("{} requests are waiting already, the limit is {}; try again later",
                                   waiting_.size(), options_.max_waiting));
  }
  if (request.id == 0) {
    while (live_.contains(next_id_)) ++next_id_;
    request.id = next_id_++;
  }
  JEWEL_CHECK(!live_.contains(request.id), "sequence {} is live already", request.id);
  const SequenceId id = request.id;
  std::unique_ptr<Sequence>& place = live_[id];
  place = std::make_unique<Sequence>(std::move(request), std::move(sink), full_, sliding_, window_);
  Sequence& sequence = *place;
  SequenceRequest& r = sequence.request;
  sequence.use_cache = options_.prefix_cache && r.use_prefix_cache;
  if (!sequence.use_cache) {
    r.page_keys.clear();
  } else if (r.page_keys.empty()) {
    r.page_keys = prefix_keys(r.cache_salt, r.prompt, r.images);
  }
  if (r.min_tokens > 0) {
    r.sampling.not_before = r.stop_token_ids;
    r.sampling.not_before_position = sequence.n_prompt() + r.min_tokens;
  }
  if (r.thinking_budget) sequence.thinking.emplace(*r.thinking_budget, config_.text.vocab_size);
  if (r.repetition_guard) sequence.repetition.emplace(*r.repetition_guard);
  sequence.in_thought = r.thought.inside;
  sequence.features.resize(r.images.size());
  sequence.stats.prompt_tokens = sequence.n_prompt();
  for (const PromptImage& image : r.images) sequence.stats.image_tokens += image.count;

  now_ = clock();
  sequence.added_at = now_;
  sequence.arrival = next_arrival_++;
  sequence.order = now_ + std::clamp(r.priority, -kMaxPriority, kMaxPriority) * options_.priority_step;
  if (r.deadline && (!next_deadline_ || *r.deadline < *next_deadline_)) next_deadline_ = r.deadline;
  waiting_.insert(&sequence);
  return id;
}

void Scheduler::Impl::cancel(SequenceId id, FinishReason reason) {
  const auto it = live_.find(id);
  if (it == live_.end() || it->second->state == Sequence::State::kEnding) return;
  finish(*it->second, reason);
}

void Scheduler::Impl::cancel_all(FinishReason reason, const std::optional<Error>& error) {
  std::vector<Sequence*> all;
  for (const auto& [id, sequence] : live_) {
    if (sequence->state != Sequence::State::kEnding) all.push_back(sequence.get());
  }
  std::ranges::sort(all, {}, &Sequence::arrival);
  for (Sequence* sequence : all) finish(*sequence, reason, -1, error);
}

void Scheduler::Impl::expire() {
  if (!next_deadline_ || now_ < *next_deadline_) return;
  next_deadline_.reset();
  std::vector<Sequence*> late;
  for (const auto& [id, sequence] : live_) {
    const std::optional<EngineTime>& deadline = sequence->request.deadline;
    if (!deadline || sequence->state == Sequence::State::kEnding) continue;
    if (*deadline <= now_) {
      late.push_back(sequence.get());
    } else if (!next_deadline_ || *deadline < *next_deadline_) {
      next_deadline_ = deadline;
    }
  }
  std::ranges::sort(late, {}, &Sequence::arrival);
  for (Sequence* sequence : late) finish(*sequence, FinishReason::kDeadline);
}

void Scheduler::Impl::leave_line(Sequence& sequence) {
  if (sequence.state == Sequence::State::kWaiting) waiting_.erase(&sequence);
  if (sequence.state == Sequence::State::kRunning) {
    const auto at = std::ranges::lower_bound(running_, &sequence, BeforeInLine());
    JEWEL_CHECK(at != running_.end() && *at == &sequence, "sequence {} is not in its place",
                sequence.request.id);
    running_.erase(at);
    std::erase(prefilling_, &sequence);
  }
}

// The end as the sink sees it. What the sequence holds goes back at once, or when no step in flight names it.
void Scheduler::Impl::finish(Sequence& sequence, FinishReason reason, TokenId stop_token,
                             std::optional<Error> error) {
  leave_line(sequence);
  sequence.state = Sequence::State::kEnding;
  SequenceStats& stats = sequence.stats;
  stats.output_tokens = static_cast<int>(sequence.output.size());
  if (!sequence.admitted) stats.queue = now_ - sequence.added_at;
  if (sequence.admitted && sequence.output.empty()) stats.prefill = now_ - sequence.admitted_at;
  stats.decode = sequence.last_token_at - sequence.first_token_at;
  stats.rows_in_flight = sequence.n_in_flight;
  ++stats_.requests_finished[static_cast<size_t>(reason)];
  ++n_releases_;
  sequence.sink->on_finished({.sequence = sequence.request.id,
                              .reason = reason,
                              .stop_token = stop_token,
                              .error = std::move(error),
                              .stats = stats});
  if (sequence.n_in_flight == 0) release(sequence);
}

void Scheduler::Impl::release(Sequence& sequence) {
  keep_answer(sequence);
  give_up_resources(sequence);
  live_.erase(SequenceId(sequence.request.id));
}

// Pages, features and slot; host memory stays.
void Scheduler::Impl::give_up_resources(Sequence& sequence) {
  sequence.pages.release_all();
  cache_.let_go(sequence.path);
  for (FeatureCache::Entry*& entry : sequence.features) {
    if (entry != nullptr) features_.let_go(entry);
    entry = nullptr;
  }
  if (sequence.slot >= 0) {
    backend_.end_sequence(sequence.slot);
    free_slots_.push_back(sequence.slot);
    sequence.slot = -1;
  }
  if (sequence.state == Sequence::State::kEnding && sequence.swapped) {
    swapped_bytes_ -= sequence.swapped->bytes();
    sequence.swapped.reset();
  }
  ++n_releases_;
}

StepReport Scheduler::Impl::step() {
  JEWEL_CHECK(!saved_, "a step while the device is given back");
  report_ = {};
  now_ = clock();
  const size_t live_before = live_.size();
  expire();
  // A plan that wants the results of the step in flight gets them, and a plan that preempted is made again.
  for (int attempt = 0; attempt < 4 && !report_.submitted; ++attempt) {
    admit();
    if (plan() == Plan::kReady) {
      submit();
    } else if (in_flight() > 0) {
      collect();
    } else if (attempt > 0 || live_.empty()) {
      break;
    }
  }
  if (in_flight() > (options_.one_ahead ? 1 : 0)) collect();

  const bool progress = report_.submitted || report_.collected || live_.size() < live_before || live_.empty();
  turns_without_progress_ = progress ? 0 : turns_without_progress_ + 1;
  JEWEL_CHECK(turns_without_progress_ < 4,
              "{} running and {} waiting sequences, but no step can be made of them", running_.size(),
              waiting_.size());
#ifdef NDEBUG
  if (options_.check_books) check_books();
#else
  check_books();
#endif
  return report_;
}

const SchedulerStats& Scheduler::Impl::stats() {
  stats_.running = static_cast<int>(running_.size());
  stats_.waiting = static_cast<int>(waiting_.size());
  const auto counts = [](const PagePool& pool) {
    return PoolCounts{
        .all = pool.n_pages(), .free = pool.n_free(), .held = pool.n_held(), .cached = pool.n_cached()};
  };
  stats_.full_pages = counts(full_);
  stats_.sliding_pages = counts(sliding_);
  stats_.cached_features = features_.n_entries();
  stats_.steps = n_submitted_steps_;
  return stats_;
}

void Scheduler::Impl::clear_cache() {
  cache_.clear();
  features_.clear();
  if (saved_) saved_.emplace();
}

void Scheduler::Impl::check_books() const {
  std::vector<int> full(static_cast<size_t>(full_.n_pages())),
      sliding(static_cast<size_t>(sliding_.n_pages()));
  size_t slots = 0, swapped = 0;
  for (const auto& [id, sequence] : live_) {
    for (const PageId page : sequence->pages.full()) ++full.at(static_cast<size_t>(page));
    for (const PageId page : sequence->pages.sliding()) {
      if (page != kNoPage) ++sliding.at(static_cast<size_t>(page));
    }
    slots += sequence->slot >= 0 ? 1 : 0;
    if (sequence->swapped) swapped += sequence->swapped->bytes();
    const bool holds = sequence->slot >= 0 || !sequence->pages.full().empty() || !sequence->path.empty();
    JEWEL_CHECK(sequence->state != Sequence::State::kWaiting || !holds,
                "sequence {} waits but holds something", id);
  }
  const auto check_pool = [](const PagePool& pool, const std::vector<int>& holders, const char* name) {
    int n_held = 0, n_cached = 0;
    for (PageId page = 0; page < pool.n_pages(); ++page) {
      const int counted = holders[static_cast<size_t>(page)];
      JEWEL_CHECK(pool.n_holders(page) == counted, "{} page {}: {} holders, but {} sequences have it", name,
                  page, pool.n_holders(page), counted);
      n_held += counted > 0 ? 1 : 0;
      n_cached += counted == 0 && pool.kept(page) ? 1 : 0;
    }
    JEWEL_CHECK(pool.n_held() == n_held && pool.n_cached() == n_cached,
                "{} pages: {} held and {} cached, counted {} and {}", name, pool.n_held(), pool.n_cached(),
                n_held, n_cached);
    JEWEL_CHECK(pool.n_free() + n_held + n_cached == pool.n_pages(),
                "{} pages: {} free + {} held + {} cached of {}", name, pool.n_free(), n_held, n_cached,
                pool.n_pages());
  };
  check_pool(full_, full, "full");
  check_pool(sliding_, sliding, "sliding");
  cache_.check_books();
  JEWEL_CHECK(slots + free_slots_.size() == static_cast<size_t>(options_.max_num_seqs),
              "{} slots in use, {} free", slots, free_slots_.size());
  JEWEL_CHECK(swapped == swapped_bytes_, "{} bytes are swapped out, counted {}", swapped_bytes_, swapped);
}

Result<std::unique_ptr<Scheduler>> Scheduler::make(Backend& backend, const ModelConfig& config,
                                                   SchedulerOptions options) {
  const BackendInfo& info = backend.info();
  if (options.max_num_seqs == 0) options.max_num_seqs = info.max_slots;
  if (options.max_model_len == 0) options.max_model_len = config.text.max_position_embeddings;
  options.max_num_batched_tokens = std::min(options.max_num_batched_tokens, info.max_step_tokens);
  JEWEL_TRY(check_options(options, info));
  JEWEL_TRY(backend.allocate_kv(options.kv));
  return std::unique_ptr<Scheduler>(
      new Scheduler(std::make_unique<Impl>(backend, config, std::move(options))));
}

Scheduler::Scheduler(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Scheduler::~Scheduler() = default;
Result<void> Scheduler::check(const SequenceRequest& request) const {
  return impl_->check(request);
}
Result<SequenceId> Scheduler::add(SequenceRequest request, std::shared_ptr<SequenceSink> sink) {
  return impl_->add(std::move(request), std::move(sink));
}
void Scheduler::cancel(SequenceId id, FinishReason reason) {
  impl_->cancel(id, reason);
}
void Scheduler::cancel_all(FinishReason reason) {
  impl_->cancel_all(reason);
}
void Scheduler::fail_all(const Error& error) {
  impl_->cancel_all(FinishReason::kError, error);
}
StepReport Scheduler::step() {
  return impl_->step();
}
bool Scheduler::has_work() const {
  return impl_->has_work();
}
std::optional<EngineTime> Scheduler::next_deadline() const {
  return impl_->next_deadline();
}
const SchedulerStats& Scheduler::stats() const {
  return impl_->stats();
}
const SchedulerOptions& Scheduler::options() const {
  return impl_->options();
}
void Scheduler::check_books() const {
  impl_->check_books();
}
void Scheduler::clear_cache() {
  impl_->clear_cache();
}
ReleaseReport Scheduler::release_device() {
  return impl_->release_device();
}
Result<void> Scheduler::restore_device() {
  return impl_->restore_device();
}
bool Scheduler::device_released() const {
  return impl_->device_released();
}

}  // namespace jewel

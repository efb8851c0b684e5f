// What a step brought: tokens to their sinks, pages to the prefix cache, sliding pages back.
#include <algorithm>

#include "engine/prefix_keys.h"
#include "engine/scheduler_impl.h"

namespace jewel {

void Scheduler::Impl::collect() {
  Step& step = steps_[static_cast<size_t>(n_collected_steps_ % 2)];
  Result<StepResult> result = backend_.collect();
  now_ = clock();
  report_.collected = true;
  if (options_.watch != nullptr) tell_watch(step, result.ok() ? &*result : nullptr);
  if (!result.ok()) {
    collect_failed(step, result.error());
    return;
  }
  ++n_collected_steps_;
  stats_.steps_failed_in_a_row = 0;
  size_t n_sampled = 0, n_logprobs = 0;
  for (const Row& row : step.rows) {
    SampledToken* sampled = nullptr;
    PromptLogprobs* logprobs = nullptr;
    if (row.sample) {
      JEWEL_CHECK(n_sampled < result->sampled.size(), "the backend sampled {} tokens, more were asked for",
                  result->sampled.size());
      sampled = &result->sampled[n_sampled++];
    }
    if (row.prompt_logprobs) {
      JEWEL_CHECK(n_logprobs < result->prompt_logprobs.size(),
                  "the backend gave log-probabilities of {} chunks", result->prompt_logprobs.size());
      logprobs = &result->prompt_logprobs[n_logprobs++];
    }
    collect_row(row, sampled, logprobs);
  }
}

// Before any token is handed on: who hears of an end may ask at once what it cost.
void Scheduler::Impl::tell_watch(const Step& step, const StepResult* result) {
  row_work_.clear();
  size_t n_sampled = 0;
  for (const Row& row : step.rows) {
    Sequence& sequence = *row.sequence;
    const ThoughtMarks& marks = sequence.request.thought;
    RowWork& work = row_work_.emplace_back(RowWork{.sequence = sequence.request.id,
                                                   .image_patches = row.image_patches,
                                                   .reasoning = sequence.in_thought});
    const bool prefill = row.begin < sequence.n_prompt();
    (prefill ? work.prefill_tokens : work.decode_tokens) = row.end - row.begin;
    if (!row.sample || result == nullptr) continue;
    const TokenId id = result->sampled.at(n_sampled++).id;
    const bool goes_on = sequence.in_thought && id != marks.close && id != marks.call_open;
    sequence.in_thought = goes_on || id == marks.open;
    work.reasoning = work.reasoning || sequence.in_thought;
  }
  options_.watch->step_done(row_work_);
}

void Scheduler::Impl::collect_failed(Step& step, const Error& error) {
  features_.distrust();
  ++n_collected_steps_;
  ++stats_.steps_failed_in_a_row;
  for (const Row& row : step.rows) {
    Sequence& sequence = *row.sequence;
    --sequence.n_in_flight;
    sequence.lost = true;
    if (sequence.state != Sequence::State::kEnding) {
      finish(sequence, FinishReason::kError, -1, error);
    } else if (sequence.n_in_flight == 0) {
      release(sequence);
    }
  }
}

void Scheduler::Impl::collect_row(const Row& row, SampledToken* sampled, PromptLogprobs* logprobs) {
  Sequence& sequence = *row.sequence;
  --sequence.n_in_flight;
  if (!sequence.lost) sequence.n_collected = row.end;
  if (sequence.state == Sequence::State::kEnding) {
    // Its sink has heard the end; a token beyond is dropped.
    if (sequence.n_in_flight == 0) release(sequence);
    return;
  }
  const bool prefill = row.begin < sequence.n_prompt();
  if (logprobs != nullptr) take_prompt_logprobs(sequence, row, *logprobs);
  if (prefill) {
    for (size_t& i = sequence.first_image; i < sequence.features.size(); ++i) {
      const PromptImage& image = sequence.request.images[i];
      // With log-probabilities the next chunk begins one position before.
      const int passed = sequence.n_collected - (sequence.wants_prompt_logprobs() ? 1 : 0);
      if (image.position + image.count > passed) break;
      if (sequence.features[i] != nullptr) features_.let_go(sequence.features[i]);
      sequence.features[i] = nullptr;
    }
    pass_points(sequence);
  }
  if (!sequence.wants_prompt_logprobs()) {
    sequence.pages.release_behind(sequence.n_collected);
  } else {
    sequence.pages.release_behind(sequence.n_collected - 1);
  }
  if (sampled == nullptr) return;
  --sequence.n_sampling;
  take_token(sequence, *sampled);
}

void Scheduler::Impl::take_prompt_logprobs(Sequence& sequence, const Row& row, PromptLogprobs& logprobs) {
  PromptLogprobs& all = sequence.prompt_logprobs;
  if (!all.top.empty()) all.top.pop_back();  // this chunk repeats the row
  std::ranges::move(logprobs.token, std::back_inserter(all.token));
  std::ranges::move(logprobs.top, std::back_inserter(all.top));
  if (row.end < sequence.n_prompt()) return;
  sequence.prompt_logprobs_done = true;
  sequence.sink->on_prompt_logprobs(sequence.request.id, std::move(all));
  all = {};
}

void Scheduler::Impl::take_token(Sequence& sequence, SampledToken& token) {
  const SequenceRequest& request = sequence.request;
  sequence.output.push_back(token.id);
  sequence.last_token_at = now_;
  if (sequence.output.size() == 1) {
    sequence.first_token_at = now_;
    sequence.stats.prefill = now_ - sequence.admitted_at;
  }
  ++stats_.tokens_generated;
  ++report_.tokens_delivered;
  if (sequence.thinking) sequence.thinking->push(token.id);
  const bool loops = sequence.repetition && sequence.repetition->push(sequence.output);
  Result<void> accepted = request.mask != nullptr ? request.mask->accept(token.id) : Result<void>();
  const Continue go_on = sequence.sink->on_token(
      {.sequence = request.id, .token = token, .index = static_cast<int>(sequence.output.size()) - 1});

  if (std::ranges::find(request.stop_token_ids, token.id) != request.stop_token_ids.end()) {
    finish(sequence, FinishReason::kStop, token.id);
  } else if (go_on == Continue::kNo) {
    finish(sequence, FinishReason::kStop);
  } else if (!accepted.ok()) {
    finish(sequence, FinishReason::kError, -1, std::move(accepted).error());
  } else if (static_cast<int>(sequence.output.size()) >= request.max_tokens) {
    finish(sequence, FinishReason::kLength);
  } else if (loops) {
    finish(sequence, FinishReason::kRepetition);
  }
}

// The first `n_pages` pages become part of the prefix cache, as far as their keys are known.
void Scheduler::Impl::register_pages(Sequence& sequence, int n_pages) {
  const std::vector<Digest>& keys = sequence.request.page_keys;
  const size_t limit = std::min(static_cast<size_t>(std::max(0, n_pages)), keys.size());
  if (sequence.path.size() < limit)
    cache_.prefetch(std::span(keys).first(limit).subspan(sequence.path.size()));
  while (sequence.path.size() < limit) {
    const size_t i = sequence.path.size();
    cache_.extend(sequence.path, keys[i], sequence.pages.full()[i]);
  }
}

// A prompt's chunk is done: its pages can be shared, and where a later request may resume the window is kept.
// Pages of a prompt whose log-probabilities are asked for are written again at the seams of its chunks, so
// they are shared when all is done.
void Scheduler::Impl::pass_points(Sequence& sequence) {
  if (!sequence.use_cache || sequence.wants_prompt_logprobs()) return;
  const int n_pages = std::min(sequence.n_collected, sequence.n_prompt()) / kPageTokens;
  register_pages(sequence, n_pages);
  while (!sequence.points.empty() && sequence.points.front().n_pages <= n_pages) {
    const Sequence::Point point = sequence.points.front();
    sequence.points.erase(sequence.points.begin());
    cache_.checkpoint(sequence.path, point.n_pages, sequence.pages, point.kind, sequence.return_distance);
  }
}

// The sequence is about to give its pages back: the cache keeps them up to here, so that the next turn can
// go on from the answer's end.
void Scheduler::Impl::keep_answer(Sequence& sequence) {
  if (!sequence.use_cache || sequence.pages.full().empty() || sequence.wants_prompt_logprobs()) return;
  const SequenceRequest& request = sequence.request;
  int n_tokens = std::min(sequence.n_collected, sequence.n_known());
  if (options_.exact_prefix) n_tokens = std::min(n_tokens, sequence.n_prompt());
  const int n_pages = n_tokens / kPageTokens;
  std::vector<Digest>& keys = sequence.request.page_keys;
  std::vector<TokenId> tokens;
  while (static_cast<int>(keys.size()) < n_pages) {
    const auto begin = static_cast<int>(keys.size()) * kPageTokens;
    tokens.clear();
    for (int i = begin; i < begin + kPageTokens; ++i) {
      const bool in_prompt = i < sequence.n_prompt();
      const auto at = static_cast<size_t>(in_prompt ? i : i - sequence.n_prompt());
      tokens.push_back(in_prompt ? request.prompt[at] : sequence.output[at]);
    }
    keys.push_back(page_key(keys.empty() ? prefix_root(request.cache_salt) : keys.back(), tokens,
                            request.images, begin));
  }
  register_pages(sequence, n_pages);
  const bool kept = cache_.checkpoint(sequence.path, n_pages, sequence.pages, PrefixCache::Kind::kEnd,
                                      sequence.return_distance);
  if (kept && n_pages > sequence.hit_pages) cache_.supersede(sequence.path, sequence.hit_pages);
}

}  // namespace jewel

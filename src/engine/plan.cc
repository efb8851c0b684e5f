// Planning: which rows the next step has, on which pages.
#include <algorithm>

#include "engine/scheduler_impl.h"

namespace jewel {
namespace {

constexpr size_t kAhead = 4;  // sequences whose memory is asked for before their turn

}  // namespace

Scheduler::Impl::Plan Scheduler::Impl::plan() {
  Step& step = steps_[static_cast<size_t>(parity())];
  step.rows.clear();
  step.chunks.clear();
  step.runs.clear();
  int budget = options_.max_num_batched_tokens;
  // Planning a row may end its sequence, or preempt the last ones: then running_[i] is another, or none.
  const auto plan_rows = [&](auto&& plan_row) {
    for (size_t i = 0; i < running_.size() && budget > 0;) {
      if (i + kAhead < running_.size()) running_[i + kAhead]->prefetch();
      const Outcome outcome = plan_row(*running_[i]);
      if (outcome == Outcome::kShort) return false;
      if (outcome == Outcome::kGood) ++i;
    }
    return true;
  };
  const bool decoded = plan_rows([&](Sequence& sequence) {
    if (sequence.prefilling()) return Outcome::kGood;
    const Outcome outcome = plan_decode(sequence, step);
    budget = options_.max_num_batched_tokens - static_cast<int>(step.rows.size());
    return outcome;
  });
  if (!decoded) return Plan::kShort;
  const bool prefilled = plan_rows([&](Sequence& sequence) {
    if (!sequence.prefilling()) return Outcome::kGood;
    const Outcome outcome = plan_prefill(sequence, step, budget);
    budget = options_.max_num_batched_tokens;
    for (const Row& row : step.rows) budget -= row.end - row.begin;
    return outcome;
  });
  if (!prefilled) return Plan::kShort;
  return step.rows.empty() ? Plan::kNothing : Plan::kReady;
}

// Pages for positions up to `end`, where a chunk may be cut short to what sliding pages there are.
Scheduler::Impl::Outcome Scheduler::Impl::find_pages(Sequence& sequence, int& end, Step& step) {
  SequencePages& pages = sequence.pages;
  while (true) {
    const bool full = make_room(LayerType::kFull, pages.missing_full(end));
    if (full && make_room(LayerType::kSliding, pages.missing_sliding(end))) {
      pages.grow(end);
      return Outcome::kGood;
    }
    if (full) {
      const int reachable = (static_cast<int>(pages.sliding().size()) + sliding_.n_free()) * kPageTokens;
      if (reachable > sequence.n_submitted && reachable < end) {
        end = reachable;
        continue;
      }
    }
    if (in_flight() > 0) return Outcome::kShort;
    Sequence* victim = running_.back();
    std::erase_if(step.rows, [&](const Row& row) { return row.sequence == victim; });
    std::erase_if(step.chunks, [&](const StepChunk& chunk) { return chunk.slot == victim->slot; });
    preempt(*victim);
    if (victim == &sequence) return Outcome::kGone;
  }
}

Scheduler::Impl::Outcome Scheduler::Impl::plan_decode(Sequence& sequence, Step& step) {
  const int begin = sequence.n_submitted;
  const int n_known = sequence.n_known();
  const bool sample = begin == n_known + sequence.n_sampling - 1;
  if (sample) {
    const int n_sampled = static_cast<int>(sequence.output.size()) + sequence.n_sampling;
    if (n_sampled >= sequence.request.max_tokens) return Outcome::kGood;
    if (sequence.n_sampling > 0 && sequence.needs_host()) return Outcome::kGood;
  } else if (begin >= n_known) {
    return Outcome::kGood;
  }
  int end = begin + 1;
  const Outcome outcome = find_pages(sequence, end, step);
  if (outcome != Outcome::kGood) return outcome;
  StepChunk chunk{.slot = sequence.slot, .phase = Phase::kDecode, .position = begin};
  chunk.sample = sample;
  if (sample) {
    if (!set_mask(sequence, chunk)) return Outcome::kGone;
  } else {  // replay; the output does not grow while such a row is in flight
    chunk.tokens = std::span(sequence.output).subspan(static_cast<size_t>(begin - sequence.n_prompt()), 1);
  }
  step.rows.push_back({.sequence = &sequence, .begin = begin, .end = end, .sample = sample});
  step.chunks.push_back(chunk);
  return Outcome::kGood;
}

Scheduler::Impl::Outcome Scheduler::Impl::plan_prefill(Sequence& sequence, Step& step, int budget) {
  const SequenceRequest& request = sequence.request;
  const int n_prompt = sequence.n_prompt();
  const bool logprobs = sequence.wants_prompt_logprobs();
  // The last row of a chunk has no successor to tell the log-probability of, so the next chunk repeats it.
  // The repeated position comes on top of the budget, where the backend has room for it.
  const int repeated = logprobs && sequence.n_submitted > 0 ? 1 : 0;
  const int begin = sequence.n_submitted - repeated;
  int count = budget;
  if (options_.long_prefill_chunk > 0) count = std::min(count, options_.long_prefill_chunk);
  const int used = options_.max_num_batched_tokens - budget;
  count = std::min({n_prompt - begin, count + repeated, backend_.info().max_step_tokens - used});
  int end = begin + count;
  if (end <= sequence.n_submitted) return Outcome::kGood;
  const Outcome outcome = find_pages(sequence, end, step);
  if (outcome != Outcome::kGood) return outcome;

  Row row{.sequence = &sequence, .begin = begin, .end = end, .prompt_logprobs = logprobs};
  StepChunk chunk{.slot = sequence.slot, .phase = Phase::kPrefill, .position = begin};
  chunk.tokens =
      std::span(request.prompt).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  chunk.n_prompt_logprobs = logprobs ? request.n_prompt_logprobs : -1;
  row.sample = chunk.sample = end == n_prompt && sequence.output.empty();
  if (!use_images(sequence, row, step)) return Outcome::kGone;
  if (chunk.sample && !set_mask(sequence, chunk)) return Outcome::kGone;
  step.rows.push_back(row);
  step.chunks.push_back(chunk);
  return Outcome::kGood;
}

// The images' soft tokens inside the row. False: one cannot be encoded, and the sequence is gone.
bool Scheduler::Impl::use_images(Sequence& sequence, Row& row, Step& step) {
  row.first_run = step.runs.size();
  const std::vector<PromptImage>& images = sequence.request.images;
  for (size_t i = sequence.first_image; i < images.size() && images[i].position < row.end; ++i) {
    const PromptImage& image = images[i];
    const int from = std::max(row.begin, image.position);
    const int to = std::min(row.end, image.position + image.count);
    if (from >= to) continue;
    FeatureCache::Entry*& entry = sequence.features[i];
    if (entry == nullptr) {
      bool encoded = false;
      auto used = features_.use(image, encoded);
      if (!used.ok()) {
        finish(sequence, FinishReason::kError, -1, std::move(used).error());
        return false;
      }
      entry = *used;
      ++stats_.image_queries;
      stats_.image_hits += encoded ? 0 : 1;
      sequence.stats.images_encoded += encoded ? 1 : 0;
      sequence.patches_encoded += encoded ? image.patches->grid_h * image.patches->grid_w : 0;
      report_.images_encoded += encoded ? 1 : 0;
      report_.image_tokens_encoded += encoded ? image.count : 0;
    }
    step.runs.push_back({.feature = entry->feature,
                         .row = from - image.position,
                         .offset = from - row.begin,
                         .count = to - from});
  }
  row.n_runs = step.runs.size() - row.first_run;
  return true;
}

// What may be sampled next. False: nothing, and the sequence is gone.
bool Scheduler::Impl::set_mask(Sequence& sequence, StepChunk& chunk) {
  if (sequence.thinking) chunk.allowed_tokens = sequence.thinking->allowed();
  if (sequence.request.mask == nullptr) return true;
  if (sequence.thinking && sequence.thinking->needs_host() && !chunk.allowed_tokens.empty())
    return true;  // forced
  auto allowed = sequence.request.mask->allowed();
  if (!allowed.ok()) {
    finish(sequence, FinishReason::kError, -1, std::move(allowed).error());
    return false;
  }
  if (allowed->empty()) return true;
  chunk.allowed_tokens = *allowed;
  if (std::ranges::any_of(*allowed, [](uint32_t word) { return word != 0; })) return true;
  finish(sequence, FinishReason::kError, -1,
         invalid("structured_outputs: no token may follow that the format and the request's other limits "
                 "(allowed_token_ids, bad_words) allow, and the answer cannot end here either",
                 "structured_outputs"));
  return false;
}

void Scheduler::Impl::submit() {
  Step& step = steps_[static_cast<size_t>(parity())];
  for (size_t i = 0; i < step.rows.size(); ++i) {
    Row& row = step.rows[i];
    Sequence& sequence = *row.sequence;
    StepChunk& chunk = step.chunks[i];
    row.image_patches = std::exchange(sequence.patches_encoded, 0);
    chunk.soft_tokens = std::span(step.runs).subspan(row.first_run, row.n_runs);
    chunk.full_pages = sequence.pages.full();
    chunk.sliding_pages = sequence.pages.sliding_view(parity());
    const bool prefill = chunk.phase == Phase::kPrefill;
    (prefill ? report_.prefill_tokens : report_.decode_rows) += row.end - row.begin;
    if (prefill) stats_.prefill_tokens_computed += static_cast<uint64_t>(row.end - row.begin);
    sequence.n_submitted = row.end;
    ++sequence.n_in_flight;
    sequence.n_sampling += row.sample ? 1 : 0;
  }
  backend_.submit(step.chunks);
  ++n_submitted_steps_;
  report_.submitted = true;
}

}  // namespace jewel

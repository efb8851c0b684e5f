// From waiting to running, and back: admission, waiting for a prefix that another computes, preemption by
// swap or replay.
#include <algorithm>

#include "base/log.h"
#include "engine/scheduler_impl.h"

namespace jewel {
namespace {

// To wait for another sequence's pages pays from this many on. Fewer are computed sooner than the other one
// can be sure to pass them: 64 tokens are a small part of any step, and waiting costs at least one whole
// step.
constexpr int kMinSharedPages = 4;
// A refused head of the line is looked at again after so many steps, if nothing was given back before:
// sliding pages come free silently.
constexpr uint64_t kBlockedSteps = 16;
// Ids of an answer that have their place from the beginning: 16 KiB, and in each slot a few more than in the
// one before. Answers that began together and grow longer are then copied to a larger place in different
// steps.
constexpr int kReservedOutput = 4096;
constexpr int kReservedMore = 16;

// How many leading keys two chains have in common; since each key covers all before, one probe tells.
int common_pages(std::span<const Digest> a, std::span<const Digest> b, int limit) {
  int low = 0;
  int high = std::min({limit, static_cast<int>(a.size()), static_cast<int>(b.size())});
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    const auto at = static_cast<size_t>(middle) - 1;
    if (a[at] == b[at]) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace

void Scheduler::Impl::admit() {
  for (auto it = waiting_.begin(); it != waiting_.end() && !free_slots_.empty();) {
    Sequence& sequence = **it;
    if (still_waits(sequence)) {
      ++it;
      continue;
    }
    if (blocked_ == &sequence && !running_.empty() && blocked_at_release_ == n_releases_ &&
        n_submitted_steps_ < blocked_at_step_ + kBlockedSteps) {
      return;
    }
    const Admission admission = sequence.swapped ? try_swap_in(sequence) : try_admit(sequence);
    if (admission == Admission::kBlocked) {
      blocked_ = &sequence;
      blocked_at_release_ = n_releases_;
      blocked_at_step_ = n_submitted_steps_;
      return;
    }
    blocked_ = nullptr;
    if (admission == Admission::kAdmitted) {
      it = waiting_.erase(it);
      start_running(sequence);
    } else {
      ++it;
    }
  }
}

bool Scheduler::Impl::still_waits(const Sequence& sequence) const {
  if (sequence.waits_for == 0) return false;
  const auto it = live_.find(sequence.waits_for);
  return it != live_.end() && it->second->state == Sequence::State::kRunning &&
         it->second->n_collected < sequence.wait_pages * kPageTokens;
}

// Whether these pages can be had. A sequence that joins others leaves each of them a page of each pool, so
// that it is not thrown out in the next step.
bool Scheduler::Impl::has_room(int full_pages, int sliding_pages) const {
  const auto running = static_cast<int>(running_.size());
  return full_pages + running <= full_.n_free() + full_.n_cached() &&
         sliding_pages + running <= sliding_.n_free() + sliding_.n_cached();
}

bool Scheduler::Impl::make_room(LayerType pool, int n_pages) {
  const PagePool& pages = pool == LayerType::kFull ? full_ : sliding_;
  while (pages.n_free() < n_pages) {
    if (!cache_.evict(pool)) return false;
  }
  return true;
}

Scheduler::Impl::Admission Scheduler::Impl::try_admit(Sequence& sequence) {
  const std::vector<Digest>& keys = sequence.request.page_keys;
  const int n_known = sequence.n_known();
  // The last known token is computed in any case: its row samples the next.
  const bool may_hit = sequence.use_cache && !sequence.wants_prompt_logprobs();
  int max_pages = may_hit ? (n_known - 1) / kPageTokens : 0;
  if (options_.exact_prefix) max_pages = std::min(max_pages, sequence.n_prompt() / kPageTokens);
  sequence.waits_for = 0;
  if (may_hit && should_wait_for_prefix(sequence, max_pages)) return Admission::kWaitsForPrefix;

  PrefixCache::Hit hit = cache_.lookup(keys, max_pages);
  cache_.take(hit, sequence.pages);
  sequence.path.assign(hit.path.begin(), hit.path.end());
  const int first_chunk = std::min(n_known - hit.n_pages() * kPageTokens, options_.max_num_batched_tokens);
  // Alone it is never refused for what it may want later: its chunks are cut to the pages there are.
  const int to_come = pages_of(n_known) - hit.n_pages();
  const int wanted = running_.empty() ? 1 : std::min(pages_of(first_chunk), pages_of(window_)) + 1;
  if (!has_room(sequence.pages.missing_full(n_known), std::min(wanted, to_come)) ||
      !make_room(LayerType::kFull, sequence.pages.missing_full(n_known))) {
    sequence.pages.release_all();
    cache_.let_go(sequence.path);
    return Admission::kBlocked;
  }
  if (may_hit) cache_.note_use(hit, keys, max_pages);
  sequence.return_distance = hit.return_distance;
  sequence.hit_pages = hit.n_pages();
  sequence.n_collected = sequence.n_submitted = hit.n_pages() * kPageTokens;
  set_points(sequence);
  if (!sequence.admitted) {
    const int cached = std::min(sequence.n_collected, sequence.n_prompt());
    sequence.stats.cached_tokens = cached;
    if (sequence.use_cache) stats_.prefix_queries += static_cast<uint64_t>(sequence.n_prompt());
    stats_.prefix_hits += static_cast<uint64_t>(cached);
    for (const PromptImage& image : sequence.request.images) {
      const bool inside = image.position + image.count <= cached;
      stats_.image_queries += inside ? 1 : 0;  // the others are counted when they are used
      stats_.image_hits += inside ? 1 : 0;
    }
  }
  return Admission::kAdmitted;
}

// A running sequence that is still computing a prompt which begins like this one: this one's turn comes when
// the other has passed what they share, and left a checkpoint there. Does not pay, and is not done, when what
// they share beyond the cached part is short, or when the other has passed it and its window.
bool Scheduler::Impl::should_wait_for_prefix(Sequence& sequence, int max_pages) {
  const std::vector<Digest>& keys = sequence.request.page_keys;
  int least = -1;  // pages; below it nobody is worth waiting for
  std::erase_if(prefilling_, [](const Sequence* other) { return other->n_collected >= other->n_prompt(); });
  for (Sequence* other : prefilling_) {
    if (other->wants_prompt_logprobs() || !other->use_cache) continue;
    const int shared = common_pages(keys, other->request.page_keys, max_pages);
    if (shared < kMinSharedPages) continue;
    if (least < 0) least = cache_.lookup(keys, max_pages).n_pages() + kMinSharedPages;
    if (shared < least) continue;
    if (other->n_collected >= shared * kPageTokens) {
      // Passed already; usable if the window there is still held.
      cache_.checkpoint(other->path, shared, other->pages, PrefixCache::Kind::kGiven, 0);
      continue;
    }
    const auto place = std::ranges::lower_bound(other->points, shared, {}, &Sequence::Point::n_pages);
    if (place == other->points.end() || place->n_pages != shared)
      other->points.insert(place, {.n_pages = shared, .kind = PrefixCache::Kind::kGiven});
    sequence.waits_for = other->request.id;
    sequence.wait_pages = shared;
    least = shared + 1;
  }
  return sequence.waits_for != 0;
}

void Scheduler::Impl::set_points(Sequence& sequence) {
  sequence.points.clear();
  if (!sequence.use_cache) return;
  const int prompt_end = (sequence.n_prompt() - 1) / kPageTokens;  // usable for the same prompt, too
  for (const int position : sequence.request.resume_points) {
    const int n_pages = position / kPageTokens;
    if (n_pages > 0 && n_pages <= sequence.n_prompt() / kPageTokens)
      sequence.points.push_back({.n_pages = n_pages, .kind = PrefixCache::Kind::kGiven});
  }
  if (prompt_end > 0) sequence.points.push_back({.n_pages = prompt_end, .kind = PrefixCache::Kind::kEnd});
  // Of several at one place the first stays: given before end.
  std::ranges::sort(sequence.points, {},
                    [](const Sequence::Point& point) { return std::pair(point.n_pages, point.kind); });
  const auto same = std::ranges::unique(sequence.points, {}, &Sequence::Point::n_pages);
  sequence.points.erase(same.begin(), same.end());
  std::erase_if(sequence.points,
                [&](const Sequence::Point& point) { return point.n_pages <= sequence.hit_pages; });
}

void Scheduler::Impl::start_running(Sequence& sequence) {
  const SequenceRequest& request = sequence.request;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  backend_.begin_sequence(sequence.slot, request.sampling, request.prompt, sequence.output);
  sequence.pages.reserve(pages_of(sequence.n_prompt() + request.max_tokens));
  sequence.output.reserve(
      static_cast<size_t>(std::min(request.max_tokens, kReservedOutput + kReservedMore * sequence.slot)));
  sequence.pages.grow_full(sequence.n_known());
  sequence.first_image = 0;
  sequence.state = Sequence::State::kRunning;
  for (std::vector<Sequence*>* line : {&running_, &prefilling_})
    line->insert(std::ranges::lower_bound(*line, &sequence, BeforeInLine()), &sequence);
  if (sequence.admitted) return;
  sequence.admitted = true;
  sequence.admitted_at = now_;
  sequence.stats.queue = now_ - sequence.added_at;
  stats_.prompt_tokens += static_cast<uint64_t>(sequence.n_prompt());
}

// No step is in flight. What was computed goes to host memory if there is room; otherwise it is left to the
// prefix cache, and what is gone when the sequence comes back is computed again.
void Scheduler::Impl::preempt(Sequence& victim) {
  JEWEL_CHECK(in_flight() == 0 && victim.n_in_flight == 0, "sequence {} is in flight", victim.request.id);
  ++victim.stats.preemptions;
  ++stats_.preemptions;
  leave_line(victim);
  if (swap_out(victim)) {
    ++stats_.preemptions_swapped;
  } else {
    stats_.prefill_tokens_recomputed += static_cast<uint64_t>(victim.n_collected);
    keep_answer(victim);
    victim.n_collected = 0;
    if (victim.wants_prompt_logprobs()) victim.prompt_logprobs = {};
  }
  victim.n_submitted = victim.n_collected;
  victim.state = Sequence::State::kWaiting;
  give_up_resources(victim);
  waiting_.insert(&victim);
}

bool Scheduler::Impl::swap_out(Sequence& victim) {
  if (victim.n_collected == 0) return false;
  Sequence::Swapped swapped;
  const auto n_pages = static_cast<size_t>(pages_of(victim.n_collected));
  const std::span<const PageId> full = victim.pages.full().first(n_pages);
  swapped.n_full = static_cast<int>(full.size());
  swapped.first_sliding = victim.pages.first_sliding();
  swapped.n_sliding = static_cast<int>(n_pages) - swapped.first_sliding;
  const std::span<const PageId> sliding = victim.pages.sliding().subspan(
      static_cast<size_t>(swapped.first_sliding), static_cast<size_t>(swapped.n_sliding));
  const size_t full_bytes = full.size() * backend_.info().full_page_bytes;
  const size_t sliding_bytes = sliding.size() * backend_.info().sliding_page_bytes;
  if (swapped_bytes_ + full_bytes + sliding_bytes > options_.swap_bytes) return false;
  swapped.full.resize(full_bytes);
  swapped.sliding.resize(sliding_bytes);
  for (const auto& result : {backend_.read_pages(LayerType::kFull, full, swapped.full),
                             backend_.read_pages(LayerType::kSliding, sliding, swapped.sliding)}) {
    if (result.ok()) continue;
    log().warn("preemption: pages cannot be read, they will be computed again: {}", result.error().message);
    return false;
  }
  for (const PrefixCache::Node* node : victim.path) swapped.serials.push_back(cache_.serial(node));
  swapped_bytes_ += swapped.bytes();
  victim.swapped = std::move(swapped);
  return true;
}

Scheduler::Impl::Admission Scheduler::Impl::try_swap_in(Sequence& sequence) {
  const Sequence::Swapped& swapped = *sequence.swapped;
  const int n_known = sequence.n_known();
  sequence.path = cache_.find_same(sequence.request.page_keys, swapped.serials);
  const auto n_shared = sequence.path.size();
  cache_.take_full(sequence.path, sequence.pages);
  const auto undo = [&] {
    sequence.pages.release_all();
    cache_.let_go(sequence.path);
  };
  const int missing_full = sequence.pages.missing_full(std::max(n_known, swapped.n_full * kPageTokens));
  // One more, unless it is alone and its last page has room.
  const bool page_full = sequence.n_collected == swapped.n_full * kPageTokens;
  const int more_sliding = running_.empty() && !page_full ? 0 : 1;
  if (!has_room(missing_full, swapped.n_sliding + more_sliding) ||
      !make_room(LayerType::kFull, missing_full) || !make_room(LayerType::kSliding, swapped.n_sliding)) {
    undo();
    return Admission::kBlocked;
  }
  sequence.pages.grow_sliding_from(swapped.first_sliding, swapped.n_full * kPageTokens);
  const auto n_full = static_cast<size_t>(swapped.n_full);
  const std::span<const PageId> full = sequence.pages.full().subspan(n_shared, n_full - n_shared);
  const std::span<const PageId> sliding =
      sequence.pages.sliding().subspan(static_cast<size_t>(swapped.first_sliding));
  const auto full_bytes =
      std::span<const std::byte>(swapped.full).subspan(n_shared * backend_.info().full_page_bytes);
  bool good = true;
  for (const auto& result : {backend_.write_pages(LayerType::kFull, full, full_bytes),
                             backend_.write_pages(LayerType::kSliding, sliding, swapped.sliding)}) {
    if (result.ok()) continue;
    log().warn("preemption: pages cannot be written back, they are computed again: {}",
               result.error().message);
    good = false;
  }
  swapped_bytes_ -= swapped.bytes();
  sequence.swapped.reset();
  if (good) return Admission::kAdmitted;
  undo();
  stats_.prefill_tokens_recomputed += static_cast<uint64_t>(sequence.n_collected);
  if (sequence.wants_prompt_logprobs()) sequence.prompt_logprobs = {};
  sequence.n_collected = sequence.n_submitted = 0;
  return try_admit(sequence);
}

}  // namespace jewel

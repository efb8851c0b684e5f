#include "backend/fake/fake_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "backend/fake/fake_model.h"
#include "base/check.h"

namespace jewel {

// 24 bytes per position. `prefix` alone would do for the answers; parent, token and phase make a message that
// says what is wrong.
struct FakeBackend::Entry {
  uint64_t prefix = 0;  // 0: never written, or lost with a failed step
  uint64_t parent = 0;
  TokenId token = 0;
  Phase phase = Phase::kPrefill;
  uint8_t pool = 0;  // a full page's bytes in a sliding page are wrong bytes
  bool lost = false;
};

struct FakeBackend::Pool {
  LayerType type = LayerType::kFull;
  std::vector<Entry> entries;  // [pages * kPageTokens]
  int n_pages = 0;
  std::vector<int64_t> read_step, write_step;  // [pages]: the last step that did

  const char* name() const { return type == LayerType::kFull ? "full" : "sliding"; }
  void allocate(int pages) {
    n_pages = pages;
    const auto n = static_cast<size_t>(pages);
    entries.assign(n * kPageTokens, Entry{});
    read_step.assign(n, -1);
    write_step.assign(n, -1);
  }
  Entry& at(PageId page, int position) {
    return entries[static_cast<size_t>(page) * kPageTokens + static_cast<size_t>(position % kPageTokens)];
  }
};

struct FakeBackend::Slot {
  SamplingParams params;
  uint64_t params_hash = 0;
  int n_prompt = 0;
  std::vector<TokenId> tokens;        // prompt and output
  std::vector<uint64_t> prefixes;     // hash through each position computed so far; only with `check`
  uint64_t prefix = kFakeStart;       // the last of them
  int next_position = -1;             // -1: no step yet
  int64_t last_step = -1;             // that has it
  bool lost = false;                  // a step failed, or it read what a failed step should have written
  std::vector<PageId> full, sliding;  // the tables as last seen

  std::vector<PageId>& table(LayerType type) { return type == LayerType::kFull ? full : sliding; }
  Phase phase_of(int position) const { return position < n_prompt ? Phase::kPrefill : Phase::kDecode; }
  int first_visible(LayerType type, int position, int window) const {
    return type == LayerType::kFull ? 0 : std::max(0, position - window + 1);
  }
};

// The arguments as given, to see that they are the same at the end.
struct FakeBackend::InFlight {
  struct Copy {
    StepChunk chunk;
    std::vector<TokenId> tokens;
    std::vector<SoftTokenRun> soft_tokens;
    std::vector<PageId> full_pages, sliding_pages;
    std::vector<uint32_t> allowed_tokens;
  };
  int64_t number = 0;
  std::span<const StepChunk> chunks;
  std::vector<Copy> copies;
  bool failed = false;
  double end_s = 0;
  StepResult result;
};

FakeBackend::FakeBackend(FakeOptions options, FakeFaults faults)
    : options_(std::move(options)),
      faults_(std::move(faults)),
      full_(std::make_unique<Pool>()),
      sliding_(std::make_unique<Pool>()),
      slots_(static_cast<size_t>(options_.max_slots)) {
  sliding_->type = LayerType::kSliding;
  info_.name = "fake";
  info_.full_page_bytes = info_.sliding_page_bytes = sizeof(Entry) * kPageTokens;
  copies_ = options_.full_page_bytes == 0 && options_.sliding_page_bytes == 0;
  JEWEL_CHECK(copies_ || !options_.check, "pages of other sizes hold nothing that could be checked");
  if (!copies_) {
    info_.full_page_bytes = options_.full_page_bytes;
    info_.sliding_page_bytes = options_.sliding_page_bytes;
  }
  info_.max_slots = options_.max_slots;
  info_.max_step_tokens = options_.max_step_tokens;
}

FakeBackend::~FakeBackend() = default;

void FakeBackend::report_violation(std::string message) {
  if (!violation_.empty()) return;
  violation_ = fmt::format("step {}: {}", counters_.steps, std::move(message));
  JEWEL_CHECK(options_.on_violation, "{}", violation_);
  options_.on_violation(violation_);
}

bool FakeBackend::in_flight(int64_t step) const {
  return !in_flight_.empty() && step >= in_flight_.front().number;
}

int FakeBackend::n_live_slots() const {
  return static_cast<int>(std::ranges::count_if(slots_, [](const auto& slot) { return slot != nullptr; }));
}

int FakeBackend::n_steps_in_flight() const {
  return static_cast<int>(in_flight_.size());
}

double FakeBackend::now_seconds() const {
  if (options_.time != FakeOptions::Time::kSleep) return now_s_;
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void FakeBackend::advance_to(double seconds) {
  now_s_ = std::max(now_s_, seconds);
}

Result<void> FakeBackend::allocate_kv(const KvSizes& sizes) {
  if (options_.check && n_live_slots() > 0) violate("allocate_kv with {} live sequences", n_live_slots());
  if (faults_.allocate_kv) {
    return unavailable(fmt::format("fake: no memory for {} full and {} sliding pages", sizes.n_full_pages,
                                   sizes.n_sliding_pages));
  }
  if (copies_) {
    full_->allocate(sizes.n_full_pages);
    sliding_->allocate(sizes.n_sliding_pages);
  }
  return {};
}

Result<FeatureId> FakeBackend::encode_image(const ImagePatches& patches) {
  if (faults_.encode_image.contains(encode_calls_++)) return unavailable("fake: the image encoder failed");
  const int n_rows = patches.grid_h * patches.grid_w / 9;
  features_[next_feature_] = {.hash = fake_image_hash(patches), .n_rows = n_rows};
  ++counters_.images;
  ++images_since_step_;
  image_tokens_since_step_ += n_rows;
  return next_feature_++;
}

void FakeBackend::release_feature(FeatureId feature) {
  const auto it = features_.find(feature);
  if (it == features_.end()) return violate("feature {} is released but not held", feature);
  if (options_.check && in_flight(it->second.last_step)) {
    violate("feature {} is released while step {} reads it", feature, it->second.last_step);
  }
  features_.erase(it);
}

void FakeBackend::begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                                 std::span<const TokenId> output) {
  if (slot < 0 || slot >= options_.max_slots)
    return violate("begin_sequence: slot {} of {}", slot, options_.max_slots);
  std::unique_ptr<Slot>& place = slots_[static_cast<size_t>(slot)];
  if (place != nullptr) return violate("begin_sequence: slot {} is taken", slot);
  if (prompt.empty()) violate("begin_sequence: slot {} has an empty prompt", slot);
  place = std::make_unique<Slot>();
  place->params = params;
  place->params_hash = fake_params_hash(params);
  place->n_prompt = static_cast<int>(prompt.size());
  place->tokens.assign(prompt.begin(), prompt.end());
  place->tokens.insert(place->tokens.end(), output.begin(), output.end());
}

void FakeBackend::end_sequence(SlotId slot) {
  const Slot* sequence = live_slot(slot);
  if (sequence == nullptr) return;
  if (options_.check && in_flight(sequence->last_step))
    violate("slot {} ends while step {} computes for it", slot, sequence->last_step);
  slots_[static_cast<size_t>(slot)].reset();
}

FakeBackend::Slot* FakeBackend::live_slot(SlotId slot) {
  if (slot < 0 || slot >= options_.max_slots || slots_[static_cast<size_t>(slot)] == nullptr) {
    violate("slot {} has no sequence", slot);
    return nullptr;
  }
  return slots_[static_cast<size_t>(slot)].get();
}

bool FakeBackend::check_shape(std::span<const StepChunk> chunks) {
  int tokens = 0;
  std::set<SlotId> seen;
  if (chunks.empty()) violate("a step without chunks");
  for (const StepChunk& chunk : chunks) {
    if (live_slot(chunk.slot) == nullptr) return false;
    if (!seen.insert(chunk.slot).second) violate("slot {} appears twice", chunk.slot);
    tokens += chunk.n_tokens();
  }
  if (tokens > options_.max_step_tokens)
    violate("{} tokens in a step of at most {}", tokens, options_.max_step_tokens);
  return violation_.empty();
}

bool FakeBackend::check_tokens(const StepChunk& chunk, const Slot& slot) {
  const int n = chunk.n_tokens();
  const int end = chunk.position + n;
  const auto known = static_cast<int>(slot.tokens.size());
  const bool first = slot.next_position < 0;
  // A chunk with prompt log-probabilities may repeat the position before it, whose successor it alone can
  // tell.
  const int repeated = chunk.n_prompt_logprobs >= 0 ? 1 : 0;
  if (chunk.position < 0 ||
      (!first && chunk.position != slot.next_position && chunk.position != slot.next_position - repeated)) {
    violate("slot {}: position {}, expected {}", chunk.slot, chunk.position, slot.next_position);
  } else if (end > known) {
    violate("slot {}: positions [{}, {}) but only {} tokens are known", chunk.slot, chunk.position, end,
            known);
  } else if (chunk.sample && end != known) {
    violate("slot {}: samples at {} a token that is known already ({} are)", chunk.slot, end, known);
  } else if (chunk.tokens.empty() && (chunk.position < slot.n_prompt || end != known)) {
    violate("slot {}: a row without tokens at {}, but no token was sampled there", chunk.slot,
            chunk.position);
  } else if (chunk.phase != slot.phase_of(chunk.position) || chunk.phase != slot.phase_of(end - 1)) {
    violate("slot {}: positions [{}, {}) in phase {}, the prompt has {} tokens", chunk.slot, chunk.position,
            end, chunk.phase == Phase::kPrefill ? "prefill" : "decode", slot.n_prompt);
  } else if (chunk.phase == Phase::kDecode &&
             (n != 1 || !chunk.soft_tokens.empty() || chunk.n_prompt_logprobs >= 0)) {
    violate("slot {}: a decode row of {} tokens, {} soft token runs, {} prompt log-probabilities", chunk.slot,
            n, chunk.soft_tokens.size(), chunk.n_prompt_logprobs);
  }
  for (int i = 0; i < static_cast<int>(chunk.tokens.size()) && violation_.empty(); ++i) {
    const TokenId expected = slot.tokens[static_cast<size_t>(chunk.position) + static_cast<size_t>(i)];
    const TokenId found = chunk.tokens[static_cast<size_t>(i)];
    if (found != expected)
      violate("slot {}: token {} at position {}, expected {}", chunk.slot, found, chunk.position + i,
              expected);
  }
  for (const SoftTokenRun& run : chunk.soft_tokens) {
    const auto feature = features_.find(run.feature);
    if (feature == features_.end()) {
      violate("slot {}: feature {} is not held", chunk.slot, run.feature);
    } else if (run.row < 0 || run.count < 1 || run.row + run.count > feature->second.n_rows ||
               run.offset < 0 || run.offset + run.count > n) {
      violate("slot {}: rows {} + {} of a feature of {}, at {} of {} tokens", chunk.slot, run.row, run.count,
              feature->second.n_rows, run.offset, n);
    } else {
      feature->second.last_step = counters_.steps;
    }
  }
  return violation_.empty();
}

void FakeBackend::take_tables(const StepChunk& chunk, Slot& slot) {
  const int end = chunk.position + chunk.n_tokens();
  for (const LayerType type : {LayerType::kFull, LayerType::kSliding}) {
    const std::span<const PageId> given = type == LayerType::kFull ? chunk.full_pages : chunk.sliding_pages;
    std::vector<PageId>& table = slot.table(type);
    const Pool& pages = pool(type);
    const auto needed = static_cast<size_t>((end + kPageTokens - 1) / kPageTokens);
    if (given.size() < needed || given.size() < table.size()) {
      return violate("slot {}: {} {} pages, had {}, needs {} up to position {}", chunk.slot, given.size(),
                     pages.name(), table.size(), needed, end);
    }
    const auto first_page =
        static_cast<size_t>(slot.first_visible(type, chunk.position, options_.sliding_window) / kPageTokens);
    for (size_t i = 0; i < given.size(); ++i) {
      if (given[i] == kNoPage ? i >= first_page && i < needed : given[i] < 0 || given[i] >= pages.n_pages)
        return violate("slot {}: {} page {} of the table is {}, step at [{}, {})", chunk.slot, pages.name(),
                       i, given[i], chunk.position, end);
      if (i < table.size() && given[i] != table[i] && given[i] != kNoPage)
        return violate("slot {}: {} page {} of the table changed from {} to {}", chunk.slot, pages.name(), i,
                       table[i], given[i]);
    }
    table.assign(given.begin(), given.end());
  }
}

// No page that this chunk writes may be seen by anybody else.
void FakeBackend::check_exclusive(const StepChunk& chunk, const Slot& slot) {
  const int end = chunk.position + chunk.n_tokens();
  for (const LayerType type : {LayerType::kFull, LayerType::kSliding}) {
    const std::vector<PageId>& mine = type == LayerType::kFull ? slot.full : slot.sliding;
    for (int i = chunk.position / kPageTokens; i <= (end - 1) / kPageTokens; ++i) {
      const PageId page = mine[static_cast<size_t>(i)];
      for (SlotId other = 0; other < options_.max_slots; ++other) {
        Slot* theirs = slots_[static_cast<size_t>(other)].get();
        if (theirs == nullptr) continue;
        const std::vector<PageId>& table = theirs->table(type);
        const int visible =
            theirs->first_visible(type, std::max(0, theirs->next_position), options_.sliding_window);
        for (auto j = static_cast<size_t>(visible / kPageTokens); j < table.size(); ++j) {
          if (table[j] != page || (theirs == &slot && j == static_cast<size_t>(i))) continue;
          return violate("{} page {} is written by slot {} at positions {}.. and held by slot {} for {}..",
                         pool(type).name(), page, chunk.slot, i * kPageTokens, other, j * kPageTokens);
        }
      }
    }
  }
}

// Attention's view of the positions before the chunk: are they what this sequence's past wrote?
bool FakeBackend::read_past(const StepChunk& chunk, Slot& slot, LayerType type) {
  Pool& pages = pool(type);
  const std::vector<PageId>& table = slot.table(type);
  const bool learn =
      slot.prefixes.size() < static_cast<size_t>(chunk.position);  // a hit: pages tell the past
  for (int p = slot.first_visible(type, chunk.position, options_.sliding_window); p < chunk.position; ++p) {
    const PageId page = table[static_cast<size_t>(p / kPageTokens)];
    pages.read_step[static_cast<size_t>(page)] = counters_.steps;
    const Entry& entry = pages.at(page, p);
    if (entry.lost) {
      // Harmless only as long as the engine cannot know yet that the step failed.
      const bool known = std::ranges::none_of(in_flight_, [](const InFlight& step) { return step.failed; });
      if (known) violate("slot {} reads {} page {}, lost with a failed step", chunk.slot, pages.name(), page);
      slot.lost = true;
      return false;
    }
    const auto at = static_cast<size_t>(p);
    if (learn && type == LayerType::kFull) {
      const uint64_t parent = p == 0 ? kFakeStart : slot.prefixes.back();
      if (entry.parent != parent || entry.token != slot.tokens[at] || entry.prefix == 0) {
        violate("slot {}: full page {} at position {} holds token {}{}, expected {} (prefix hit)", chunk.slot,
                page, p, entry.token, entry.parent == parent ? "" : " of another past", slot.tokens[at]);
        return false;
      }
      slot.prefixes.push_back(entry.prefix);
    } else if (entry.prefix != slot.prefixes[at] || entry.pool != static_cast<uint8_t>(type)) {
      violate("slot {}: {} page {} at position {} holds token {}{}, expected {}", chunk.slot, pages.name(),
              page, p, entry.token, entry.token == slot.tokens[at] ? " of another past" : "",
              slot.tokens[at]);
      return false;
    }
    if (options_.exact_phases && entry.phase != slot.phase_of(p)) {
      violate("slot {}: {} page {} at position {} was computed in {}, the sequence has it in {}", chunk.slot,
              pages.name(), page, p, entry.phase == Phase::kPrefill ? "prefill" : "decode",
              slot.phase_of(p) == Phase::kPrefill ? "prefill" : "decode");
      return false;
    }
  }
  return violation_.empty();
}

uint64_t FakeBackend::extend(const StepChunk& chunk, int i, uint64_t prefix) {
  for (const SoftTokenRun& run : chunk.soft_tokens) {
    if (i >= run.offset && i < run.offset + run.count)
      return fake_extend_soft(prefix, features_.at(run.feature).hash, run.row + i - run.offset);
  }
  const Slot& slot = *slots_[static_cast<size_t>(chunk.slot)];
  return fake_extend(prefix, slot.tokens[static_cast<size_t>(chunk.position) + static_cast<size_t>(i)]);
}

void FakeBackend::write_chunk(const StepChunk& chunk, Slot& slot, bool failed) {
  for (int i = 0; i < chunk.n_tokens(); ++i) {
    const int p = chunk.position + i;
    const uint64_t parent = slot.prefix;
    slot.prefix = extend(chunk, i, parent);
    slot.prefixes.push_back(slot.prefix);
    for (const LayerType type : {LayerType::kFull, LayerType::kSliding}) {
      Pool& pages = pool(type);
      const PageId page = slot.table(type)[static_cast<size_t>(p / kPageTokens)];
      // A chunk longer than the window may have given up the pages that its own end no longer reaches.
      if (page == kNoPage) continue;
      pages.write_step[static_cast<size_t>(page)] = counters_.steps;
      pages.at(page, p) = {.prefix = slot.prefix,
                           .parent = parent,
                           .token = slot.tokens[static_cast<size_t>(p)],
                           .phase = chunk.phase,
                           .pool = static_cast<uint8_t>(type),
                           .lost = failed || slot.lost};
    }
  }
}

void FakeBackend::sample(const StepChunk& chunk, Slot& slot, StepResult& result) {
  const auto position = static_cast<int>(slot.tokens.size());
  SampledToken& out = result.sampled.emplace_back();
  out.slot = chunk.slot;
  if (options_.script) {
    out.id = options_.script(std::span(slot.tokens).first(static_cast<size_t>(slot.n_prompt)),
                             position - slot.n_prompt);
  } else {
    out.id = fake_next_token(slot.prefix, position, slot.params_hash, slot.params, chunk.allowed_tokens,
                             options_.vocab_size);
  }
  if (out.id < 0) violate("slot {}: no token is allowed at position {}", chunk.slot, position);
  if (slot.lost) out.id = 0;
  if (slot.params.n_logprobs >= 0) {
    out.logprob = fake_logprob(slot.prefix, out.id);
    out.top = fake_top(slot.prefix, slot.params.n_logprobs, options_.vocab_size);
  }
  slot.tokens.push_back(out.id);
}

void FakeBackend::run_chunk(const StepChunk& chunk, bool failed, StepResult& result) {
  Slot& slot = *slots_[static_cast<size_t>(chunk.slot)];
  slot.lost = slot.lost || failed;
  if (options_.check) {
    if (slot.next_position < 0) slot.prefixes.reserve(slot.tokens.size() + 64);
    const bool good = read_past(chunk, slot, LayerType::kFull) && read_past(chunk, slot, LayerType::kSliding);
    if (!good && !slot.lost) {
      if (chunk.sample) result.sampled.push_back({.slot = chunk.slot});
      return;
    }
    if (slot.lost || slot.prefixes.size() > static_cast<size_t>(chunk.position))
      slot.prefixes.resize(static_cast<size_t>(chunk.position));
    slot.prefix = chunk.position == 0 ? kFakeStart : slot.prefixes[static_cast<size_t>(chunk.position) - 1];
    PromptLogprobs* prompt = nullptr;
    if (chunk.n_prompt_logprobs >= 0) {
      prompt = &result.prompt_logprobs.emplace_back();
      prompt->slot = chunk.slot;
      uint64_t prefix = slot.prefix;
      for (int i = 0; i < chunk.n_tokens(); ++i) {
        prefix = extend(chunk, i, prefix);
        if (i + 1 < chunk.n_tokens())
          prompt->token.push_back(fake_logprob(prefix, chunk.tokens[static_cast<size_t>(i) + 1]));
        prompt->top.push_back(fake_top(prefix, chunk.n_prompt_logprobs, options_.vocab_size));
      }
    }
    write_chunk(chunk, slot, failed);
  } else if (!chunk.tokens.empty()) {
    // No books without checks: the answer depends on the last tokens only.
    slot.prefix = fake_extend(slot.prefix, chunk.tokens.back());
  } else {
    slot.prefix = fake_extend(slot.prefix, slot.tokens.back());
  }
  slot.next_position = chunk.position + chunk.n_tokens();
  slot.last_step = counters_.steps;
  if (chunk.sample) sample(chunk, slot, result);
}

void FakeBackend::submit(std::span<const StepChunk> chunks) {
  InFlight step{
      .number = counters_.steps, .chunks = chunks, .failed = faults_.steps.contains(counters_.steps)};
  bool good = violation_.empty();
  if (options_.check && good) {
    good = check_shape(chunks);
    for (const StepChunk& chunk : chunks) {
      if (!good) break;
      good = check_tokens(chunk, *slots_[static_cast<size_t>(chunk.slot)]);
      step.copies.push_back({.chunk = chunk,
                             .tokens = {chunk.tokens.begin(), chunk.tokens.end()},
                             .soft_tokens = {chunk.soft_tokens.begin(), chunk.soft_tokens.end()},
                             .full_pages = {chunk.full_pages.begin(), chunk.full_pages.end()},
                             .sliding_pages = {chunk.sliding_pages.begin(), chunk.sliding_pages.end()},
                             .allowed_tokens = {chunk.allowed_tokens.begin(), chunk.allowed_tokens.end()}});
    }
    // All tables first: a page may leave one sequence and join another in the same step.
    for (const StepChunk& chunk : chunks) {
      if (good) take_tables(chunk, *slots_[static_cast<size_t>(chunk.slot)]);
    }
    for (const StepChunk& chunk : chunks) {
      if (good && violation_.empty()) check_exclusive(chunk, *slots_[static_cast<size_t>(chunk.slot)]);
    }
    good = violation_.empty();
  }
  StepWork work{.images = images_since_step_, .image_soft_tokens = image_tokens_since_step_};
  images_since_step_ = image_tokens_since_step_ = 0;
  step.result.sampled.reserve(chunks.size());
  for (const StepChunk& chunk : chunks) {
    if (good) {
      run_chunk(chunk, step.failed, step.result);
    } else if (chunk.sample) {  // so that the broken rule is what the test hears of
      step.result.sampled.push_back({.slot = chunk.slot});
    }
    const int n = chunk.n_tokens();
    if (chunk.phase == Phase::kDecode) {
      ++work.decode_rows;
      work.decode_context_tokens += chunk.position + 1;
    } else {
      work.prefill_tokens += n;
      ++work.prefill_chunks;
    }
  }
  counters_.prefill_tokens += work.prefill_tokens;
  counters_.decode_tokens += work.decode_rows;
  counters_.max_rows = std::max(counters_.max_rows, static_cast<int>(chunks.size()));
  ++counters_.steps;
  if (options_.step_cost) {
    device_free_s_ = std::max(device_free_s_, now_seconds()) + options_.step_cost(work);
    step.end_s = device_free_s_;
  }
  in_flight_.push_back(std::move(step));
}

void FakeBackend::check_arguments(const InFlight& step) {
  for (size_t i = 0; i < step.copies.size(); ++i) {
    const StepChunk& chunk = step.chunks[i];
    const InFlight::Copy& copy = step.copies[i];
    const bool same =
        chunk.slot == copy.chunk.slot && chunk.position == copy.chunk.position &&
        chunk.sample == copy.chunk.sample && std::ranges::equal(chunk.tokens, copy.tokens) &&
        std::ranges::equal(chunk.full_pages, copy.full_pages) &&
        std::ranges::equal(chunk.sliding_pages, copy.sliding_pages) &&
        std::ranges::equal(chunk.allowed_tokens, copy.allowed_tokens) &&
        std::ranges::equal(chunk.soft_tokens, copy.soft_tokens, [](const auto& a, const auto& b) {
          return a.feature == b.feature && a.row == b.row && a.offset == b.offset && a.count == b.count;
        });
    if (!same)
      violate("the arguments of step {} changed before it was collected (slot {})", step.number,
              copy.chunk.slot);
  }
}

Result<StepResult> FakeBackend::collect() {
  JEWEL_CHECK(!in_flight_.empty(), "collect() without a submitted step");
  InFlight step = std::move(in_flight_.front());
  in_flight_.pop_front();
  if (options_.check) check_arguments(step);
  if (options_.time == FakeOptions::Time::kSleep)
    std::this_thread::sleep_for(std::chrono::duration<double>(step.end_s - now_seconds()));
  now_s_ = std::max(now_s_, step.end_s);
  if (!step.failed) return std::move(step.result);
  ++counters_.failed_steps;
  return unavailable(fmt::format("fake: the device failed in step {}", step.number));
}

// A copy waits for the steps before it, and the host waits for the copy.
void FakeBackend::spend_copy(size_t bytes) {
  if (!options_.copy_cost) return;
  const double end_s = std::max(device_free_s_, now_seconds()) + options_.copy_cost(bytes);
  device_free_s_ = end_s;
  if (options_.time == FakeOptions::Time::kSleep)
    std::this_thread::sleep_for(std::chrono::duration<double>(end_s - now_seconds()));
  now_s_ = std::max(now_s_, end_s);
}

Result<void> FakeBackend::read_pages(LayerType type, std::span<const PageId> pages,
                                     std::span<std::byte> out) {
  if (faults_.read_pages.contains(read_calls_++)) return unavailable("fake: pages cannot be read");
  Pool& from = pool(type);
  const size_t bytes = page_bytes(type);
  if (out.size() != pages.size() * bytes) {
    violate("read_pages: {} bytes for {} pages of {}", out.size(), pages.size(), bytes);
    return {};
  }
  spend_copy(out.size());
  for (size_t i = 0; copies_ && i < pages.size(); ++i) {
    if (pages[i] < 0 || pages[i] >= from.n_pages) {
      violate("read_pages: {} page {} of {}", from.name(), pages[i], from.n_pages);
      return {};
    }
    if (in_flight(from.write_step[static_cast<size_t>(pages[i])]))
      violate("read_pages: {} page {} while a step writes it", from.name(), pages[i]);
    std::memcpy(out.data() + i * bytes, &from.at(pages[i], 0), bytes);
  }
  counters_.pages_read += static_cast<int64_t>(pages.size());
  return {};
}

Result<void> FakeBackend::write_pages(LayerType type, std::span<const PageId> pages,
                                      std::span<const std::byte> in) {
  if (faults_.write_pages.contains(write_calls_++)) return unavailable("fake: pages cannot be written");
  Pool& to = pool(type);
  const size_t bytes = page_bytes(type);
  if (in.size() != pages.size() * bytes) {
    violate("write_pages: {} bytes for {} pages of {}", in.size(), pages.size(), bytes);
    return {};
  }
  spend_copy(in.size());
  for (size_t i = 0; copies_ && i < pages.size(); ++i) {
    if (pages[i] < 0 || pages[i] >= to.n_pages) {
      violate("write_pages: {} page {} of {}", to.name(), pages[i], to.n_pages);
      return {};
    }
    const auto page = static_cast<size_t>(pages[i]);
    if (in_flight(to.write_step[page]) || in_flight(to.read_step[page]))
      violate("write_pages: {} page {} while a step uses it", to.name(), pages[i]);
    std::memcpy(&to.at(pages[i], 0), in.data() + i * bytes, bytes);
  }
  counters_.pages_written += static_cast<int64_t>(pages.size());
  return {};
}

}  // namespace jewel

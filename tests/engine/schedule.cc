#include "schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "backend/fake/fake_model.h"
#include "engine/pages.h"

namespace jewel {
namespace {

constexpr TokenId kStopA = 1, kStopB = 2;
constexpr TokenId kThinkStart = 8, kThinkEnd = 9, kThinkWord = 10;

// A grammar that means nothing: what it allows is a hash of what was said. Ids 16 to 19 are always allowed,
// so that min_tokens and forbidden ids never leave it empty.
class FakeMask : public TokenMask {
 public:
  FakeMask(uint64_t seed, int fails_after) : state_(seed), fails_after_(fails_after) {}
  Result<std::span<const uint32_t>> allowed() override {
    if (n_ == fails_after_) return invalid("fake: the mask fails here");
    const uint64_t bits = fake_mix(state_, 5);
    words_[0] = static_cast<uint32_t>(bits & (bits >> 32)) | 0xf0000U;
    words_[1] = static_cast<uint32_t>(fake_mix(state_, 6)) & ~(1U << 31);
    return std::span<const uint32_t>(words_);
  }
  Result<void> accept(TokenId id) override {
    state_ = fake_extend(state_, id);
    ++n_;
    return {};
  }

 private:
  uint64_t state_;
  int fails_after_;
  int n_ = 0;
  std::array<uint32_t, 2> words_{};
};

// The thinking budget by its definition: at most so many ids between start and end in the whole answer; then
// the end is said, and no thought is begun again.
class ThinkingOracle {
 public:
  explicit ThinkingOracle(const ThinkingBudget& budget) : budget_(budget), open_(budget.open) {}
  // Bits of the ids that may come next; nothing: all.
  std::span<const uint32_t> allowed() {
    if (n_ < budget_.max_tokens || (!open_ && budget_.start < 0)) return {};
    const TokenId id = open_ ? budget_.forced.at(static_cast<size_t>(said_)) : budget_.start;
    words_ = {};
    words_[static_cast<size_t>(id) / 32] = 1U << (id % 32);
    if (!open_) words_ = {~words_[0], ~words_[1]};
    return words_;
  }
  void accept(TokenId id) {
    if (!open_) {
      open_ = id == budget_.start;
      return;
    }
    const bool forced = n_ >= budget_.max_tokens;
    said_ += forced ? 1 : 0;
    if (id == budget_.end || said_ == static_cast<int>(budget_.forced.size())) {
      open_ = false;
      said_ = 0;
    } else if (!forced) {
      ++n_;
    }
  }

 private:
  ThinkingBudget budget_;
  bool open_;
  int n_ = 0;
  int said_ = 0;
  std::array<uint32_t, 2> words_{};
};

bool repeats(const RepetitionGuard& guard, const std::vector<TokenId>& tokens) {
  const auto n = static_cast<int>(tokens.size());
  for (int period = 1; period <= guard.max_period; ++period) {
    const int run = std::max(period * guard.repeats, guard.min_tokens);
    if (run > n) continue;
    bool same = true;
    for (int i = n - run; i + period < n && same; ++i)
      same = tokens[static_cast<size_t>(i)] == tokens[static_cast<size_t>(i + period)];
    if (same) return true;
  }
  return false;
}

uint64_t extend(const PlannedRequest& request, int position, TokenId token, uint64_t prefix) {
  for (const PlannedImage& image : request.images) {
    if (position >= image.position && position < image.position + image.count)
      return fake_extend_soft(prefix, fake_image_hash(*fake_picture(image.content, image.count)),
                              position - image.position);
  }
  return fake_extend(prefix, token);
}

std::vector<TokenId> random_tokens(Dice& dice, int n) {
  std::vector<TokenId> tokens(static_cast<size_t>(n));
  for (TokenId& token : tokens) token = dice.between(3, 62);
  return tokens;
}

// Something that several requests begin with.
struct Stem {
  std::vector<TokenId> tokens;
  std::vector<PlannedImage> images;
  std::vector<int> ends;  // where it may be cut
};

void add_image(Dice& dice, Stem& stem) {
  const PlannedImage image{.content = dice.below(3),
                           .position = static_cast<int>(stem.tokens.size()),
                           .count = dice.between(1, 20)};
  stem.images.push_back(image);
  stem.tokens.insert(stem.tokens.end(), static_cast<size_t>(image.count), kFakeImageToken);
  stem.ends.push_back(static_cast<int>(stem.tokens.size()));
}

void add_text(Dice& dice, Stem& stem, int n) {
  const std::vector<TokenId> text = random_tokens(dice, n);
  stem.tokens.insert(stem.tokens.end(), text.begin(), text.end());
  stem.ends.push_back(static_cast<int>(stem.tokens.size()));
}

void add_sampling(Dice& dice, PlannedRequest& request, bool crowded) {
  if (dice.one_in(2)) request.sampling.temperature = 0;
  request.sampling.seed = dice.next() % 5;
  if (dice.one_in(6)) request.sampling.n_logprobs = dice.below(3);
  request.sampling.never = {kFakeImageToken};
  if (dice.one_in(8)) request.sampling.never.push_back(dice.between(3, 7));
  if (!dice.one_in(3)) request.stop_token_ids = {kStopA, kStopB};
  request.max_tokens = crowded || dice.one_in(6) ? dice.between(16, 64) : dice.between(1, 16);
  if (dice.one_in(5)) request.min_tokens = dice.below(request.max_tokens + 1);
  if (dice.one_in(6)) {
    request.mask_seed = dice.next() | 1;
    if (dice.one_in(6)) request.mask_fails_after = dice.below(8);
  } else if (dice.one_in(6)) {
    request.thinking = ThinkingBudget{.start = kThinkStart,
                                      .end = kThinkEnd,
                                      .forced = {kThinkWord, kThinkEnd},
                                      .max_tokens = dice.below(5),
                                      .open = dice.one_in(2)};
  }
  if (dice.one_in(10)) request.guard = RepetitionGuard{.max_period = 3, .repeats = 2, .min_tokens = 2};
}

PlannedRequest random_request(Dice& dice, const std::vector<Stem>& stems,
                              const std::vector<PlannedRequest>& before, bool crowded) {
  PlannedRequest request;
  Stem prompt;
  if (!before.empty() && dice.one_in(4)) {  // the next turn of an earlier one
    const PlannedRequest& last = before[static_cast<size_t>(dice.below(static_cast<int>(before.size())))];
    prompt = {.tokens = last.prompt, .images = last.images, .ends = last.resume_points};
    prompt.ends.push_back(static_cast<int>(last.prompt.size()));
    const ExpectedAnswer answer = expected_answer(last);
    prompt.tokens.insert(prompt.tokens.end(), answer.tokens.begin(), answer.tokens.end());
    prompt.ends.push_back(static_cast<int>(prompt.tokens.size()));
    request.salt = last.salt;
  } else if (!dice.one_in(4)) {
    const Stem& stem = stems[static_cast<size_t>(dice.below(static_cast<int>(stems.size())))];
    const auto n = static_cast<size_t>(dice.between(1, static_cast<int>(stem.ends.size())));
    prompt.ends.assign(stem.ends.begin(), stem.ends.begin() + static_cast<ptrdiff_t>(n));
    prompt.tokens.assign(stem.tokens.begin(), stem.tokens.begin() + prompt.ends.back());
    for (const PlannedImage& image : stem.images) {
      if (image.position < prompt.ends.back()) prompt.images.push_back(image);
    }
  }
  if (prompt.tokens.empty() || !dice.one_in(4)) add_text(dice, prompt, dice.between(1, 20));
  if (dice.one_in(5)) add_image(dice, prompt);
  if (dice.one_in(3)) add_text(dice, prompt, dice.between(1, 12));
  request.prompt = prompt.tokens;
  request.images = prompt.images;
  for (const int end : prompt.ends) {
    if (!dice.one_in(3)) request.resume_points.push_back(end);
  }
  std::ranges::sort(request.resume_points);
  const auto again = std::ranges::unique(request.resume_points);
  request.resume_points.erase(again.begin(), again.end());

  add_sampling(dice, request, crowded);
  if (dice.one_in(5)) request.cancelled_after = dice.below(20);
  if (dice.one_in(8)) request.deadline_after = dice.below(30);
  if (dice.one_in(10)) request.sink_stops_after = dice.between(1, 10);
  if (dice.one_in(4)) request.priority = dice.between(-2, 2);
  if (dice.one_in(10)) request.salt = fmt::format("salt {}", dice.below(2));
  if (dice.one_in(12)) request.use_prefix_cache = false;
  if (dice.one_in(10)) request.n_prompt_logprobs = dice.below(3);
  return request;
}

void add_faults(Dice& dice, FakeFaults& faults) {
  for (int i = dice.below(3); i > 0; --i) faults.steps.insert(dice.below(40));
  if (dice.one_in(3)) faults.encode_image.insert(dice.below(4));
  for (int i = 0; i < 4; ++i) {
    if (dice.one_in(3)) faults.read_pages.insert(dice.below(8));
    if (dice.one_in(3)) faults.write_pages.insert(dice.below(8));
  }
}

}  // namespace

uint64_t Dice::next() {
  state_ += 0x9e3779b97f4a7c15;
  uint64_t x = state_;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

std::shared_ptr<const ImagePatches> fake_picture(int content, int count) {
  return std::make_shared<const ImagePatches>(
      ImagePatches{.grid_h = 3 * count, .grid_w = 3, .pixels = {static_cast<uint8_t>(content)}});
}

ModelConfig fake_config(int window, int max_positions) {
  ModelConfig config;
  config.model_type = "gemma4";
  config.text.sliding_window = window;
  config.text.vocab_size = kFakeVocabulary;
  config.text.max_position_embeddings = max_positions;
  config.text.layers = {{.type = LayerType::kSliding}, {.type = LayerType::kFull}};
  config.text.n_layers = 2;
  config.vision.emplace();
  config.vision->patch_size = 16;
  config.vision->pooling_kernel_size = 3;
  config.image_token_id = kFakeImageToken;
  return config;
}

Schedule random_schedule(uint64_t seed) {
  Dice dice(seed);
  Schedule schedule{.seed = seed};
  schedule.window = std::array{16, 24, 32, 48}[static_cast<size_t>(dice.below(4))];
  schedule.backend.max_slots = dice.one_in(8) ? 1 : dice.between(2, 6);
  schedule.backend.max_step_tokens = dice.one_in(3) ? dice.between(6, 16) : dice.between(16, 64);
  schedule.backend.sliding_window = schedule.window;
  schedule.backend.vocab_size = kFakeVocabulary;
  if (dice.one_in(5)) add_faults(dice, schedule.faults);

  std::vector<Stem> stems(static_cast<size_t>(dice.between(1, 2)));
  for (Stem& stem : stems) {
    for (int i = dice.between(1, 3); i > 0; --i) {
      dice.one_in(4) ? add_image(dice, stem) : add_text(dice, stem, dice.between(4, 24));
    }
  }
  // Half of the schedules are made to run out of pages: long answers at once, in hardly more than one needs.
  const bool crowded = dice.one_in(2);
  KvSizes largest;
  const int n_requests = dice.one_in(4) ? dice.between(6, 12) : dice.between(1, 6);
  int arrives = 0;
  for (int i = 0; i < n_requests; ++i) {
    PlannedRequest& request =
        schedule.requests.emplace_back(random_request(dice, stems, schedule.requests, crowded));
    if (!crowded && !dice.one_in(3)) arrives += dice.below(dice.one_in(4) ? 30 : 5);
    if (crowded && dice.one_in(4)) arrives += dice.below(12);
    request.arrives = arrives;
    const KvSizes needed =
        SequencePages::needed(static_cast<int>(request.prompt.size()) + request.max_tokens,
                              crowded ? kPageTokens : schedule.backend.max_step_tokens, schedule.window);
    largest.n_full_pages = std::max(largest.n_full_pages, needed.n_full_pages);
    largest.n_sliding_pages = std::max(largest.n_sliding_pages, needed.n_sliding_pages);
  }
  const int slack = dice.one_in(3) ? 0 : crowded || dice.one_in(2) ? dice.below(6) : dice.below(40);
  SchedulerOptions& options = schedule.options;
  options.kv = {.n_full_pages = largest.n_full_pages + dice.below(slack + 1),
                .n_sliding_pages = largest.n_sliding_pages + dice.below(slack + 1)};
  options.max_num_seqs = dice.one_in(3) ? dice.between(1, schedule.backend.max_slots) : 0;
  options.max_num_batched_tokens =
      dice.one_in(3) ? dice.between(schedule.backend.max_slots, schedule.backend.max_step_tokens) : 2048;
  // Prompt log-probabilities need two: a token and its successor.
  options.max_num_batched_tokens = std::max({options.max_num_batched_tokens, schedule.backend.max_slots, 2});
  if (dice.one_in(4)) options.long_prefill_chunk = dice.between(1, 24);
  options.one_ahead = !dice.one_in(3);
  options.prefix_cache = !dice.one_in(6);
  options.exact_prefix = dice.one_in(5);
  options.feature_cache_rows = dice.one_in(2) ? 8192 : dice.below(30);
  options.swap_bytes = dice.one_in(2) ? 0 : dice.one_in(2) ? 4096 : size_t{1} << 20;
  options.priority_step = std::chrono::milliseconds(dice.between(1, 10));
  schedule.backend.exact_phases = options.exact_prefix;
  return schedule;
}

ExpectedAnswer expected_answer(const PlannedRequest& request) {
  ExpectedAnswer answer;
  uint64_t prefix = kFakeStart;
  int position = 0;
  for (; position < static_cast<int>(request.prompt.size()); ++position)
    prefix = extend(request, position, request.prompt[static_cast<size_t>(position)], prefix);
  SamplingParams params = request.sampling;
  params.not_before = request.stop_token_ids;
  params.not_before_position = position + request.min_tokens;
  const uint64_t params_hash = fake_params_hash(params);
  FakeMask mask(request.mask_seed, request.mask_fails_after);
  ThinkingOracle thinking(request.thinking.value_or(ThinkingBudget{}));
  for (int i = 1; i <= request.max_tokens; ++i, ++position) {
    std::span<const uint32_t> allowed;
    if (request.mask_seed != 0) {
      const auto words = mask.allowed();
      if (!words.ok()) {
        answer.reason = FinishReason::kError;
        return answer;
      }
      allowed = *words;
    }
    if (request.thinking) allowed = thinking.allowed();
    const TokenId id = fake_next_token(prefix, position, params_hash, params, allowed, kFakeVocabulary);
    answer.tokens.push_back(id);
    answer.logprobs.push_back(fake_logprob(prefix, id));
    (void)mask.accept(id);
    thinking.accept(id);
    const bool stop = std::ranges::find(request.stop_token_ids, id) != request.stop_token_ids.end();
    const bool sink_stop = i == request.sink_stops_after;
    const bool loop = request.guard && repeats(*request.guard, answer.tokens);
    if (stop || sink_stop || loop) {
      answer.reason = stop || sink_stop ? FinishReason::kStop : FinishReason::kRepetition;
      answer.either_stop_or_length = !stop && i == request.max_tokens;
      return answer;
    }
    prefix = fake_extend(prefix, id);
  }
  return answer;
}

PromptLogprobs expected_prompt_logprobs(const PlannedRequest& request) {
  PromptLogprobs logprobs;
  uint64_t prefix = kFakeStart;
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    prefix = extend(request, static_cast<int>(i), request.prompt[i], prefix);
    if (i + 1 < request.prompt.size()) logprobs.token.push_back(fake_logprob(prefix, request.prompt[i + 1]));
    logprobs.top.push_back(fake_top(prefix, request.n_prompt_logprobs, kFakeVocabulary));
  }
  return logprobs;
}

SequenceRequest to_request(const PlannedRequest& planned, EngineTime now, EngineTime step_time) {
  SequenceRequest request;
  request.prompt = planned.prompt;
  for (const PlannedImage& image : planned.images) {
    PromptImage& out = request.images.emplace_back();
    out.content[0] = static_cast<uint8_t>(image.content + 1);
    out.budget = image.count;
    out.patches = fake_picture(image.content, image.count);
    out.position = image.position;
    out.count = image.count;
  }
  request.sampling = planned.sampling;
  request.stop_token_ids = planned.stop_token_ids;
  request.max_tokens = planned.max_tokens;
  request.min_tokens = planned.min_tokens;
  request.priority = planned.priority;
  if (planned.deadline_after >= 0) request.deadline = now + planned.deadline_after * step_time;
  request.cache_salt = planned.salt;
  request.use_prefix_cache = planned.use_prefix_cache;
  request.n_prompt_logprobs = planned.n_prompt_logprobs;
  request.resume_points = planned.resume_points;
  if (planned.mask_seed != 0)
    request.mask = std::make_unique<FakeMask>(planned.mask_seed, planned.mask_fails_after);
  request.thinking_budget = planned.thinking;
  request.repetition_guard = planned.guard;
  return request;
}

std::string describe(const Schedule& schedule) {
  const SchedulerOptions& o = schedule.options;
  std::string text = fmt::format(
      "window {}, slots {}, step {} tokens (budget {}, chunk {}), seqs {}, pages {} full {} sliding, {}, "
      "prefix "
      "cache {}{}, feature rows {}, swap {} B\nfaults: steps {} encode {} read {} write {}\n",
      schedule.window, schedule.backend.max_slots, schedule.backend.max_step_tokens, o.max_num_batched_tokens,
      o.long_prefill_chunk, o.max_num_seqs, o.kv.n_full_pages, o.kv.n_sliding_pages,
      o.one_ahead ? "one ahead" : "in step", o.prefix_cache, o.exact_prefix ? " (exact)" : "",
      o.feature_cache_rows, o.swap_bytes, schedule.faults.steps, schedule.faults.encode_image,
      schedule.faults.read_pages, schedule.faults.write_pages);
  for (size_t i = 0; i < schedule.requests.size(); ++i) {
    const PlannedRequest& r = schedule.requests[i];
    text += fmt::format("  request {} at {}: prompt {}", i, r.arrives, r.prompt);
    for (const PlannedImage& image : r.images)
      text += fmt::format(", image {} at {} + {}", image.content, image.position, image.count);
    text += fmt::format(", max {} min {} stop {}", r.max_tokens, r.min_tokens, r.stop_token_ids);
    if (!r.resume_points.empty()) text += fmt::format(", resume {}", r.resume_points);
    if (r.cancelled_after >= 0) text += fmt::format(", cancelled after {}", r.cancelled_after);
    if (r.deadline_after >= 0) text += fmt::format(", deadline after {}", r.deadline_after);
    if (r.sink_stops_after >= 0) text += fmt::format(", sink stops after {}", r.sink_stops_after);
    if (r.priority != 0) text += fmt::format(", priority {}", r.priority);
    if (!r.salt.empty()) text += fmt::format(", '{}'", r.salt);
    if (!r.use_prefix_cache) text += ", no cache";
    if (r.n_prompt_logprobs >= 0) text += fmt::format(", prompt logprobs {}", r.n_prompt_logprobs);
    if (r.sampling.n_logprobs >= 0) text += fmt::format(", logprobs {}", r.sampling.n_logprobs);
    if (r.mask_seed != 0) text += fmt::format(", mask (fails after {})", r.mask_fails_after);
    if (r.thinking) text += fmt::format(", thinks {}", r.thinking->max_tokens);
    if (r.guard) text += ", guarded";
    text += '\n';
  }
  return text;
}

}  // namespace jewel

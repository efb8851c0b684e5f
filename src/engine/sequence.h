// Sequence: what the scheduler knows about one request. Four counters carry it:
//
//   n_prompt  <=  positions whose K and V come from the prompt; output token i stands at n_prompt + i
//   n_collected   positions computed by steps that have been collected
//   n_submitted   positions computed when every submitted step is done; n_submitted - n_collected are in
//   flight n_sampling    tokens that steps in flight will sample (0 or 1)
//
// A sequence of T known tokens (prompt and output) has sampled all it can when n_submitted reaches
// T + n_sampling: the row at T + n_sampling - 1 samples the next. Everything before is a prompt chunk, or the
// replay of an output token after preemption. Internal to the scheduler.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "engine/feature_cache.h"
#include "engine/pages.h"
#include "engine/prefix_cache.h"
#include "engine/repetition.h"
#include "engine/request.h"
#include "engine/thinking.h"

namespace jewel {

struct Sequence {
  enum class State : uint8_t {
    kWaiting,  // holds nothing (preempted ones: host memory)
    kRunning,
    kEnding,  // finished for its sink; a step in flight still computes for it
  };
  // A point to leave a checkpoint at, when the prefill has passed it.
  struct Point {
    int n_pages = 0;
    PrefixCache::Kind kind = PrefixCache::Kind::kEnd;
  };
  // Pages in host memory.
  struct Swapped {
    std::vector<std::byte> full, sliding;
    int n_full = 0;
    int first_sliding = 0;
    int n_sliding = 0;
    std::vector<uint64_t> serials;  // of the path's nodes: where these live on, their pages need no copy
    size_t bytes() const { return full.size() + sliding.size(); }
  };

  Sequence(SequenceRequest wanted, std::shared_ptr<SequenceSink> to, PagePool& full, PagePool& sliding,
           int sliding_window)
      : request(std::move(wanted)), sink(std::move(to)), pages(full, sliding, sliding_window) {}

  SequenceRequest request;
  std::shared_ptr<SequenceSink> sink;
  EngineTime order{};  // the place in the line: order, then arrival
  uint64_t arrival = 0;

  State state = State::kWaiting;
  SlotId slot = -1;
  std::vector<TokenId> output;
  int n_collected = 0;
  int n_submitted = 0;
  int n_sampling = 0;
  int n_in_flight = 0;  // steps in flight that name it
  bool lost = false;    // a step that computed for it failed: what came after is not its past
  bool use_cache = false;
  bool in_thought = false;  // the last known token, by request.thought
  int patches_encoded = 0;  // of images, for no submitted step yet

  SequencePages pages;
  std::vector<PrefixCache::Node*> path;
  std::vector<Point> points;  // ascending, ahead of n_collected
  int hit_pages = 0;          // it began on these
  uint64_t return_distance = 0;
  std::optional<Swapped> swapped;
  SequenceId waits_for = 0;  // the sequence that computes this one's first wait_pages pages
  int wait_pages = 0;

  std::vector<FeatureCache::Entry*> features;  // by image; null while not needed
  size_t first_image = 0;                      // images before it are behind
  PromptLogprobs prompt_logprobs;
  bool prompt_logprobs_done = false;
  std::optional<ThinkingState> thinking;
  std::optional<RepetitionDetector> repetition;

  bool admitted = false;  // ever
  EngineTime added_at{}, admitted_at{}, first_token_at{}, last_token_at{};
  SequenceStats stats;

  // What every step looks at, and nobody has looked at since the last one.
  void prefetch() const {
    __builtin_prefetch(&request.prompt);
    __builtin_prefetch(&request.max_tokens);
    __builtin_prefetch(&output);
    __builtin_prefetch(&n_in_flight);
    __builtin_prefetch(&pages);
  }

  int n_prompt() const { return static_cast<int>(request.prompt.size()); }
  int n_known() const { return n_prompt() + static_cast<int>(output.size()); }
  bool prefilling() const { return n_submitted < n_prompt(); }
  // Log-probabilities of the prompt are still to be computed.
  bool wants_prompt_logprobs() const { return request.n_prompt_logprobs >= 0 && !prompt_logprobs_done; }
  // The next token can only be planned when every earlier one is known.
  bool needs_host() const { return request.mask != nullptr || (thinking && thinking->needs_host()); }
};

struct BeforeInLine {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return a->order != b->order ? a->order < b->order : a->arrival < b->arrival;
  }
};

}  // namespace jewel

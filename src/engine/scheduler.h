// The scheduler: which sequences are part of the next step, and on which pages.
//
//   JEWEL_ASSIGN(auto scheduler, Scheduler::make(backend, config, options));
//   scheduler->add(std::move(request), sink);
//   while (scheduler->has_work()) scheduler->step();
//
// One thread, the engine's. Deterministic: no clock but options.now, no random numbers, no thread. A step()
// plans and submits one backend step, then collects the oldest one; with options.one_ahead a step is planned
// before the results of the previous one are known, so decode rows go out with tokens the host has not seen.
//
// What a step in flight names (its slots, pages, features, and every span of its chunks) stays as it is until
// that step has been collected. So a sequence that ends while a step still computes for it gives nothing back
// before that step is done, and pages are only copied, evicted or handed on when no step can touch them.
//
// Order. Waiting sequences stand in one line, ordered by arrival + priority * options.priority_step (a
// smaller priority goes first; a waiting one is overtaken by a better priority only within that time). The
// head of the line is admitted when a slot is free and the pages of its prompt are; nobody behind it is
// admitted before it, except when it waits for another sequence to compute its prefix. A step has a row for
// every decoding sequence first; the rest of the token budget goes to prompts, in the order of the line.
// When pages run out, cached ones go first, then the running sequence last in that order is preempted.
//
// Why nothing starves: a sequence's place in the order never changes, and only finitely many can ever stand
// before it. The first running one is never preempted, and add() refuses what could not run alone; so it
// finishes, the next becomes first, and so on. Whoever waits for another's prefix waits only while that one
// is prefilling.
//
// Same answer: a token depends on its prompt, parameters and seed only. A preempted sequence gets its pages
// back from host memory bit by bit, or its positions are computed again in the phase that computed them.
#pragma once

#include <functional>
#include <memory>

#include "backend/backend.h"
#include "base/result.h"
#include "energy/step_watch.h"
#include "engine/request.h"
#include "model/config.h"

namespace jewel {

struct SchedulerOptions {
  KvSizes kv;                         // of backend.allocate_kv()
  int max_model_len = 0;              // prompt + answer; 0 = the model's
  int max_num_seqs = 0;               // 0 = the backend's slots
  int max_num_batched_tokens = 2048;  // per step; at most the backend's max_step_tokens
  int long_prefill_chunk = 0;         // > 0: no prompt takes more of a step than this
  int max_waiting = 4096;             // add() refuses beyond: kUnavailable
  bool one_ahead = true;              // false where submit() computes at once (the CPU)
  bool prefix_cache = true;
  bool exact_prefix = false;      // hits only in pages that prefill wrote
  int feature_cache_rows = 8192;  // soft tokens of encoded images kept for later requests
  // Host memory for pages: of preempted sequences (0: always replay), and of the prefix cache while the
  // device is given back (0: the cache is dropped).
  size_t swap_bytes = size_t{4} << 30;
  EngineTime priority_step = std::chrono::seconds(10);
  bool check_books = false;         // assert the books after every step (always in debug)
  std::function<EngineTime()> now;  // empty = steady_clock
  StepWatch* watch = nullptr;       // told what every step had in it; outlives the scheduler
};

// What the last step() put into its backend step, for cost models, meters and figures.
struct StepReport {
  bool submitted = false;
  bool collected = false;
  int decode_rows = 0;
  int prefill_tokens = 0;
  int images_encoded = 0;
  int image_tokens_encoded = 0;
  int tokens_delivered = 0;  // events, of the step that was collected
};

struct PoolCounts {
  int all = 0, free = 0, held = 0, cached = 0;  // free + held + cached = all
};

struct SchedulerStats {
  int running = 0;
  int waiting = 0;
  PoolCounts full_pages, sliding_pages;
  int cached_features = 0;
  uint64_t steps = 0;
  int steps_failed_in_a_row = 0;       // on the device, since the last that did not
  uint64_t requests_finished[6] = {};  // by FinishReason
  uint64_t prompt_tokens = 0;          // of admitted sequences
  uint64_t prefill_tokens_computed = 0;
  uint64_t prefill_tokens_recomputed = 0;  // replay after preemption
  uint64_t tokens_generated = 0;
  uint64_t prefix_queries = 0;  // tokens looked up, and found
  uint64_t prefix_hits = 0;
  uint64_t image_queries = 0;  // images, and those not encoded again
  uint64_t image_hits = 0;
  uint64_t preemptions = 0;
  uint64_t preemptions_swapped = 0;
};

// What giving the device back came to.
struct ReleaseReport {
  int pages_kept = 0;  // of the prefix cache, in host memory
  size_t bytes_kept = 0;
  int checkpoints_dropped = 0;
};

class Scheduler {
 public:
  // Allocates the backend's KV pages. `backend` and `config` must outlive the scheduler; no other code uses
  // the backend while it lives.
  static Result<std::unique_ptr<Scheduler>> make(Backend& backend, const ModelConfig& config,
                                                 SchedulerOptions options);
  ~Scheduler();  // every sequence must be finished (cancel_all())
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Whether this request could ever run; add() asks it too. Any thread.
  Result<void> check(const SequenceRequest& request) const;

  // An Error is the caller's answer: the sink gets no event then.
  Result<SequenceId> add(SequenceRequest request, std::shared_ptr<SequenceSink> sink);

  // Ends a sequence at once, as far as its sink is concerned (on_finished is called before this returns). An
  // id that is not live is ignored: it may have finished a moment ago. kStop: by a stop string.
  void cancel(SequenceId id, FinishReason reason = FinishReason::kCancelled);
  void cancel_all(FinishReason reason = FinishReason::kCancelled);
  void fail_all(const Error& error);  // the same with kError

  // One turn: deadlines, admission, one backend step submitted when there is anything to compute, the oldest
  // one collected (with one_ahead: unless it is the one just submitted and more work can be planned).
  StepReport step();

  // False: step() would do nothing until the next add().
  bool has_work() const;
  // The earliest deadline of a live sequence, for whoever sleeps.
  std::optional<EngineTime> next_deadline() const;

  const SchedulerStats& stats() const;
  const SchedulerOptions& options() const;

  // Asserts that every page is exactly one of free, held and cached, and that each is held by those who say
  // they hold it. O(pages).
  void check_books() const;

  // Drops everything cached that no sequence holds.
  void clear_cache();

  // Deep idle, with a backend that can (can_release()) and while no sequence is live. The pages of the prefix
  // cache go to host memory, as far as options.swap_bytes allow (beyond, the least valuable are evicted), and
  // encoded images are dropped. restore_device() brings the pages back under the same ids, so that the books
  // know nothing of it; an Error leaves everything released, to be tried again. In between sequences may be
  // added and cancelled, but step() is not called.
  ReleaseReport release_device();
  Result<void> restore_device();
  bool device_released() const;

 private:
  class Impl;
  explicit Scheduler(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

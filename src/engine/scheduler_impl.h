// The scheduler's inside, in five files: scheduler.cc (the line of requests, ends of sequences), admission.cc
// (from waiting to running, preemption and back), plan.cc (the next step), collect.cc (what a step brought),
// deep_idle.cc (the device given back and had again). Rules and reasons stand in scheduler.h.
#pragma once

#include <array>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/scheduler.h"
#include "engine/sequence.h"

namespace jewel {

class Scheduler::Impl {
 public:
  Impl(Backend& backend, const ModelConfig& config, SchedulerOptions options);
  ~Impl();

  Result<void> check(const SequenceRequest& request) const;
  Result<SequenceId> add(SequenceRequest request, std::shared_ptr<SequenceSink> sink);
  void cancel(SequenceId id, FinishReason reason);
  void cancel_all(FinishReason reason, const std::optional<Error>& error = std::nullopt);
  StepReport step();
  bool has_work() const { return !live_.empty(); }
  std::optional<EngineTime> next_deadline() const { return next_deadline_; }
  const SchedulerStats& stats();
  const SchedulerOptions& options() const { return options_; }
  void check_books() const;
  void clear_cache();
  ReleaseReport release_device();
  Result<void> restore_device();
  bool device_released() const { return saved_.has_value(); }

 private:
  struct Row {
    Sequence* sequence = nullptr;
    int begin = 0;
    int end = 0;
    bool sample = false;
    bool prompt_logprobs = false;
    int image_patches = 0;
    size_t first_run = 0, n_runs = 0;  // in Step::runs
  };
  // A backend step's arguments, reused: there are two, since one may be in flight while the next is planned.
  struct Step {
    std::vector<Row> rows;
    std::vector<StepChunk> chunks;
    std::vector<SoftTokenRun> runs;
  };
  // Cached pages of one pool in host memory, while the device is given back.
  struct SavedPool {
    std::vector<PageId> pages;
    std::unique_ptr<std::byte[]> bytes;
  };
  struct SavedPages {
    SavedPool full, sliding;
  };
  enum class Admission : uint8_t { kAdmitted, kWaitsForPrefix, kBlocked };
  enum class Plan : uint8_t {
    kReady,
    kNothing,  // no sequence can go on (without the results of the step in flight, if there is one)
    kShort,    // pages are short, and those of the step in flight cannot be touched
  };
  enum class Outcome : uint8_t { kGood, kShort, kGone };  // of planning one row

  // scheduler.cc
  void expire();
  void finish(Sequence& sequence, FinishReason reason, TokenId stop_token = -1,
              std::optional<Error> error = std::nullopt);
  void leave_line(Sequence& sequence);
  void release(Sequence& sequence);
  void give_up_resources(Sequence& sequence);
  EngineTime clock() const;

  // admission.cc
  void admit();
  Admission try_admit(Sequence& sequence);
  Admission try_swap_in(Sequence& sequence);
  bool should_wait_for_prefix(Sequence& sequence, int max_pages);
  bool still_waits(const Sequence& sequence) const;
  bool has_room(int full_pages, int sliding_pages) const;
  bool make_room(LayerType pool, int n_pages);
  void start_running(Sequence& sequence);
  void set_points(Sequence& sequence);
  void preempt(Sequence& victim);
  bool swap_out(Sequence& victim);

  // plan.cc
  Plan plan();
  Outcome plan_decode(Sequence& sequence, Step& step);
  Outcome plan_prefill(Sequence& sequence, Step& step, int budget);
  Outcome find_pages(Sequence& sequence, int& end, Step& step);
  bool use_images(Sequence& sequence, Row& row, Step& step);
  bool set_mask(Sequence& sequence, StepChunk& chunk);
  void submit();

  // collect.cc
  void collect();
  void tell_watch(const Step& step, const StepResult* result);
  void collect_failed(Step& step, const Error& error);
  void collect_row(const Row& row, SampledToken* sampled, PromptLogprobs* logprobs);
  void take_prompt_logprobs(Sequence& sequence, const Row& row, PromptLogprobs& logprobs);
  void take_token(Sequence& sequence, SampledToken& token);
  void register_pages(Sequence& sequence, int n_pages);
  void pass_points(Sequence& sequence);
  void keep_answer(Sequence& sequence);

  // deep_idle.cc
  size_t cached_bytes() const;
  Result<SavedPool> save_pool(LayerType type) const;
  Result<void> load_pool(LayerType type, const SavedPool& saved);

  int in_flight() const { return static_cast<int>(n_submitted_steps_ - n_collected_steps_); }
  int parity() const { return static_cast<int>(n_submitted_steps_ % 2); }

  Backend& backend_;
  const ModelConfig& config_;
  SchedulerOptions options_;
  int window_;
  PagePool full_, sliding_;
  PrefixCache cache_;
  FeatureCache features_;

  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> live_;
  std::set<Sequence*, BeforeInLine> waiting_;
  std::vector<Sequence*> running_;     // in the order of the line
  std::vector<Sequence*> prefilling_;  // those of running_ whose prompt is not done; also a few that are
  std::vector<SlotId> free_slots_;
  std::array<Step, 2> steps_;
  uint64_t n_submitted_steps_ = 0;
  uint64_t n_collected_steps_ = 0;
  uint64_t next_id_ = 1;
  uint64_t next_arrival_ = 1;
  size_t swapped_bytes_ = 0;
  std::optional<SavedPages> saved_;          // while the device is given back
  std::optional<EngineTime> next_deadline_;  // not later than the earliest
  EngineTime now_{};

  // The head of the line was refused; try again when something was given back, or after a few steps.
  const Sequence* blocked_ = nullptr;
  uint64_t blocked_at_release_ = 0;
  uint64_t blocked_at_step_ = 0;
  uint64_t n_releases_ = 0;
  int turns_without_progress_ = 0;

  std::vector<RowWork> row_work_;  // of the step that is told to options_.watch
  StepReport report_;
  SchedulerStats stats_;
};

}  // namespace jewel

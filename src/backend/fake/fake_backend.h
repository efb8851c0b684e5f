// FakeBackend: a backend without arithmetic, for everything in the engine and the server that is not
// arithmetic.
//
// It runs the fake model (fake_model.h) on real page tables: a page's bytes are the hashes of the positions
// it holds, so read_pages, write_pages and sharing behave as with real K and V. With `check` it holds the
// engine to the whole contract of backend.h and to the rules that only show later as wrong answers:
//   - tokens and positions of a slot are contiguous and are the prompt, then the output, in their phases;
//   - every position that attention would read (all of them in full layers, the window in sliding ones) has a
//     page, and the page holds what this very past wrote there; nothing is read behind a kNoPage;
//   - no page is written that another sequence can see, nor read in the step in which another writes it;
//   - tables grow, entries change only to kNoPage; arguments are unchanged until collect();
//   - rows without tokens only where a token was sampled; sampling only where the next token is not known;
//   - features are alive, sequences not ended, and pages not copied while a step in flight uses them;
//   - slots, step sizes, masks.
// A broken rule goes to `on_violation`, or stops the program.
//
// submit() computes at once, results are handed out by collect(), in order. Faults can be injected, and time:
// a step costs what `step_cost` says, either slept or added to a clock that nobody waits for (now_seconds()).
// The simulator of `jewel bench --simulate` is this with costs and without checks.
//
// Who calls: the engine's thread alone, as for every backend; counters may be read by others once it rests.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace jewel {

// What one step has to do, for a model of its cost.
struct StepWork {
  int decode_rows = 0;
  int prefill_tokens = 0;
  int prefill_chunks = 0;
  int images = 0;                     // encoded since the last step
  int image_soft_tokens = 0;          // of those images
  int64_t decode_context_tokens = 0;  // positions that decode rows attend to in full layers
};

struct FakeOptions {
  int max_slots = 8;
  int max_step_tokens = 64;
  int sliding_window = 32;  // visible keys, the query's own included, as TextConfig
  int vocab_size = 64;
  bool check = true;
  // Every position of a sequence must have been computed in its own phase, also in shared pages: what
  // --exact-prefix promises.
  bool exact_phases = false;
  // The id of output token `index` (0 = first) of a prompt; instead of the hash's choice. Masks then are not
  // applied.
  std::function<TokenId(std::span<const TokenId> prompt, int index)> script;
  // Gets the first broken rule (later ones may be its echo). Default: JEWEL_CHECK.
  std::function<void(const std::string&)> on_violation;

  enum class Time : uint8_t { kNone, kVirtual, kSleep };
  Time time = Time::kNone;
  std::function<double(const StepWork&)> step_cost;  // seconds
  std::function<double(size_t)> copy_cost;  // seconds for read_pages and write_pages of that many bytes
  // What info() says of a page, where the books should count another model's bytes (no checks then, and
  // copies move nothing). 0: what the fake really holds.
  size_t full_page_bytes = 0;
  size_t sliding_page_bytes = 0;
};

// Faults, by the number of the call that fails (0 = first since construction).
struct FakeFaults {
  std::set<int64_t> steps;  // collect() of that step is an Error; what it wrote is lost
  std::set<int64_t> encode_image;
  std::set<int64_t> read_pages;
  std::set<int64_t> write_pages;
  bool allocate_kv = false;
};

struct FakeCounters {
  int64_t steps = 0;
  int64_t prefill_tokens = 0;  // computed, so without prefix hits
  int64_t decode_tokens = 0;   // replayed ones included
  int64_t images = 0;
  int64_t pages_read = 0;  // by read_pages
  int64_t pages_written = 0;
  int64_t failed_steps = 0;
  int max_rows = 0;  // the most chunks in a step
};

class FakeBackend : public Backend {
 public:
  explicit FakeBackend(FakeOptions options, FakeFaults faults = {});
  ~FakeBackend() override;

  const BackendInfo& info() const override { return info_; }
  Result<void> allocate_kv(const KvSizes& sizes) override;
  Result<FeatureId> encode_image(const ImagePatches& patches) override;
  void release_feature(FeatureId feature) override;
  void begin_sequence(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
                      std::span<const TokenId> output) override;
  void end_sequence(SlotId slot) override;
  void submit(std::span<const StepChunk> chunks) override;
  Result<StepResult> collect() override;
  Result<void> read_pages(LayerType pool, std::span<const PageId> pages, std::span<std::byte> out) override;
  Result<void> write_pages(LayerType pool, std::span<const PageId> pages,
                           std::span<const std::byte> in) override;
  void observe_stages(StageObserver) override {}

  const FakeCounters& counters() const { return counters_; }
  int n_live_slots() const;
  int n_live_features() const { return static_cast<int>(features_.size()); }
  int n_steps_in_flight() const;
  // The host's clock: under kVirtual the end of the last collected step, or what advance_to() said since (a
  // host with nothing to run waits for its next arrival); under kSleep seconds since construction.
  double now_seconds() const;
  void advance_to(double seconds);
  const std::string& violation() const { return violation_; }  // the first, or empty

 private:
  struct Entry;     // what a page holds of one position
  struct Pool;      // the bytes of one pool
  struct Slot;      // a live sequence
  struct InFlight;  // a step between submit and collect
  struct Feature {
    uint64_t hash = 0;
    int n_rows = 0;
    int64_t last_step = -1;  // that reads it
  };

  template <typename... Args>
  void violate(fmt::format_string<Args...> format, Args&&... args) {
    report_violation(fmt::format(format, std::forward<Args>(args)...));
  }
  void report_violation(std::string message);
  size_t page_bytes(LayerType type) const {
    return type == LayerType::kFull ? info_.full_page_bytes : info_.sliding_page_bytes;
  }
  void spend_copy(size_t bytes);

  Pool& pool(LayerType type) { return type == LayerType::kFull ? *full_ : *sliding_; }
  Slot* live_slot(SlotId slot);
  bool in_flight(int64_t step) const;  // submitted, not collected
  bool check_shape(std::span<const StepChunk> chunks);
  bool check_tokens(const StepChunk& chunk, const Slot& slot);
  void take_tables(const StepChunk& chunk, Slot& slot);
  void check_exclusive(const StepChunk& chunk, const Slot& slot);
  bool read_past(const StepChunk& chunk, Slot& slot, LayerType type);
  void write_chunk(const StepChunk& chunk, Slot& slot, bool failed);
  uint64_t extend(const StepChunk& chunk, int i, uint64_t prefix);
  void run_chunk(const StepChunk& chunk, bool failed, StepResult& result);
  void sample(const StepChunk& chunk, Slot& slot, StepResult& result);
  void check_arguments(const InFlight& step);

  FakeOptions options_;
  FakeFaults faults_;
  BackendInfo info_;
  std::unique_ptr<Pool> full_;
  std::unique_ptr<Pool> sliding_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::map<FeatureId, Feature> features_;
  std::deque<InFlight> in_flight_;
  FakeCounters counters_;
  FeatureId next_feature_ = 1;
  int64_t encode_calls_ = 0, read_calls_ = 0, write_calls_ = 0;
  int images_since_step_ = 0, image_tokens_since_step_ = 0;
  double now_s_ = 0;          // the host's clock under kVirtual
  double device_free_s_ = 0;  // when the last submitted step ends
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  bool copies_ = true;  // pages hold bytes
  std::string violation_;
};

}  // namespace jewel

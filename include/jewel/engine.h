// Jewel as a library: load a Gemma 4 checkpoint, submit requests, read answers as they come.
//
//   auto engine = jewel::Engine::load("models/jewel-demo");
//   auto stream = (*engine)->submit({.messages = {jewel::text_message("user", "Who are you?")}});
//   while (auto update = stream->next()) std::cout << update->content() << std::flush;
//
// Threads. An Engine runs a thread that computes, threads that prepare requests (pictures, templates,
// grammars) and threads that turn tokens into text. Every method of Engine may be called from any thread at
// any time. A Stream belongs to one thread at a time; its cancel() may come from any.
//
// Memory. A reader that falls behind loses nothing: pieces are put together while they wait. One that leaves
// more than EngineOptions::max_unread_bytes unread has its request ended with an error. The computing thread
// never waits for a reader.
//
// This header needs the standard library alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "jewel/output.h"
#include "jewel/request.h"
#include "jewel/result.h"

namespace jewel {

inline constexpr double kIdleReleaseAuto = -1;

struct EngineOptions {
  std::string device = "auto";  // auto, cpu, cuda, cuda:1
  std::string dtype = "auto";   // auto (bfloat16), bfloat16, float32 (CPU)
  std::string kv_cache_dtype =
      "auto";            // auto (the checkpoint's scheme, else bfloat16), bfloat16, fp8, float32 (CPU)
  int n_threads = 0;     // of the CPU backend; 0: every core this process may use
  int max_num_seqs = 0;  // requests computed at once; 0: 4 on a CPU, 32 on a GPU
  int max_num_batched_tokens = 2048;  // of one step
  int max_model_len = 0;              // prompt and answer of a request; 0: the model's
  double gpu_memory_utilization = 0.9;
  std::string lm_head_dtype =
      "auto";                // GPU: auto (the checkpoint's), fp8 (scales per row, made while loading)
  std::string ple = "auto";  // GPU: the per-layer embedding table: auto, device, host
  std::string prefill_activations = "auto";  // GPU: auto (what the checkpoint asks for), bf16, fp8
  std::string tokenizer;  // directory with tokenizer and template in place of the model's; empty: the model's
  std::string chat_template;  // Jinja source; empty: the tokenizer's directory's
  std::string generation_config =
      "auto";               // sampling defaults: auto (the model's), vllm (none), or a directory
  int max_new_tokens = 0;   // of every answer; 0: what generation_config says, else no limit
  double kv_cache_gib = 0;  // memory for KV pages in all; 0: what max_num_seqs × max_model_len and the prefix
                            // cache need, as far as there is
  bool prefix_caching = true;
  bool exact_prefix = false;    // reuse only pages that a prompt's computation wrote, none of an answer's
  double prefix_cache_gib = 4;  // beside the pages of running requests
  int max_waiting = 1024;       // requests waiting for their turn; more are refused (kUnavailable)
  int max_images = 16;          // of one request
  size_t max_image_bytes = size_t{20} << 20;
  size_t max_unread_bytes = size_t{8} << 20;
  std::string meter = "auto";     // of joules: auto (the device's, where it can be read), none, nvml, rapl
  bool prepare_grammars = false;  // at load, in the background, instead of at the first request with one
  int n_workers = 2;              // threads that prepare requests
  // Seconds without requests after which the device is given back, to be had again by the next request, which
  // waits for it. 0: never; kIdleReleaseAuto: 30 on a GPU, never on a CPU, where only memory would be saved.
  double idle_release_s = 0;
  std::function<void(size_t done, size_t total)> progress;  // bytes of weights read while loading
};

struct ModelInfo {
  std::string directory;
  std::string backend;  // "cpu (avx512-bf16, 2 threads)"
  std::string dtype;
  std::string kv_cache_dtype;
  int max_model_len = 0;
  int vocab_size = 0;
  int max_num_seqs = 0;
  bool has_vision = false;
  bool has_chat_template = false;
  int max_soft_tokens = 0;  // of an image, unless the request says otherwise
  int max_logprobs = 0;     // most alternatives a request may ask for; what the backend can give
  int page_tokens = 0;      // positions in a KV page
  int n_full_pages = 0;     // of full-attention layers, each over all of these layers
  int n_sliding_pages = 0;
  std::optional<int> max_new_tokens;  // the limit for every answer
  Sampling default_sampling;          // generation_config.json's
  std::vector<int32_t> stop_token_ids;
  std::string energy_method = "none";  // "nvml", "rapl"
  std::string energy_device;           // what the meter measures: "NVIDIA L4", "package-0"
  std::string why_no_energy;           // when there is no meter
  std::vector<std::string> notes;      // what a person should know and need not act on
};

// The meter's counters since start: image + prefill + decode + idle + unattributed = counter, but for what
// was drawn since the counter's last ticks.
struct EnergyStats {
  double image_joules = 0;
  double prefill_joules = 0;
  double decode_joules = 0;
  double idle_joules = 0;
  double unattributed_joules = 0;  // while the counter could not be read
  double counter_joules = 0;
  double residual_joules =
      0;              // that ended requests were charged too little or too much, for others to take over
  double watts = 0;   // now
  double tick_s = 0;  // of the counter; 0: not known yet
};

// Counters since start and gauges of now.
struct Stats {
  int under_way = 0;  // submitted, and their last Update is not out yet
  int running = 0;
  int waiting = 0;  // prepared, and not begun
  int preparing = 0;
  double kv_usage = 0;  // pages that requests hold, of all: 0 to 1
  uint64_t prompt_tokens = 0;
  uint64_t cached_prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t prefix_queries = 0;  // tokens of prompts looked up in the prefix cache, and found
  uint64_t prefix_hits = 0;
  uint64_t image_queries = 0;  // images, and those that were not encoded again
  uint64_t image_hits = 0;
  uint64_t finished = 0;  // however they ended
  uint64_t cancelled = 0;
  uint64_t failed = 0;
  uint64_t preemptions = 0;
  uint64_t steps = 0;
  std::optional<EnergyStats> energy;  // where a meter is
  int steps_failed_in_a_row = 0;  // on the device, since the last that did not; their requests failed
  bool idle_released = false;     // the device is given back now (EngineOptions::idle_release_s)
  uint64_t idle_releases = 0;
  double idle_released_s = 0;      // in all, up to now
  uint64_t idle_wakes = 0;         // by requests that found it given back
  double idle_wake_s = 0;          // of all of them together
  uint64_t idle_wakes_failed = 0;  // their requests failed
  int idle_wakes_failed_in_a_row = 0;
};

using UpdateCallback = std::function<void(Update&&)>;

// A request under way. Destroying it cancels it.
class Stream {
 public:
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  // Waits for the next Update; none after the one that had `finish`.
  std::optional<Update> next();
  // The same for at most that long: an Update without anything in it when the time is up.
  std::optional<Update> next_for(std::chrono::milliseconds limit);

  // The request ends soon, as kCancelled, if it has not ended already. Any thread.
  void cancel();

 private:
  friend class Engine;
  struct State;
  explicit Stream(std::shared_ptr<State> state);
  std::shared_ptr<State> state_;
};

// A request whose Updates go to a callback. Destroying it does not cancel.
class Ticket {
 public:
  Ticket();
  void cancel() const;  // any thread, also from inside the callback

 private:
  friend class Engine;
  explicit Ticket(std::weak_ptr<void> request);
  std::weak_ptr<void> request_;
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> load(const std::string& directory,
                                              const EngineOptions& options = {});

  // Cancels what is under way and waits for its threads.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Returns at once. An Error here: the request as such is impossible, or too many wait. What only shows
  // while it is prepared (a broken picture, a prompt that is too long, a template's complaint) comes as the
  // first Update's `finish` with an error.
  Result<Stream> submit(Request request);

  // The callback runs on one of the engine's output threads, one call at a time and in order, the last with
  // `finish`; it must not block and must not throw.
  Result<Ticket> submit(Request request, UpdateCallback on_update);

  // The same checks and the prompt's ids, computing nothing; blocks for as long as pictures take to decode.
  Result<PromptInfo> prompt_of(const Request& request) const;

  // Text to ids and back; special tokens' names in the text are tokens when `parse_special`.
  Result<std::vector<int32_t>> tokenize(std::string_view text, bool parse_special) const;
  Result<std::string> detokenize(std::span<const int32_t> ids) const;

  const ModelInfo& info() const;
  Stats stats() const;

  // From now on submit() says kUnavailable; returns when nothing is under way, or false after `limit`.
  bool drain(std::chrono::milliseconds limit);

 private:
  friend struct EngineAccess;
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

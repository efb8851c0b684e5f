// LiveRequest: one request from submit() to its last Update; where the engine's thread, the output threads
// and the reader meet.
//
// The engine's thread only appends to `arrived_` and, when nobody is at it yet, posts a job to the output
// pool. That job (one at a time per request, so what it works with needs no lock) detokenizes, parses, looks
// for stop texts and hands an Update on: to the callback, or into `unread_`, where updates that nobody has
// taken yet become one. A lock is held for a few moves at a time and never while anything is computed or
// called.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "api/worker_pool.h"
#include "energy/energy_meter.h"
#include "engine/engine_loop.h"
#include "jewel/engine.h"
#include "text/output_parser.h"
#include "text/stop_strings.h"

namespace jewel {

// How a request's tokens become what its client reads.
struct AnswerFormat {
  PromptInfo prompt;
  std::vector<TokenId> prompt_ids;  // where the parser begins, and what prompt_logprobs speak of
  bool parse = true;
  bool skip_special = true;
  std::vector<std::string> stop;
  bool include_stop = false;
  int min_tokens = 0;
  bool wants_logprobs = false;
  double image_s = 0;
};

// The engine for as long as there is one: requests may outlive it.
class EngineLink {
 public:
  explicit EngineLink(EngineLoop* loop) : loop_(loop) {}
  void cut() {
    const std::scoped_lock lock(mutex_);
    loop_ = nullptr;
  }
  void cancel(SequenceId id, FinishReason reason) {
    const std::scoped_lock lock(mutex_);
    if (loop_ != nullptr) loop_->cancel(id, reason);
  }

 private:
  std::mutex mutex_;
  EngineLoop* loop_;
};

class LiveRequest final : public SequenceSink, public std::enable_shared_from_this<LiveRequest> {
 public:
  struct Wiring {
    const Tokenizer* tokenizer = nullptr;
    const SpecialIds* special = nullptr;
    WorkerPool* output = nullptr;
    std::shared_ptr<EngineLink> engine;
    EnergyMeter* meter = nullptr;  // lives as long as the output pool works
    size_t max_unread_bytes = 0;
    double load_s = 0;                          // of the engine, for Timings
    UpdateCallback on_update;                   // empty: a reader calls next()
    std::function<void(const Finish&)> on_end;  // once, before the reader sees the last Update
  };

  explicit LiveRequest(Wiring wiring);

  // The reader's side. A `limit` that passes gives an empty Update.
  std::optional<Update> next(std::optional<std::chrono::milliseconds> limit);
  void cancel();

  // The preparing worker's side, in this order: begin() before the engine knows the request, then started()
  // or fail().
  bool cancelled() const { return cancelled_; }
  void begin(AnswerFormat format);
  void started(SequenceId id);
  void fail(Error error);

  // The engine's thread.
  Continue on_token(const TokenEvent& event) override;
  void on_prompt_logprobs(SequenceId sequence, PromptLogprobs logprobs) override;
  void on_finished(const Finished& finished) override;

 private:
  using Clock = std::chrono::steady_clock;

  struct Arrived {
    std::vector<SampledToken> tokens;
    std::optional<PromptLogprobs> prompt_logprobs;
    std::optional<Finished> finished;
    bool measured = false;  // the meter was asked what `finished` cost
    std::optional<RequestJoules> joules;
    std::optional<Error> failed;
    bool nothing() const { return tokens.empty() && !prompt_logprobs && !finished && !failed; }
  };

  template <typename Change>
  void arrive(const Change& change);
  void work();
  bool measure(Arrived& arrived);
  Update digest(Arrived arrived);
  void take_token(const SampledToken& token, Update& update);
  void take_events(std::vector<OutputEvent> events, Update& update);
  void add_content(std::string text, Update& update);
  void end_text(Update& update);
  Finish finish_of(const Finished& finished, const std::optional<RequestJoules>& joules);
  void deliver(Update update);
  TokenChance chance_of(const TokenLogprob& logprob) const;
  OutputToken described(TokenId id, const TokenLogprob* logprob, const std::vector<TokenLogprob>& top) const;
  std::vector<OutputToken> described(const PromptLogprobs& logprobs) const;

  const Wiring wiring_;
  const Clock::time_point submitted_ = Clock::now();
  std::atomic<bool> cancelled_ = false;

  std::mutex mutex_;
  std::condition_variable readable_;
  Arrived arrived_;
  bool working_ = false;     // a job of the output pool is at this request
  SequenceId sequence_ = 0;  // 0: not known yet
  std::optional<Clock::time_point> first_token_;
  Update unread_;
  size_t unread_bytes_ = 0;
  bool readable_now_ = false;  // unread_ holds something
  bool ended_ = false;         // the last Update is in unread_ or was taken
  bool overflowed_ = false;

  // Of the job that is at it.
  AnswerFormat format_;
  std::optional<OutputParser> parser_;
  std::optional<Detokenizer> detokenizer_;  // when nothing is parsed
  std::optional<StopStrings> stops_;
  bool prompt_told_ = false;
  bool stop_found_ = false;
  int calls_ = 0;
  Usage usage_;
  std::optional<Clock::time_point> handed_over_;  // to the engine
};

// Appends what `later` says to `update`, pieces of one kind joined.
void append(Update& update, Update later);
size_t bytes_of(const Update& update);

}  // namespace jewel

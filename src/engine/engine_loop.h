// EngineLoop: the one thread that owns scheduler and backend, and the mailbox in front of it.
//
// submit(), cancel() and stats() may be called from any thread; each holds a lock for a few pointers' worth
// of work. Sinks are called on the engine's thread (engine/request.h). The thread sleeps in the kernel when
// no sequence is live, and between steps only as long as the backend makes it wait.
//
// Deep idle: after `idle_release_s` without a live sequence the device is given back, and the next submit()
// has it restored first. When that fails, whoever waits is told so (kUnavailable), and the submit() after it
// tries again. Reading stats() or cancelling wakes nothing.
#pragma once

#include <memory>

#include "engine/scheduler.h"

namespace jewel {

enum class Shutdown : uint8_t {
  kDrain,  // live and waiting sequences finish; new ones are refused
  kNow,    // they are cancelled
};

struct IdleStats {
  bool released = false;  // now
  uint64_t releases = 0;
  double released_s = 0;  // in all, up to now; wakes included
  uint64_t wakes = 0;
  double wake_s = 0;  // of all wakes together
  uint64_t wakes_failed = 0;
  int wakes_failed_in_a_row = 0;
};

struct EngineStats {
  SchedulerStats scheduler;
  double step_s_last = 0;  // submit to submit, while busy
  double step_s_mean = 0;  // over the last 64 steps
  double busy_s = 0;       // time with work, since the start
  IdleStats idle;
};

class EngineLoop {
 public:
  // `backend` and `config` must outlive the loop. Only the loop's thread uses the backend from here on.
  // `idle_release_s` 0: the device is never given back; more wants a backend that can_release().
  static Result<std::unique_ptr<EngineLoop>> start(Backend& backend, const ModelConfig& config,
                                                   SchedulerOptions options, double idle_release_s = 0);
  ~EngineLoop();  // Shutdown::kNow when still running
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // The request is checked, and its pages are hashed, on the calling thread. request.id is chosen here.
  // Errors: what Scheduler::check() refuses; kUnavailable when the line is full or the engine shuts down.
  Result<SequenceId> submit(SequenceRequest request, std::shared_ptr<SequenceSink> sink);

  // The sink's on_finished comes from the engine's thread soon after. Unknown ids are ignored.
  void cancel(SequenceId id, FinishReason reason = FinishReason::kCancelled);

  // As of the last step; `idle` as of now.
  EngineStats stats() const;

  // Returns when the thread has ended; every sink has got its on_finished.
  void shutdown(Shutdown how);

 private:
  struct Impl;
  explicit EngineLoop(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace jewel

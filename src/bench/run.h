// One run of a benchmark: requests go to a target, by concurrency (the next one when one ends) or by rate (at
// their times, whatever the target does), and what came back is kept with its times.
//
// With a rate, a request's times count from the moment at which it should have been sent: a target that holds
// us up cannot hide it.
//
// The steady window. By concurrency c > 1: from when c requests had their first token until the last request
// was sent, so that c are under way all the time (the rule of the ML.ENERGY benchmark); by rate: from the
// first answer's end until the last arrival. Rates and joules are of the window. A run too short to have one
// (fewer than 3 c requests, or nothing between) is taken whole, and says so.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "base/result.h"
#include "bench/target.h"

namespace jewel {

struct Load {
  int concurrency = 1;
  double rate = 0;  // requests a second, Poisson; 0: by concurrency

  std::string text() const;  // "8 at once", "2.5/s"
};

struct RunPlan {
  Load load;
  std::vector<int> exact_tokens;  // of each request that is ready in the target, or 0: all are sent
  uint64_t seed = 0;              // of the arrivals
  // Raised by a signal handler: nothing more is sent, and the run ends without what is under way.
  const std::atomic<bool>* cancel = nullptr;

  int requests() const { return static_cast<int>(exact_tokens.size()); }
};

struct RequestRecord {
  using Clock = ChatAnswer::Clock;
  Clock::time_point due;   // when it should have been sent
  Clock::time_point sent;  // when it was
  int exact_tokens = 0;    // the answer must be that long; 0: as long as it likes
  std::string error;       // empty: answered
  ChatAnswer answer;       // without its texts
  bool ok() const { return error.empty(); }
};

struct RunRecord {
  using Clock = ChatAnswer::Clock;
  Load load;
  std::vector<RequestRecord> requests;
  Clock::time_point begun, ended;
  Clock::time_point window_begin, window_end;
  bool steady = false;  // the window is one
  double late_s = 0;    // the most that a request was sent too late; by rate
  bool cancelled = false;
};

// Seconds from the start at which requests arrive: exponential gaps, the same for the same seed everywhere.
std::vector<double> arrival_times(int requests, double rate, uint64_t seed);

// `on_progress` sees how many have ended, on the calling thread.
RunRecord run_requests(Target& target, const RunPlan& plan,
                       const std::function<void(int ended)>& on_progress = {});

// Sets the window from the times of the requests; for run_requests and tests.
void find_window(RunRecord& run);

}  // namespace jewel

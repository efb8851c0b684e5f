// What one run says: latencies of the requests that were sent inside its steady window, rates and joules of
// the window. Pure functions over a RunRecord.
//
//   first token      due to the first piece of the answer
//   between tokens   the gap from one piece to the next, shared by the tokens that came with the later one
//   request          due to the stream's end
//   output tok/s     tokens that came inside the window / its length
//   J/token          joules of the window, idle draw included / tokens that came inside
//   J/request        J/token × mean length of an answer, so that requests cut by the window's edges count
//                    right
//
// Tokens are counted by usage; a request's tokens are spread evenly over its pieces.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/meter.h"
#include "bench/run.h"
#include "bench/statistics.h"

namespace jewel {

struct RunFigures {
  int requests = 0;   // all of the run
  int in_window = 0;  // sent inside the window and answered
  int failed = 0;
  std::string first_error;
  bool steady = false;
  double window_s = 0;
  double late_s = 0;

  std::optional<Distribution> first_token_s, between_tokens_s, request_s;
  std::vector<double> first_tokens_s, gaps_s, requests_s;  // behind them
  double output_tokens_per_s = 0;
  double prompt_tokens_per_s = 0;
  double requests_per_s = 0;

  // Means of a request.
  double prompt_tokens = 0, output_tokens = 0;
  std::optional<double> cached_tokens, image_tokens, reasoning_tokens;  // where the server says so
  int without_usage = 0;  // the server did not count: tokens are pieces
  int wrong_length = 0;   // answers that were to have a length and have another

  // Where a meter is.
  std::optional<double> joules, joules_per_token, joules_per_request, watts;
  std::optional<double> celsius_max, sm_mhz_min, memory_mhz_min;
  std::vector<std::pair<double, double>> power;  // seconds since the run began, watts
  std::optional<ServerEnergy> server_energy;     // mean of what the server says of each request
};

// `meter` nullptr: no joules.
RunFigures figures_of(const RunRecord& run, MeterTrace* meter);

}  // namespace jewel

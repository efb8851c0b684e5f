// The simulator: the real scheduler over a backend that computes nothing and takes the time a model says.
//
//   JEWEL_ASSIGN(Trace trace, synthetic_trace({.requests = 1000, .rate = 20}));
//   JEWEL_ASSIGN(CostModel cost, parse_cost_model("h200"));
//   JEWEL_ASSIGN(SimulationResult result, simulate(trace, cost, {.max_num_seqs = 32}));
//
// Everything but the arithmetic is what serves: admission, chunked prefill, pages, prefix cache, preemption,
// one step ahead. Time is a number, so that minutes of traffic take a second, and the same inputs give the
// same figures everywhere. What it leaves out: HTTP, tokenizing, images' host work, and all that a linear
// cost model leaves out. Compare settings with it; do not quote its milliseconds as the device's.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "engine/simulator/cost_model.h"
#include "engine/simulator/trace.h"

namespace jewel {

struct SimulationSettings {
  int max_num_seqs = 32;
  int max_num_batched_tokens = 2048;
  int long_prefill_chunk = 0;  // 0: no limit
  double kv_gib = 8;           // pages of both pools
  double swap_gib = 4;
  bool prefix_cache = true;
  bool one_ahead = true;
  // Of E4B with FP8 K and V.
  int full_kib_per_token = 8;
  int sliding_kib_per_token = 20;
  int sliding_window = 512;
  int max_model_len = 131072;
};

struct Percentiles {
  int64_t n = 0;
  double p50 = 0, p90 = 0, p99 = 0, max = 0, mean = 0;
};
Percentiles percentiles(std::vector<double> values);

struct SimulationResult {
  SimulationSettings settings;
  int requests = 0;
  int refused = 0;        // could never run with these settings, or the line was full
  double seconds = 0;     // simulated, first arrival to last answer
  double busy_share = 0;  // of the device
  int64_t steps = 0;
  double rows_per_step = 0;  // decode rows
  double output_tokens_per_s = 0;
  double prompt_tokens_per_s = 0;  // cached ones included
  double hit_rate = 0;             // cached of prompt tokens
  int64_t images_encoded = 0;
  int64_t preemptions = 0;
  Percentiles ttft_s, inter_token_s, request_s, queue_s;
  double wall_s = 0;  // what the simulation itself took
  // The model's own ceiling: max_num_seqs rows in every step, no prefill, no context.
  double output_tokens_per_s_ceiling = 0;
};

// Errors: the KV memory does not hold one request; the first request that is refused, when all are.
Result<SimulationResult> simulate(const Trace& trace, const CostModel& cost,
                                  const SimulationSettings& settings);

}  // namespace jewel

// The part of `jewel bench` that runs the scheduler over a model of a step's cost (--simulate).
#pragma once

#include <string>
#include <vector>

#include "cli/commands.h"
#include "engine/simulator/simulator.h"

namespace jewel {

struct SimulateFlags {
  std::string trace;
  std::string write_trace;
  std::string json_file;
  std::string cost = "h200";
  SyntheticTraffic traffic;
  std::string prompt_tokens = "lognormal:350:0.8";
  std::string output_tokens = "lognormal:128:0.6";
  std::string think_s = "exp:5";
  std::vector<int> max_num_seqs = {32};
  std::vector<int> max_num_batched_tokens = {2048};
  std::vector<int> long_prefill_chunk = {0};
  std::vector<double> kv_gib = {8};
  std::vector<std::string> prefix_cache = {"on"};
  double swap_gib = 4;
};

// Its options that mean nothing otherwise; `trace` is the option that fills SimulateFlags::trace.
void add_simulate_options(CLI::App& app, CLI::Option* simulate, CLI::Option* trace, SimulateFlags& flags);

int simulate_bench(SimulateFlags flags);

}  // namespace jewel

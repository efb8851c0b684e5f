// What an Engine is made of, for code inside of Jewel: commands that need the backend before it belongs to
// the engine's thread, and tests that put a fake one in its place.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "energy/energy_meter.h"
#include "jewel/engine.h"
#include "model/config.h"
#include "text/prompt.h"

namespace jewel {

struct EngineParts {
  std::string directory;
  std::shared_ptr<void> owner;  // what must live as long as the backend: the mapped weights
  ModelConfig config;
  GenerationConfig generation;
  ProcessorConfig processor;
  std::vector<TokenId> stop_token_ids;
  std::vector<std::string> notes;
  std::shared_ptr<PromptBuilder> prompts;
  std::unique_ptr<Backend> backend;
  size_t kv_memory_bytes = 0;  // what the device can give to KV pages
  bool one_ahead = false;      // the backend computes while the engine plans
  double idle_release_s = 0;   // > 0: the backend can be released, and is after so long without work
  FoundCounter energy;
  EnergyMeterOptions meter_options;
};

// Opens the checkpoint and makes the backend that options.device names.
Result<EngineParts> open_parts(const std::string& directory, const EngineOptions& options);

// Engine::load is open_parts and this.
Result<std::unique_ptr<Engine>> make_engine(EngineParts parts, const EngineOptions& options);

// Sampling as generation_config.json asks; ids that stand for media are never sampled.
SamplingParams default_sampling(const ModelConfig& config, const GenerationConfig& generation);

}  // namespace jewel

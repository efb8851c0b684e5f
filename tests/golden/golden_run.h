// Runs a backend on a golden's prompts and holds every stage against what the reference computed.
//
// Two ways. Compare: the pass runs freely, so a stage's error holds all errors before it. Feed: after each
// stage its values are replaced by the reference's own (the BF16 run's, stored in full), so a stage's error
// is its own alone. One thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "checkpoint/checkpoint.h"
#include "golden_file.h"
#include "random_weights.h"

namespace jewel {

// The weights a golden was captured on: drawn from its seed, or the demo model's directory.
struct GoldenModel {
  std::unique_ptr<RandomModel> random;
  std::unique_ptr<Checkpoint> checkpoint;

  static GoldenModel of(const GoldenFile& golden, const std::string& demo_directory,
                        RandomScheme scheme = RandomScheme::kBF16);
  const ModelConfig& config() const { return random ? random->config : checkpoint->config(); }
  const ModelWeights& weights() const { return random ? random->weights : checkpoint->weights(); }
};

// A CPU backend with room for the goldens' prompts; its KV cache is float32 where its activations are.
// Null when `isa` is asked for and this machine lacks it.
std::unique_ptr<Backend> golden_backend(const ModelConfig& config, const ModelWeights& weights, DType dtype,
                                        std::optional<CpuIsa> isa = {});

// How far a stage is from the reference, over the kept rows and columns.
struct StageError {
  Stage stage = Stage::kEmbed;
  int layer = -1;
  double difference = 0;  // sum of squares
  double reference = 0;   // sum of squares
  float max_abs = 0;
  int rows = 0;

  double relative() const {
    return reference > 0 ? std::sqrt(difference / reference) : std::sqrt(difference);
  }
};

enum class StageMode : uint8_t { kCompare, kFeed };

class StageTap {
 public:
  // Arrays named "<prefix>/…" of the golden; kFeed wants prefix "forced".
  StageTap(const GoldenFile& golden, std::string prefix, StageMode mode);

  // The step that runs next: tokens [position, position + n_tokens) of the prompt.
  void expect_chunk(int position, int n_tokens);
  StageObserver observer();

  // In the order in which stages first ran.
  const std::vector<StageError>& errors() const { return errors_; }
  // Stages of the golden that never ran; vision's only where `vision`.
  std::vector<std::string> unseen(bool vision) const;

 private:
  void see(Stage stage, int layer, std::span<float> values, int rows, int columns);
  const std::vector<int>& kept_rows(Stage stage) const;
  const GoldenArray& array(const std::string& name);
  StageError& error_of(Stage stage, int layer);

  const GoldenFile& golden_;
  const std::string prefix_;
  const StageMode mode_;
  const GoldenCase* case_ = nullptr;  // kCompare
  std::vector<int> all_rows_;         // kFeed
  int position_ = 0;
  int n_tokens_ = 0;
  std::map<std::string, GoldenArray> arrays_;
  std::vector<StageError> errors_;
};

struct GoldenPrompt {
  std::vector<TokenId> ids;
  std::vector<int> chunk_ends;  // ascending, the last is ids.size(); the token after each end is sampled
  std::optional<FeatureId> feature;
};

// Runs the prompt chunk by chunk in slot 0; `tap` may be null. Returns the greedy token after each chunk.
std::vector<TokenId> run_prompt(Backend& backend, const ModelConfig& config, const GoldenPrompt& prompt,
                                StageTap* tap);

// The patches of a case: from the golden, or the picture decoded, resized and cut by src/image, its bytes
// checked.
Result<ImagePatches> golden_patches(const GoldenFile& golden, const GoldenCase& golden_case,
                                    const ModelConfig& config);

// What a whole case gives: stages compared, one chunk or cut at the kept rows.
enum class Chunking : uint8_t { kWhole, kAtKeptRows };
StageTap run_case(Backend& backend, const ModelConfig& config, const GoldenFile& golden,
                  const GoldenCase& golden_case, Chunking chunking);

// The stages fed with the reference's input, vision and decoder; kWhole as one chunk, else token by token.
StageTap run_fed(Backend& backend, const ModelConfig& config, const GoldenFile& golden, Chunking chunking);

// A table: stage, layer, relative L2, largest difference, verdict; ends with the first stage over the
// tolerance.
std::string stage_table(const std::vector<StageError>& errors, double tolerance);

const StageError& worst_stage(const std::vector<StageError>& errors);
const StageError& error_of_stage(const std::vector<StageError>& errors, Stage stage);

}  // namespace jewel

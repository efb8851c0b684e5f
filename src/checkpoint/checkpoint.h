// A model directory, opened: its JSON files parsed, its tensors mapped, validated and bound to ModelWeights.
//
//   JEWEL_ASSIGN(auto checkpoint, Checkpoint::open("models/jewel-demo"));
//   auto backend = make_cpu_backend(checkpoint->config(), checkpoint->weights(), {});
//
// The checkpoint owns the mapping: it must outlive every backend that reads the weights. Opening touches
// headers and small tensors only; large ones are paged in by their first use, or ahead of it by read_ahead().
// Immutable after open(): any thread may read.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/safetensors.h"
#include "model/config.h"
#include "model/tensors.h"
#include "model/weights.h"

namespace jewel {

class Checkpoint {
 public:
  static Result<std::unique_ptr<Checkpoint>> open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const GenerationConfig& generation() const { return generation_; }
  const ProcessorConfig& processor() const { return processor_; }
  const std::optional<QuantizationConfig>& quantization() const { return quantization_; }
  const ModelWeights& weights() const { return weights_; }
  const SafetensorsDirectory& files() const { return *files_; }
  NamePrefix prefix() const { return prefix_; }

  // Ids that end an answer: generation_config's list, else config.json's.
  const std::vector<TokenId>& stop_token_ids() const {
    return generation_.eos_token_ids.empty() ? config_.eos_token_ids : generation_.eos_token_ids;
  }

  // What a person should know and need not act on: "audio tower is in the checkpoint and is not run".
  const std::vector<std::string>& notes() const { return notes_; }

  // Pages in every weight that each token needs (not the embedding tables, of which a token needs one row),
  // calling `progress(done, total)` in bytes. Optional: makes the first token come after a visible wait
  // instead of a silent one.
  void read_ahead(const std::function<void(size_t done, size_t total)>& progress) const;

 private:
  Checkpoint() = default;
  Result<void> read_json_files();
  Result<void> bind_tensors();
  Result<void> bind(const TensorSpec& spec, const SafetensorsDirectory::Tensor& tensor);
  Result<void> bind_linear(const TensorSpec& spec, const TensorView& view, const std::string& where,
                           LinearWeight& linear);
  TensorView aligned(const TensorView& view);

  std::string directory_;
  ModelConfig config_;
  GenerationConfig generation_;
  ProcessorConfig processor_;
  std::optional<QuantizationConfig> quantization_;
  std::optional<SafetensorsDirectory> files_;
  NamePrefix prefix_ = NamePrefix::kMultimodal;
  ModelWeights weights_;
  std::deque<std::vector<std::byte>> copies_;  // tensors that lie at odd addresses in their file
  std::vector<std::string> notes_;
};

}  // namespace jewel

// BF16 checkpoint in, FP8 compressed-tensors checkpoint out: the engine of `jewel quantize`.
//
// The output is an ordinary Hugging Face directory: quantized and copied tensors, config.json with
// quantization_config, every other file of the source untouched. It is built beside the destination and
// renamed at the end, so the destination is complete or absent at every moment; the source is only read.
// Memory stays bounded by a few tensors per thread, whatever the model's size: files are read ahead and
// written behind by the system while all threads convert.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/fp8_quantize.h"

namespace jewel {

enum class PleLinears : uint8_t {
  kBf16,
  kFp8
};  // per_layer_input_gate, per_layer_projection, per_layer_model_projection
enum class Unused : uint8_t { kKeep, kDrop };  // K and V of layers that read another layer's

struct QuantizeOptions {
  ScaleStrategy strategy = ScaleStrategy::kTensor;
  std::vector<std::string>
      ignore;  // regular expressions over module names, beside what the scheme leaves alone
  PleLinears ple_linears = PleLinears::kBf16;
  Unused unused = Unused::kKeep;
  size_t shard_bytes = 0;  // 0 = one file
  int n_threads = 0;       // 0 = every usable core
  // Per-layer scales of K and V by layer index, measured elsewhere; empty = none.
  std::map<int, std::pair<float, float>> kv_scales;
};

// What happens to one tensor of the source.
enum class TensorAction : uint8_t { kQuantize, kCopy, kDrop };

struct PlannedTensor {
  std::string name;
  TensorAction action = TensorAction::kCopy;
  std::vector<int64_t> shape;
  size_t source_bytes = 0;
  size_t result_bytes = 0;  // with scales
};

struct QuantizePlan {
  std::vector<PlannedTensor> tensors;
  std::vector<std::string> ignored_modules;  // linears that stay as they are, for quantization_config
  size_t source_bytes = 0;
  size_t result_bytes = 0;
  int n_quantized = 0;
};

struct QuantizedTensor {
  std::string name;
  Fp8Error error;
};

struct QuantizeReport {
  QuantizePlan plan;
  size_t source_file_bytes = 0;
  size_t result_file_bytes = 0;
  double convert_s = 0;
  double verify_s = 0;
  std::vector<QuantizedTensor> verified;  // empty when verification was left out
};

// The text of the result's README.md, made from the run's figures. `built` is the directory that is about to
// be put in place.
using ModelCard = std::function<Result<std::string>(const QuantizeReport& report, const std::string& built)>;

// How such a text begins: a heading, what was quantized and how, an empty line.
std::string fp8_card_head(const QuantizeOptions& options, const QuantizePlan& plan);

// Bytes of the source done, of all; called by the calling thread a few times a second.
using QuantizeProgress = std::function<void(std::string_view what, size_t done, size_t total)>;

// Reads headers only.
Result<QuantizePlan> plan_quantize(const std::string& source, const QuantizeOptions& options);

// `destination` must not exist. `cancel` may be raised by a signal handler: then the half result is removed
// and the Error is kCancelled. With `verify` the result is read again and compared with the source before it
// is renamed into place.
Result<QuantizeReport> quantize_checkpoint(const std::string& source, const std::string& destination,
                                           const QuantizeOptions& options, bool verify,
                                           const std::atomic<bool>& cancel, const QuantizeProgress& progress,
                                           const ModelCard& model_card);

}  // namespace jewel

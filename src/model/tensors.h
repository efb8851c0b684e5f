// The one table of tensors: every tensor of a Gemma 4 by checkpoint name, with its shape, its kind and the
// field of ModelWeights that it fills. The loader, the quantizer and `jewel inspect` all read this table.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace jewel {

enum class TensorKind : uint8_t { kLinear, kEmbedding, kNorm, kScalar };
enum class Part : uint8_t {
  kEmbeddings,
  kPerLayerEmbeddings,
  kAttention,
  kMlp,
  kPerLayerInput,
  kNorms,
  kHead,
  kVision
};
std::string_view part_name(Part part);

struct TensorSpec {
  std::string name;  // as in the checkpoint: "model.language_model.layers.3.mlp.up_proj.weight"
  std::vector<int64_t> shape;
  TensorKind kind = TensorKind::kLinear;
  Part part = Part::kAttention;
  bool required = true;      // false: K and V of shared layers, a head that is tied, KV scales
  bool quantizable = false;  // a decoder linear that the published FP8 scheme quantizes
  // Where it goes; monostate for tensors that are accepted and never used.
  std::variant<std::monostate, LinearWeight*, TensorView*, NormWeight*, float*> field;
};

// The prefix of decoder names: "model.language_model." in multimodal checkpoints, "model." in text-only ones.
enum class NamePrefix : uint8_t { kMultimodal, kTextOnly };

// Sizes `weights`' vectors for `config` and lists every tensor with pointers into it. `weights` must stay
// where it is while the pointers are used.
std::vector<TensorSpec> tensor_table(const ModelConfig& config, NamePrefix prefix, ModelWeights& weights);

}  // namespace jewel

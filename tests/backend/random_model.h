// Small random Gemma 4 models for tests: a resolved config, and weights that own their memory. The same seed
// gives the same model. Scales are chosen so that activations stay near 1 and every part changes the answer:
// norm weights around 1, q and k norms around 0.3, layer scalars off 1, clip bounds that clip.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace jewel {

struct RandomModelOptions {
  int hidden_size = 128;
  int intermediate_size = 192;
  int n_layers = 8;
  int full_every = 3;  // layers 2, 5, … are full, and the last
  int n_kv_shared_layers = 3;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 32;
  int global_head_dim = 64;
  int sliding_window = 40;
  int vocab_size = 300;
  int per_layer_input = 32;  // 0: none
  bool double_wide_mlp = false;
  float softcap = 30;
  bool vision = false;
  int vision_hidden = 64;
  int vision_intermediate = 128;
  int vision_layers = 2;
  int vision_heads = 4;
  int position_embedding_size = 64;
  int patch_size = 4;
  int max_position_embeddings = 4096;
  DType weight_dtype = DType::kBF16;  // of all products; embeddings are BF16 where this is FP8
  enum class Scale : uint8_t { kNone, kTensor, kRow } scale = Scale::kNone;
  // FP8 only where published checkpoints have it: q, k, v, o, gate, up and down of the decoder's layers.
  bool fp8_as_published = false;
  // The norms in front of q, k, v, gate and up come multiplied by this power of two, the scales of those
  // weights divided by it: the same model, with activations that FP16 has no room for. Needs `scale`.
  float norm_factor = 1;
  uint64_t seed = 1;
  bool repeat_values = false;  // large tensors repeat their first 524287 values: for measuring speed
};

struct RandomModel {
  ModelConfig config;
  ModelWeights weights;

  static constexpr TokenId kImageToken = 5;
  static constexpr TokenId kAudioToken = 6;

 private:
  friend std::unique_ptr<RandomModel> random_model(const RandomModelOptions& options);
  std::deque<std::vector<std::byte>> storage_;
};

std::unique_ptr<RandomModel> random_model(const RandomModelOptions& options);

// Ids without placeholders.
std::vector<TokenId> random_tokens(const ModelConfig& config, int n, uint64_t seed);
ImagePatches random_image(const ModelConfig& config, int grid_h, int grid_w, uint64_t seed);

// The weights as float32, scale applied.
std::vector<float> widened(const TensorView& tensor);
std::vector<float> widened(const LinearWeight& linear);

}  // namespace jewel

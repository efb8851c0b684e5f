// Random weights that need no storage: every value is a pure function of (seed, tensor name, index).
//
// tools/random_checkpoint/random_weights.py is the same generator in numpy and gives the same bits, so a
// golden captured from Transformers on weights that Python wrote can be checked here on weights that C++
// draws. What makes that possible: the hash is integer arithmetic, the sum of uniforms is an integer below
// 2^18, and what follows is at most one float32 product and one float32 sum, rounded once to bfloat16.
//
//   state   = mix(fnv1a64(name) + seed * kGamma)
//   hash(i) = mix(state + (i + 1) * kGamma)                       splitmix64, counted
//   sum(i)  = the four 16-bit parts of hash(i) added, - 131070    mean 0, deviation 37837
//   value   = bf16(mean + float(sum) * step)                      step = bf16(std / 37837)
//
// The rules (mean and deviation by name) keep a deep random model well-behaved: linears keep variance, q_norm
// and k_norm near 0.3 make attention neither flat nor one-hot, layer_scalar lies in 0.3-0.9, clip bounds cut
// a few per cent.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace jewel {

struct RandomRule {
  enum class Kind : uint8_t { kGaussian, kUniform } kind = Kind::kGaussian;
  double mean = 0;  // kUniform: the lower end
  double std = 1;   // kUniform: the width
};

// The rule of a tensor, by its checkpoint name and shape.
RandomRule random_rule(std::string_view name, std::span<const int64_t> shape);

// Values [begin, begin + out.size()) of the tensor, as bfloat16 bits.
void random_values(std::string_view name, std::span<const int64_t> shape, uint64_t seed, int64_t begin,
                   std::span<uint16_t> out);

enum class RandomScheme : uint8_t { kBF16, kFp8PerTensor, kFp8PerChannel };

// Owns the bytes that a ModelWeights' views point into.
struct RandomModel {
  ModelConfig config;
  ModelWeights weights;
  std::vector<std::vector<std::byte>> storage;
};

// Fills every tensor of model.config that the forward pass reads, by the table of tensors. FP8 schemes
// quantize what the table calls quantizable: scale = bf16(amax / 448), code = e4m3(bf16(w / scale)). Uses
// n_threads threads.
void fill_random_weights(RandomModel& model, uint64_t seed, RandomScheme scheme, int n_threads);

// FNV-1a over the bits of the first and the last 4,096 values: what Python and C++ drew, compared in one
// number. (A value is a function of its index alone, so the middle cannot differ where both ends agree.)
uint64_t random_tensor_digest(std::string_view name, std::span<const int64_t> shape, uint64_t seed);

}  // namespace jewel

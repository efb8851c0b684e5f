// What a token of a checkpoint costs at least, counted from its tensors: the ceilings of a benchmark are this
// over what the machine can read and multiply. Pure functions.
#pragma once

#include "bench/target.h"
#include "checkpoint/checkpoint.h"

namespace jewel {

// How a backend holds what the file has.
struct HeldWeights {
  bool head_fp8 = false;         // the head in FP8
  bool per_layer_table = false;  // per-layer inputs of all tokens, worked out while loading (CUDA)
};

// Bytes: every weight that a decode step reads, and one row of each embedding table; K and V not counted.
// FLOP: two for each weight of a product.
ModelWork work_of(const Checkpoint& checkpoint, const HeldWeights& held);

// The least time of a decode step of `rows` rows, and of a prompt; 0 when not known.
double least_step_s(const ModelWork& work, const Rates& rates, double rows);
double least_prompt_s(const ModelWork& work, const Rates& rates, double tokens);

}  // namespace jewel

// Sampling on the device: from rows of logits to tokens, with the rules of cpu/sampler.h.
//
// Every row belongs to a slot, and a slot has its parameters and history in device memory: nothing of a step
// comes from the host but which rows sample. The token is written to the row's place in `ids` and to
// last_tokens[slot], where the slot's next decode row finds it, so the host need not have seen it.
//
// Sums of probabilities are integers (2^-44 of the largest): their order cannot change a result, so a row's
// token does not depend on how threads are scheduled.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/host_device.h"

namespace jewel::cuda {

struct BiasedToken {
  int32_t id = 0;
  float bias = 0;
};

// One slot's SamplingParams, as the device reads them.
struct SlotSampling {
  float temperature = 1;  // <= 0: greedy
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int not_before_position = 0;
  uint64_t seed = 0;
  const BiasedToken* biases = nullptr;
  const int32_t* never = nullptr;
  const int32_t* not_before = nullptr;
  // [vocab], null without penalties: bit 31 = in the prompt, the rest = how often in the output.
  uint32_t* seen = nullptr;
  int n_biases = 0;
  int n_never = 0;
  int n_not_before = 0;
};

// Whether a row of these parameters, without a mask, can be decided by the largest of each tile of logits:
// its logits are what the head made of them, but for a few that are never sampled.
inline constexpr int kMaxTopK = 128;      // beyond, and without, all of a row's logits are read
inline constexpr int kMostByTiles = 192;  // of the wanted and the masked together
JEWEL_HOST_DEVICE inline bool by_tiles(const SlotSampling& p) {
  const int wanted = p.temperature <= 0 ? 1 : p.top_k;
  return p.seen == nullptr && p.n_biases == 0 && wanted >= 1 && wanted <= kMaxTopK &&
         wanted + p.n_never + p.n_not_before <= kMostByTiles;
}

struct SampleRows {
  float* logits =
      nullptr;  // [n, vocab]; rows are overwritten by what penalties, biases and masks make of them
  // The largest of each 16 logits of a row, [n, logit_tile_stride(vocab)] (decode_product.h), NaN where a row
  // has no more tiles; or null: all logits are read.
  const float* tile_max = nullptr;
  // All rows are by_tiles() and without a mask: no kernel is launched for others.
  bool all_by_tiles = false;
  int vocab = 0;
  int n = 0;
  const int32_t* slots = nullptr;            // [n]
  const int32_t* positions = nullptr;        // [n], of the row itself: the sampled token stands one further
  const SlotSampling* sampling = nullptr;    // [slots]
  const uint32_t* const* allowed = nullptr;  // [n], null: everything; a bit per id
  int32_t* ids = nullptr;                    // [n]; -1 where no token survives
  int32_t* last_tokens = nullptr;            // [slots]
  // Null, or where the device finds the address of a second place for the ids, [n]: the host's memory.
  int32_t* const* also_ids = nullptr;
  // Launched by programmatic dependent launch, behind the kernel that makes the logits.
  bool overlap = false;
  // sample_workspace() bytes, zeroed once, then left as it should be found. Null: one block a row, slowly.
  void* workspace = nullptr;
  int workspace_rows = 0;  // what it was sized for
};
size_t sample_workspace(int max_rows);
cudaError_t launch_sample_rows(const SampleRows& sample, cudaStream_t stream);

// Adds ids to a slot's history (begin_sequence): prompt ids set bit 31, output ids count.
cudaError_t launch_note_seen(uint32_t* seen, int vocab, const int32_t* ids, int n, bool output,
                             cudaStream_t stream);

constexpr int kMaxTopLogprobs = 64;

struct RowLogprobs {
  int32_t id = 0;
  int32_t rank = 0;
  float logprob = 0;
  int32_t n_top = 0;
  int32_t top_ids[kMaxTopLogprobs];
  float top_logprobs[kMaxTopLogprobs];
};

// Log-probabilities of ids[r] and of the n_top[r] best (ties by id) under row r's logits as they are: rows
// that want them are copied before sampling overwrites them.
struct LogprobRows {
  const float* logits = nullptr;  // [n, vocab]
  int vocab = 0;
  int n = 0;
  const int32_t* ids = nullptr;    // [n]; < 0: no token, only the best
  const int32_t* n_top = nullptr;  // [n]; -1: nothing at all
  RowLogprobs* out = nullptr;      // [n]
};
cudaError_t launch_logprob_rows(const LogprobRows& rows, cudaStream_t stream);

}  // namespace jewel::cuda

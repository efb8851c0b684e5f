// Sampling parameters and history of every slot, in device memory (sampler.h).
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/sampler.h"

namespace jewel::cuda {

class SlotSamplings {
 public:
  static Result<std::unique_ptr<SlotSamplings>> make(int max_slots, int vocab);

  // Enqueued on `stream`; the slot takes no part in a step that is still running.
  void begin(SlotId slot, const SamplingParams& params, std::span<const TokenId> prompt,
             std::span<const TokenId> output, cudaStream_t stream);

  // Of a row of the slot without a mask (sampler.h).
  bool by_tiles(SlotId slot) const { return by_tiles_[static_cast<size_t>(slot)]; }
  int n_logprobs(SlotId slot) const { return n_logprobs_[static_cast<size_t>(slot)]; }
  const SlotSampling* slots() const { return slots_.as<const SlotSampling>(); }
  int32_t* last_tokens() const { return last_tokens_.as<int32_t>(); }

 private:
  SlotSamplings() = default;

  int vocab_ = 0;
  DeviceBuffer slots_;               // [slots] SlotSampling
  DeviceBuffer last_tokens_;         // [slots]
  std::vector<DeviceBuffer> lists_;  // of each slot: biases, never, not_before
  std::vector<DeviceBuffer> seen_;   // of each slot that ever had penalties: [vocab]
  std::vector<int> n_logprobs_;
  std::vector<bool> by_tiles_;
};

}  // namespace jewel::cuda

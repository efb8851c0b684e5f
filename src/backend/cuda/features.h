// Soft tokens of encoded images, in device memory.
#pragma once

#include <map>
#include <memory>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/device_weights.h"

namespace jewel::cuda {

class Features {
 public:
  static Result<std::unique_ptr<Features>> make(const ModelConfig& config, const DeviceVision& vision,
                                                bool portable);
  virtual ~Features() = default;

  // Enqueues the vision tower; the rows are there for what is enqueued after.
  virtual Result<FeatureId> encode(const ImagePatches& patches, cudaStream_t stream) = 0;
  virtual void release(FeatureId feature, cudaStream_t stream) = 0;
  // Soft tokens [row, row + count) of a feature: FP32 [count, hidden].
  virtual float* rows(FeatureId feature, int row, int count) const = 0;
};

}  // namespace jewel::cuda

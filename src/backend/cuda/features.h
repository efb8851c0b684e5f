// Soft tokens of encoded images, in device memory.
//
// Images run on a stream of their own, whose kernels give way to the step's: rows that decode go on beside
// them. Images that came since the last step are encoded together, as one batch or several (vision_batch.h
// says how large). A batch starts when the next image finds no room in it, and at the latest with start(),
// which submit() calls. The engine asks for an image while it plans the step that reads it, so where nothing
// else runs an image starts within microseconds, and a loaded server finds in one batch what came while it
// computed. A batch never waits for more images: that would only add to the time to the first token.
//
// Which images share a batch changes no bit of the result. The engine's thread; `stream` is the step's.
#pragma once

#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/device_weights.h"

namespace jewel::cuda {

class Features {
 public:
  static Result<std::unique_ptr<Features>> make(const ModelConfig& config, const DeviceVision& vision,
                                                bool portable, bool graphs);
  virtual ~Features() = default;

  // Takes an image into the next batch; its pixels are copied.
  virtual Result<FeatureId> add(const ImagePatches& patches) = 0;
  // Enqueues the images taken since. What fails is told by await().
  virtual void start() = 0;
  // What is enqueued on `stream` from here on finds the soft tokens; they have been started. Error: a batch
  // of theirs failed.
  virtual Result<void> await(std::span<const FeatureId> features, cudaStream_t stream) = 0;
  virtual void release(FeatureId feature, cudaStream_t stream) = 0;
  // Soft tokens [row, row + count) of a feature: FP32 [count, hidden]. Only an address: await() comes before
  // what reads there.
  virtual float* rows(FeatureId feature, int row, int count) const = 0;
};

}  // namespace jewel::cuda

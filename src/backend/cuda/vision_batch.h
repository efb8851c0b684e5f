// Batches of images through the vision tower, one after another on one stream, in fixed memory: one CUDA
// graph serves every batch with the same list of grids, most often that of a single image. A list is captured
// when it comes for the second time, since most lists of several images come once; its first time also loads
// the kernels. The graphs used longest ago go. The memory grows with the largest batch so far, and all graphs
// go when it does.
//
// The engine's thread. Every call is given the same stream.
#pragma once

#include <list>
#include <span>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/vision_encoder.h"

namespace jewel::cuda {

class VisionBatch {
 public:
  // Of several images; an image with more is a batch of its own. It is what the largest image has (1,120 soft
  // tokens), so batches need no more memory than such an image: 0.3 GB for E4B's tower. Four images of the
  // usual size give every multiprocessor of an H200 two tiles or more of each product; more images would only
  // lengthen each kernel, and with it what a decode kernel waits for a free multiprocessor.
  static constexpr int kMaxPatches = 10080;

  VisionBatch(const VisionShape& shape, const VisionDeviceWeights& weights, ProductDesign design, bool graphs)
      : shape_(shape), encoder_(shape, weights, design), graphs_(graphs) {}

  // Makes room for a batch of this many patches; waits for the batches before where there is none. What there
  // was stays where that fails.
  Result<void> reserve(int n_patches, cudaStream_t stream);

  // Enqueues the copy of `pixels` (page-locked, image after image), records `sent` behind it, then the tower.
  // At most VisionEncoder::kMaxImages images, for which there is room.
  Result<void> enqueue(std::span<const VisionGrid> grids, const std::byte* pixels, cudaEvent_t sent,
                       cudaStream_t stream);
  // Of the last batch, until the next: FP32 [sum of soft tokens, text_hidden].
  const float* soft_tokens() const { return soft_tokens_; }

 private:
  struct Known {
    std::vector<VisionGrid> grids;
    Graph graph;  // from the second time on
  };

  void carve(Carver& carver, int n_patches);

  VisionShape shape_;
  VisionEncoder encoder_;
  bool graphs_;
  DeviceBuffer memory_;
  int capacity_ = 0;  // patches
  std::byte* pixels_ = nullptr;
  float* soft_tokens_ = nullptr;
  std::byte* workspace_ = nullptr;
  std::list<Known> known_;  // lists of grids, the last used first
};

}  // namespace jewel::cuda

#include "backend/cuda/vision_batch.h"

#include <algorithm>

namespace jewel::cuda {
namespace {

constexpr size_t kMaxKnown = 32;  // a graph of E4B's tower has some 150 kernels

}  // namespace

Result<void> VisionBatch::enqueue(std::span<const VisionGrid> grids, const std::byte* pixels,
                                  cudaEvent_t sent, cudaStream_t stream) {
  int n = 0;
  for (const VisionGrid& grid : grids) n += grid.patches();
  JEWEL_CHECK(n <= capacity_, "a batch of {} patches, room for {}", n, capacity_);
  const size_t bytes = static_cast<size_t>(n) * static_cast<size_t>(shape_.patch_values);
  JEWEL_CUDA_TRY(cudaMemcpyAsync(pixels_, pixels, bytes, cudaMemcpyHostToDevice, stream), "sending images");
  JEWEL_CUDA_TRY(cudaEventRecord(sent, stream), "sending images");

  const auto encode = [&]() -> Result<void> {
    JEWEL_CUDA_TRY(
        encoder_.encode(grids, reinterpret_cast<const uint8_t*>(pixels_), soft_tokens_, workspace_, stream),
        "the vision tower");
    return {};
  };
  if (!graphs_) return encode();
  const auto known =
      std::ranges::find_if(known_, [&](const Known& k) { return std::ranges::equal(k.grids, grids); });
  if (known == known_.end()) {
    JEWEL_TRY(encode());
    known_.push_front({.grids = {grids.begin(), grids.end()}, .graph = {}});
    if (known_.size() > kMaxKnown) known_.pop_back();
    return {};
  }
  known_.splice(known_.begin(), known_, known);
  // Without memory for a graph it runs as it did the first time.
  if (!known->graph.get() && !known->graph.capture(stream, "the vision tower's graph", encode).ok()) {
    cudaGetLastError();
    return encode();
  }
  JEWEL_CUDA_TRY(cudaGraphLaunch(known->graph.get(), stream), "the vision tower");
  return {};
}

// Grows by doubling, so that it happens a few times at most.
Result<void> VisionBatch::reserve(int n_patches, cudaStream_t stream) {
  if (n_patches <= capacity_) return {};
  JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "waiting for images");
  const int wanted = std::max(n_patches, std::min(2 * capacity_, kMaxPatches));
  Carver count(nullptr);
  carve(count, wanted);
  auto larger = DeviceBuffer::make(count.used(), "the vision tower");
  if (larger.ok()) {
    known_.clear();  // graphs remember where the memory was
    memory_ = std::move(*larger);
    capacity_ = wanted;
  }
  Carver take(memory_.data());
  carve(take, capacity_);
  if (!larger.ok()) return larger.error();
  return {};
}

void VisionBatch::carve(Carver& carver, int n_patches) {
  const auto n = static_cast<size_t>(n_patches);
  const auto cell = static_cast<size_t>(shape_.pooling) * static_cast<size_t>(shape_.pooling);
  pixels_ = carver.take<std::byte>(n * static_cast<size_t>(shape_.patch_values));
  soft_tokens_ = carver.take<float>(n / cell * static_cast<size_t>(shape_.text_hidden));
  workspace_ = carver.take<std::byte>(encoder_.workspace_bytes(n_patches));
}

}  // namespace jewel::cuda

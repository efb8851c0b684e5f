// KV memory on the device: two pools of pages, and the page tables of every slot.
//
// Each owning layer has the pages of its pool in one block (attention_types.h), so a page of the engine is
// one page of every owning layer of the pool; copies to the host gather them in the order of the layers.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/attention_types.h"
#include "backend/cuda/device.h"
#include "backend/cuda/device_weights.h"
#include "backend/cuda/step_ops.h"

namespace jewel::cuda {

class KvPools {
 public:
  KvPools(const ModelConfig& config, const DeviceWeights& weights, KvFormat format, int max_slots);

  Result<void> allocate(const KvSizes& sizes);
  bool allocated() const { return tables_.data() != nullptr; }

  size_t page_bytes(LayerType type) const { return pool(type).page_bytes; }
  AttentionShape shape(int layer) const;
  // K and V that `layer` reads: its own or those of its source.
  KvLayer kv(int layer) const;

  // What is new in a slot's table since the last call; appended to `out`. begin() forgets a slot's table.
  void begin(SlotId slot);
  void update(SlotId slot, LayerType type, std::span<const PageId> pages, std::vector<PageUpdate>& out);
  int32_t* tables() const { return tables_.as<int32_t>(); }

  Result<void> read_pages(LayerType type, std::span<const PageId> pages, std::span<std::byte> out,
                          cudaStream_t stream) const;
  Result<void> write_pages(LayerType type, std::span<const PageId> pages, std::span<const std::byte> in,
                           cudaStream_t stream) const;

 private:
  struct Pool {
    std::vector<int> layers;  // that own K and V, in order
    size_t page_bytes = 0;    // over all of them
    int n_pages = 0;
    DeviceBuffer memory;
    std::vector<int> known;  // [slots]: entries of the table that the device has
  };
  const Pool& pool(LayerType type) const { return type == LayerType::kFull ? full_ : sliding_; }
  Pool& pool(LayerType type) { return type == LayerType::kFull ? full_ : sliding_; }
  std::byte* layer_pages(int layer) const;
  template <typename Copy>
  Result<void> for_each_part(LayerType type, std::span<const PageId> pages, cudaStream_t stream,
                             Copy copy) const;

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  KvFormat format_;
  int max_slots_;
  int max_pages_;  // of a table
  Pool full_;
  Pool sliding_;
  DeviceBuffer tables_;  // [2][slots][max_pages]: full, then sliding
};

}  // namespace jewel::cuda

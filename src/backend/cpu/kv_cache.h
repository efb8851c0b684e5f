// KvCache: the bytes of keys and values, in pages of kPageTokens positions, in two pools: one for
// full-attention layers, one for sliding ones. A page holds its positions for every layer of the pool that
// owns K and V, so that one copy moves a page:
//
//   page:  for each owning layer of the pool, in order:  K [kv_heads, kPageTokens, head_dim], then V the same
//
// Values are stored in the cache's format; F8_E4M3 holds value / scale, with the layer's k_scale and v_scale.
// Which page belongs to whom is the engine's book, not ours. Distinct pages may be written by several threads
// at once.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "base/result.h"
#include "model/config.h"
#include "model/weights.h"

namespace jewel {

class KvCache {
 public:
  KvCache(const TextConfig& config, const ModelWeights& weights, DType dtype, const Kernels& kernels);

  // Error when the memory cannot be had. The pages are zero.
  Result<void> allocate(const KvSizes& sizes);

  Format format() const { return format_; }
  size_t page_bytes(LayerType type) const { return pool(type).page_bytes; }
  int n_pages(LayerType type) const { return pool(type).n_pages; }

  // One position of an owning layer; `k` and `v` are [kv_heads, head_dim].
  void store(int layer, PageId page, int place, const float* k, const float* v);

  // [kPageTokens, head_dim] of one head, in the cache's format. `layer` owns its K and V.
  const std::byte* keys(int layer, PageId page, int kv_head) const;
  const std::byte* values(int layer, PageId page, int kv_head) const;
  // What stored numbers are multiplied by; 1 unless the format is F8_E4M3.
  float k_scale(int layer) const { return layers_[static_cast<size_t>(layer)].k_scale; }
  float v_scale(int layer) const { return layers_[static_cast<size_t>(layer)].v_scale; }

  void read_pages(LayerType type, std::span<const PageId> pages, std::span<std::byte> out) const;
  void write_pages(LayerType type, std::span<const PageId> pages, std::span<const std::byte> in);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* memory) const;
  };
  struct Pool {
    size_t page_bytes = 0;
    int n_pages = 0;
    std::unique_ptr<std::byte, Unmap> memory{nullptr, Unmap{0}};
  };
  struct Layer {
    LayerType type = LayerType::kSliding;
    size_t k_offset = 0;  // in the page
    size_t v_offset = 0;
    size_t head_bytes = 0;  // [kPageTokens, head_dim]
    int head_dim = 0;
    int n_kv_heads = 0;
    float k_scale = 1;
    float v_scale = 1;
  };

  Pool& pool(LayerType type) { return pools_[type == LayerType::kFull ? 0 : 1]; }
  const Pool& pool(LayerType type) const { return pools_[type == LayerType::kFull ? 0 : 1]; }
  std::byte* page(LayerType type, PageId id) const;
  void encode(const float* values, int n, float scale, std::byte* out) const;

  const Kernels& kernels_;
  Format format_;
  size_t element_bytes_;
  Pool pools_[2];
  std::vector<Layer> layers_;
};

}  // namespace jewel

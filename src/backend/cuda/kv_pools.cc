#include "backend/cuda/kv_pools.h"

#include <fmt/format.h>

#include <algorithm>

namespace jewel::cuda {

KvPools::KvPools(const ModelConfig& config, const DeviceWeights& weights, KvFormat format, int max_slots)
    : config_(config),
      weights_(weights),
      format_(format),
      max_slots_(max_slots),
      max_pages_((config.text.max_position_embeddings + kPageTokens - 1) / kPageTokens) {
  for (int layer = 0; layer < config.text.n_layers; ++layer) {
    const LayerConfig& c = config.text.layers[static_cast<size_t>(layer)];
    if (!c.owns_kv) continue;
    Pool& p = pool(c.type);
    p.layers.push_back(layer);
    p.page_bytes += kv_page_bytes(shape(layer), format_);
  }
}

AttentionShape KvPools::shape(int layer) const {
  const LayerConfig& c = config_.text.layers[static_cast<size_t>(layer)];
  return {.n_heads = config_.text.n_heads,
          .n_kv_heads = c.n_kv_heads,
          .head_dim = c.head_dim,
          .window = c.type == LayerType::kFull ? 0 : config_.text.sliding_window};
}

Result<void> KvPools::allocate(const KvSizes& sizes) {
  full_.memory = {};
  sliding_.memory = {};
  full_.n_pages = sizes.n_full_pages;
  sliding_.n_pages = sizes.n_sliding_pages;
  for (Pool* p : {&full_, &sliding_}) {
    JEWEL_ASSIGN(p->memory,
                 DeviceBuffer::make(p->page_bytes * static_cast<size_t>(p->n_pages) + 256, "KV pages"));
    p->known.assign(static_cast<size_t>(max_slots_), 0);
  }
  if (!tables_.data()) {
    JEWEL_ASSIGN(tables_, DeviceBuffer::make(size_t{2} * static_cast<size_t>(max_slots_) *
                                                 static_cast<size_t>(max_pages_) * sizeof(int32_t),
                                             "page tables"));
  }
  // Entries that were never written are never followed, but kernels may load them.
  JEWEL_CUDA_TRY(cudaMemset(tables_.data(), 0, tables_.bytes()), "clearing page tables");
  return {};
}

std::byte* KvPools::layer_pages(int layer) const {
  const LayerConfig& c = config_.text.layers[static_cast<size_t>(layer)];
  const Pool& p = pool(c.type);
  std::byte* at = p.memory.data();
  for (const int other : p.layers) {
    if (other == layer) return at;
    at += kv_page_bytes(shape(other), format_) * static_cast<size_t>(p.n_pages);
  }
  JEWEL_CHECK(false, "layer {} owns no K and V", layer);
  return nullptr;
}

KvLayer KvPools::kv(int layer) const {
  const LayerConfig& c = config_.text.layers[static_cast<size_t>(layer)];
  const DeviceLayer& source = weights_.layers[static_cast<size_t>(c.kv_source)];
  const size_t table =
      c.type == LayerType::kFull ? 0 : static_cast<size_t>(max_slots_) * static_cast<size_t>(max_pages_);
  const bool fp8 = format_ == KvFormat::kF8E4M3;
  return {.data = layer_pages(c.kv_source),
          .page_table = tables_.as<int32_t>() + table,
          .max_pages = max_pages_,
          .format = format_,
          .k_scale = fp8 ? source.k_scale : 1.0f,
          .v_scale = fp8 ? source.v_scale : 1.0f};
}

void KvPools::begin(SlotId slot) {
  full_.known[static_cast<size_t>(slot)] = 0;
  sliding_.known[static_cast<size_t>(slot)] = 0;
}

void KvPools::update(SlotId slot, LayerType type, std::span<const PageId> pages,
                     std::vector<PageUpdate>& out) {
  Pool& p = pool(type);
  int& known = p.known[static_cast<size_t>(slot)];
  JEWEL_CHECK(static_cast<int>(pages.size()) <= max_pages_, "{} pages, a table has {}", pages.size(),
              max_pages_);
  const int base = ((type == LayerType::kFull ? 0 : max_slots_) + slot) * max_pages_;
  for (; known < static_cast<int>(pages.size()); ++known) {
    const PageId page = pages[static_cast<size_t>(known)];
    if (page == kNoPage) continue;  // behind the window: never read
    JEWEL_CHECK(page >= 0 && page < p.n_pages, "page {} of {}", page, p.n_pages);
    out.push_back({static_cast<uint32_t>(base + known), page});
  }
}

template <typename Copy>
Result<void> KvPools::for_each_part(LayerType type, std::span<const PageId> pages, cudaStream_t stream,
                                    Copy copy) const {
  const Pool& p = pool(type);
  size_t offset = 0;
  for (const PageId page : pages) {
    JEWEL_CHECK(page >= 0 && page < p.n_pages, "page {} of {}", page, p.n_pages);
    for (const int layer : p.layers) {
      const size_t bytes = kv_page_bytes(shape(layer), format_);
      JEWEL_CUDA_TRY(copy(layer_pages(layer) + bytes * static_cast<size_t>(page), offset, bytes),
                     "copying pages");
      offset += bytes;
    }
  }
  JEWEL_CUDA_TRY(cudaStreamSynchronize(stream), "copying pages");
  return {};
}

Result<void> KvPools::read_pages(LayerType type, std::span<const PageId> pages, std::span<std::byte> out,
                                 cudaStream_t stream) const {
  JEWEL_CHECK(out.size() == page_bytes(type) * pages.size(), "{} bytes for {} pages", out.size(),
              pages.size());
  return for_each_part(type, pages, stream, [&](const std::byte* device, size_t offset, size_t bytes) {
    return cudaMemcpyAsync(out.data() + offset, device, bytes, cudaMemcpyDeviceToHost, stream);
  });
}

Result<void> KvPools::write_pages(LayerType type, std::span<const PageId> pages,
                                  std::span<const std::byte> in, cudaStream_t stream) const {
  JEWEL_CHECK(in.size() == page_bytes(type) * pages.size(), "{} bytes for {} pages", in.size(), pages.size());
  return for_each_part(type, pages, stream, [&](std::byte* device, size_t offset, size_t bytes) {
    return cudaMemcpyAsync(device, in.data() + offset, bytes, cudaMemcpyHostToDevice, stream);
  });
}

}  // namespace jewel::cuda

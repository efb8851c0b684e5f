#include "backend/cpu/kv_cache.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>

#include "backend/cpu/linear.h"
#include "base/check.h"

namespace jewel {

KvCache::KvCache(const TextConfig& config, const ModelWeights& weights, DType dtype, const Kernels& kernels)
    : kernels_(kernels), format_(format_of(dtype)), element_bytes_(dtype_bytes(dtype)) {
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& c = config.layers[i];
    Layer layer{.type = c.type, .head_dim = c.head_dim, .n_kv_heads = c.n_kv_heads};
    if (c.owns_kv) {
      layer.head_bytes = static_cast<size_t>(kPageTokens * c.head_dim) * element_bytes_;
      const size_t all_heads = layer.head_bytes * static_cast<size_t>(c.n_kv_heads);
      size_t& page_bytes = pool(c.type).page_bytes;
      layer.k_offset = page_bytes;
      layer.v_offset = page_bytes + all_heads;
      page_bytes += 2 * all_heads;
      if (format_ == Format::kF8E4M3) {
        layer.k_scale = weights.layers[i].k_scale;
        layer.v_scale = weights.layers[i].v_scale;
      }
    }
    layers_.push_back(layer);
  }
}

void KvCache::Unmap::operator()(std::byte* memory) const {
  munmap(memory, bytes);
}

Result<void> KvCache::allocate(const KvSizes& sizes) {
  const struct {
    LayerType type;
    int n_pages;
    const char* name;
  } wanted[] = {{LayerType::kFull, sizes.n_full_pages, "full"},
                {LayerType::kSliding, sizes.n_sliding_pages, "sliding"}};
  for (const auto& want : wanted) {
    JEWEL_CHECK(want.n_pages >= 0, "{} pages", want.n_pages);
    Pool& p = pool(want.type);
    p.memory.reset();
    p.n_pages = 0;
    size_t bytes = 0;
    if (__builtin_mul_overflow(p.page_bytes, static_cast<size_t>(want.n_pages), &bytes)) {
      return unavailable(fmt::format("KV cache: {} {} pages of {} bytes are more than an address can hold",
                                     want.n_pages, want.name, p.page_bytes));
    }
    if (bytes > 0) {
      // Anonymous memory is zero and is taken from the system page by page, when first written.
      void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) {
        return unavailable(
            fmt::format("KV cache: the system refused {:.2f} GiB for {} {} pages; allow fewer tokens or "
                        "sequences, or an 8-bit cache",
                        static_cast<double>(bytes) / (1 << 30), want.n_pages, want.name));
      }
      p.memory = std::unique_ptr<std::byte, Unmap>(static_cast<std::byte*>(memory), Unmap{bytes});
    }
    p.n_pages = want.n_pages;
  }
  return Ok{};
}

std::byte* KvCache::page(LayerType type, PageId id) const {
  const Pool& p = pool(type);
  JEWEL_CHECK(id >= 0 && id < p.n_pages, "page {} of {}", id, p.n_pages);
  return p.memory.get() + static_cast<size_t>(id) * p.page_bytes;
}

void KvCache::encode(const float* values, int n, float scale, std::byte* out) const {
  switch (format_) {
    case Format::kF32:
      std::memcpy(out, values, static_cast<size_t>(n) * sizeof(float));
      break;
    case Format::kBF16:
      kernels_.f32_to_bf16(values, reinterpret_cast<uint16_t*>(out), n);
      break;
    case Format::kF8E4M3:
      kernels_.f32_to_f8(values, reinterpret_cast<uint8_t*>(out), n, scale);
      break;
  }
}

void KvCache::store(int layer, PageId id, int place, const float* k, const float* v) {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  const size_t row = static_cast<size_t>(place * l.head_dim) * element_bytes_;
  std::byte* base = page(l.type, id);
  for (int head = 0; head < l.n_kv_heads; ++head) {
    const size_t offset = static_cast<size_t>(head) * l.head_bytes + row;
    encode(k + int64_t{head} * l.head_dim, l.head_dim, l.k_scale, base + l.k_offset + offset);
    encode(v + int64_t{head} * l.head_dim, l.head_dim, l.v_scale, base + l.v_offset + offset);
  }
}

const std::byte* KvCache::keys(int layer, PageId id, int kv_head) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return page(l.type, id) + l.k_offset + static_cast<size_t>(kv_head) * l.head_bytes;
}

const std::byte* KvCache::values(int layer, PageId id, int kv_head) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return page(l.type, id) + l.v_offset + static_cast<size_t>(kv_head) * l.head_bytes;
}

void KvCache::read_pages(LayerType type, std::span<const PageId> pages, std::span<std::byte> out) const {
  const size_t bytes = page_bytes(type);
  JEWEL_CHECK(out.size() == pages.size() * bytes, "{} bytes for {} pages of {}", out.size(), pages.size(),
              bytes);
  for (size_t i = 0; i < pages.size(); ++i) std::memcpy(out.data() + i * bytes, page(type, pages[i]), bytes);
}

void KvCache::write_pages(LayerType type, std::span<const PageId> pages, std::span<const std::byte> in) {
  const size_t bytes = page_bytes(type);
  JEWEL_CHECK(in.size() == pages.size() * bytes, "{} bytes for {} pages of {}", in.size(), pages.size(),
              bytes);
  for (size_t i = 0; i < pages.size(); ++i) std::memcpy(page(type, pages[i]), in.data() + i * bytes, bytes);
}

}  // namespace jewel

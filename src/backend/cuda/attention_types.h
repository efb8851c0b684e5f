// What the attention kernels of the CUDA backend agree on: shapes of a layer, where its K and V live, which
// rows a launch sees. All pointers are device pointers unless said; nothing is owned, nothing is allocated.
//
// Rows are described by arrays on the device, so that a captured graph serves any step: row r belongs to the
// sequence in slot slots[r] and stands at positions[r]; a negative position marks a row of padding, for which
// nothing is read or written.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace jewel::cuda {

enum class KvFormat : uint8_t { kBF16, kF8E4M3 };

// kPortable runs on sm_80 and up; kSm90 uses clusters and programmatic dependent launch. The two add in
// different orders: a process picks one and stays with it.
enum class AttentionDesign : uint8_t { kPortable, kSm90 };

struct AttentionShape {
  int n_heads = 0;  // query heads; n_heads / n_kv_heads is 1, 2, 4 or 8
  int n_kv_heads = 0;
  int head_dim = 0;  // 256 or 512
  int window = 0;    // keys visible to a query, itself included; 0 = all
};

// One owning layer's K and V: page p at data + p * kv_page_bytes(), inside K [n_kv_heads, 16, head_dim], then
// V the same.
struct KvLayer {
  std::byte* data = nullptr;
  const int32_t* page_table = nullptr;  // [slots, max_pages]; entry i: positions [16 i, 16 i + 16)
  int max_pages = 0;
  KvFormat format = KvFormat::kBF16;
  float k_scale = 1;  // stored number * scale = value; 1 for BF16
  float v_scale = 1;
};

inline size_t kv_element_bytes(KvFormat format) {
  return format == KvFormat::kBF16 ? 2 : 1;
}
inline size_t kv_page_bytes(const AttentionShape& shape, KvFormat format) {
  return size_t{2} * 16 * static_cast<size_t>(shape.n_kv_heads) * static_cast<size_t>(shape.head_dim) *
         kv_element_bytes(format);
}

// Pairs (i, i + head_dim / 2), i < n_rotating, turn by position * frequencies[i]: the product is float32 as
// in the reference, its cosine and sine are good to float32's last bits at any position below 2^20.
struct Rope {
  const float* frequencies = nullptr;  // RopeConfig::frequencies() up to its last nonzero
  int n_rotating = 0;                  // a multiple of 4
};

struct HeadNorms {
  const float* q = nullptr;  // [head_dim]
  const float* k = nullptr;  // [head_dim]; unused where a layer owns no K and V
  float eps = 0;
};

struct AttentionRows {
  const int32_t* positions = nullptr;  // [n]
  const int32_t* slots = nullptr;      // [n]
  int n = 0;
};

}  // namespace jewel::cuda

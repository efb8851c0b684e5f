// Attention of the vision tower: every patch of an image over all patches of the same image, head_dim 64, no
// scale, no mask. Scores and sums are FP32; q, k, v and the probabilities are BF16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

inline constexpr int kVisionHeadDim = 64;
inline constexpr int kVisionMaxImages = 32;

// Which rows belong to which image; travels as a kernel's parameter.
struct VisionImages {
  int n = 0;
  int first[kVisionMaxImages + 1] = {};  // [n + 1] first patch
  int grid_w[kVisionMaxImages] = {};
  int first_cell[kVisionMaxImages + 1] = {};  // [n + 1] first soft token
};

struct VisionAttention {
  const __nv_bfloat16* q = nullptr;  // [n_heads, patches, 64]
  const __nv_bfloat16* k = nullptr;
  const __nv_bfloat16* v = nullptr;
  __nv_bfloat16* out = nullptr;  // [patches, n_heads * 64], in product order (prefill_product.h), clamped
  int n_heads = 0;
  float min = -3.4e38f;
  float max = 3.4e38f;
};

cudaError_t launch_vision_attention(const VisionAttention& attention, const VisionImages& images,
                                    cudaStream_t stream);

}  // namespace jewel::cuda

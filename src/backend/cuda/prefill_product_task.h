// What the launchers and the kernels of prefill_product.h tell each other; for the files of this product
// alone.
#pragma once

#include <cuda.h>

#include <cstddef>

#include "backend/cuda/prefill_product.h"

namespace jewel::cuda {

enum class ProductKind : uint8_t { kW8A16, kW16A16, kW8A8 };

struct ProductTask {
  const std::byte* tiles;
  int out, in;                 // N, K
  int rows;                    // tokens
  int out_pairs, token_tiles;  // tiles: pairs of 128 outputs x token tiles
  int group;                   // token tiles that are walked together
  const float* row_scale;
  const float2* row_clamp;
  const float* x_scale;
  ProductOut form;
  void* result;
  int64_t result_stride;
  const float* factor;
  int64_t factor_stride;
  float out_min, out_max;
};

inline constexpr int kProductOutputs = 256;  // of a cluster of the sm_90 kernel

// Launches the kernel of one kind with the given width of tiles; the three are defined in their own files,
// since the compiler takes long over each.
cudaError_t launch_sm90_w8a16(const PrefillProduct& product, int tokens, cudaStream_t stream);
cudaError_t launch_sm90_w16a16(const PrefillProduct& product, int tokens, cudaStream_t stream);
cudaError_t launch_sm90_w8a8(const PrefillProduct& product, int tokens, bool promote, cudaStream_t stream);
cudaError_t launch_portable_product(const PrefillProduct& product,
                                    cudaStream_t stream);  // prefill_product_portable.cu

// The map of a row-major matrix of activations: boxes of 128 bytes x box_rows rows, 128-byte swizzle.
cudaError_t make_token_map(const PrefillProduct& product, int box_rows, CUtensorMap* map);
// The map of fragment tiles: boxes of 8 row tiles x row_tile_bytes (256 elements, whatever they stand for).
cudaError_t make_weight_map(const PrefillProduct& product, int row_tile_bytes, CUtensorMap* map);
ProductTask make_task(const PrefillProduct& product, int tokens);
int multiprocessors();  // of the current device

}  // namespace jewel::cuda

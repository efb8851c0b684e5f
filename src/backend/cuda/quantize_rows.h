// FP8 activations: each row of a BF16 matrix becomes E4M3 with one scale, amax / 448, chosen from the row
// alone (compressed-tensors' dynamic per-token scheme: round to nearest even, clamp to +-448; a row of zeros
// gets scale 1). Norms write FP8 themselves (prefill_rows.h); this is for what attention and gate-up leave.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

struct QuantizeRows {
  const void* x = nullptr;  // BF16 [rows, x_stride]
  bool product_order =
      true;  // x is in product order (prefill_product.h); the result is always in natural order
  int64_t x_stride = 0;
  int rows = 0;
  int columns = 0;         // a multiple of 64, at most 32768
  void* out = nullptr;     // E4M3 [rows, columns]
  float* scale = nullptr;  // [rows]
};

cudaError_t launch_quantize_rows(const QuantizeRows& quantize, cudaStream_t stream);

}  // namespace jewel::cuda

// Weights from the checkpoint's rows to fragment tiles (decode_product.h, prefill_product.h), on the device.
//
// A source is a block of whole rows, row-major, in staging memory. Where a row goes among the tiles' rows is
// the row map: products that are fused (q, k and v; gate and up) are rows of one matrix.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

enum class RowOrder : uint8_t {
  kPlain,  // row r → first + r
  kGate,   // row r → 16 (r / 8) + r % 8
  kUp,     // row r → 16 (r / 8) + 8 + r % 8
};

struct TileRows {
  const void* rows = nullptr;  // [n, k], FP8 or BF16
  int64_t first_row = 0;       // of `rows` in its tensor
  int n = 0;
  int k = 0;
  bool fp8 = false;
  RowOrder order = RowOrder::kPlain;
  int64_t base = 0;       // kPlain: the tiles' row of the tensor's row 0
  void* tiles = nullptr;  // FP8 tiles where fp8 or to_fp8, else BF16 ones
  // BF16 rows become FP8 with one scale a row, amax / 448 (the head, --lm-head-dtype fp8).
  bool to_fp8 = false;
  float* row_scale = nullptr;  // to_fp8: written, by the tiles' rows
};

cudaError_t launch_tile_rows(const TileRows& tile, cudaStream_t stream);

// squares[r] = sum over k of (row_scale[r] W[r, k] column_weight[k])^2, by the tiles' rows; FP8 tiles.
struct RowSquares {
  const void* tiles = nullptr;
  const float* row_scale = nullptr;      // null: 1
  const float* column_weight = nullptr;  // [k]
  int n = 0;
  int k = 0;
  float* squares = nullptr;  // [n]
};
cudaError_t launch_row_squares(const RowSquares& rows, cudaStream_t stream);

// *bits = the bits of the largest magnitude among BF16 values[n], of a NaN where there is one; n % 8 == 0.
// *bits is 0 before. The values may lie in device memory or in page-locked host memory.
cudaError_t launch_largest_magnitude(const void* values, int64_t n, uint32_t* bits, cudaStream_t stream);

}  // namespace jewel::cuda

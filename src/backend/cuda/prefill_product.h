// Products of prompt chunks and of the vision tower: out[row, o] = scale[o] * sum over k of W[o, k] x[row,
// k], for many rows at once, by tensor cores.
//
// Weights are fragment tiles of 16 outputs (FP8: [N/16][K/32][32 lanes][16 bytes]; BF16:
// [N/16][K/16][32][16]), the same memory that decode kernels read. BF16 activations are in *product order*:
// in each group of 16 columns, slot s holds column kProductOrder[s]; producers (prefill_rows.h, attention,
// the gate-up epilogue here) write that order. FP8 activations (quantize_rows.h) are in natural order with
// one scale a row.
//
// A row's result is bitwise the same for any number of rows and any neighbours: each output is one chain of
// tensor-core steps over K in order, whatever tile it lies in. There is no split over K.
//
// N must be a multiple of 16, K of 64; pointers 16-byte aligned, row strides multiples of 8 elements. Any
// thread may call; launches are asynchronous on `stream` and can be captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace jewel::cuda {

inline constexpr int kProductOrder[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};

// kSm90: wgmma and TMA. kPortable: mma.sync and cp.async, sm_80 and up (FP8 activations: sm_89 and up). The
// two may add in different orders: a process picks one and stays with it.
enum class ProductDesign : uint8_t { kPortable, kSm90 };

enum class WeightFormat : uint8_t { kBF16, kF8E4M3 };

struct ProductWeight {
  const void* tiles = nullptr;
  WeightFormat format = WeightFormat::kF8E4M3;
  int out = 0;                        // N
  int in = 0;                         // K
  const float* row_scale = nullptr;   // [N], in the tiles' row order; null: 1
  const float2* row_clamp = nullptr;  // [N] (min, max) on the scaled sum, in FP32; null: none
};

// What becomes of the sums. The gate-up forms take tiles of 8 gate and 8 up rows and give N/2 columns.
enum class ProductOut : uint8_t {
  kF32,               // [rows, N]
  kBF16,              // [rows, N]
  kBF16ProductOrder,  // [rows, N], the input of another product (N % 32 == 0)
  kGateUp,            // BF16 in product order [rows, N/2]: clamp(gelu_tanh(gate) * up)
  kGeluTimes,         // BF16 in product order [rows, N]: gelu_tanh(sum) * factor[row, o] (N % 32 == 0)
};

struct PrefillProduct {
  ProductWeight weight;
  const void* x = nullptr;         // BF16 in product order, or FP8 in natural order: [rows, x_stride]
  const float* x_scale = nullptr;  // [rows]; not null: x is FP8 (then weights must be FP8 too)
  int64_t x_stride = 0;            // elements
  int rows = 0;
  ProductOut form = ProductOut::kF32;
  void* out = nullptr;
  int64_t out_stride = 0;         // elements
  const float* factor = nullptr;  // kGeluTimes: [rows, factor_stride]
  int64_t factor_stride = 0;
  float out_min = -3.4e38f;  // kGateUp: the bounds of the next clipped linear's input
  float out_max = 3.4e38f;
};

// cudaErrorNotSupported where the device lacks what `design` or FP8 needs; cudaErrorInvalidValue for shapes
// that break the rules above.
cudaError_t launch_prefill_product(const PrefillProduct& product, ProductDesign design, cudaStream_t stream);

}  // namespace jewel::cuda

// The per-layer-input block that ends a layer, in one kernel: gate product and GELU, up product, the residual
// update with the layer's scalar, and the norm in front of what follows. In its stead three kernels of
// decode_product.h do; the results are the same bits.
//
// On sm_90, for per-layer inputs of 256 values and hidden 1,536 or 2,560 in BF16. Clusters of 16 blocks,
// which hand over through each other's shared memory: two exchanges in the place of two ends of kernels. For
// as many rows as clusters take that run at once (an H200's: 112).
#pragma once

#include "backend/cuda/decode_product.h"

namespace jewel::cuda {

struct DecodePle {
  TiledWeight gate;  // [256, hidden]
  TiledWeight up;    // [hidden, 256]
  int rows = 0;
  const void* x = nullptr;     // BF16 slot order: the residual stream
  const float* ple = nullptr;  // [rows, stride]
  int64_t ple_stride = 0;
  DecodeNorm norm;        // without y, which is made here
  void* x_out = nullptr;  // in x_out_order, not x, which other clusters may still read; null: only norm.h_out
  XOrder x_out_order = XOrder::kSlots;
};

// Whether launch_decode_ple() takes these weights and this many rows on the current device.
bool takes_ple(const TiledWeight& gate, const TiledWeight& up, int rows);

cudaError_t launch_decode_ple(const DecodePle& ple, cudaStream_t stream);

}  // namespace jewel::cuda

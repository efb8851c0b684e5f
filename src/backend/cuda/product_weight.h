// A linear weight as the products of prompts and of the vision tower take it.
#pragma once

#include "backend/cuda/device_weights.h"
#include "backend/cuda/prefill_product.h"

namespace jewel::cuda {

inline ProductWeight product_weight(const DeviceLinear& w) {
  return {.tiles = w.tiles,
          .format = w.fp8 ? WeightFormat::kF8E4M3 : WeightFormat::kBF16,
          .out = w.n,
          .in = w.k,
          .row_scale = w.row_scale,
          .row_clamp = w.row_clamp};
}

}  // namespace jewel::cuda

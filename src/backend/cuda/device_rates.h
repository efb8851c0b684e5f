// What the device itself can read and multiply, measured with the instructions that this backend's products
// use: the ceilings that a benchmark's figures are held against.
// This header needs no CUDA.
//
// Any thread may call, while no backend of this process has work under way. Takes device memory for the time
// of the call (as much as it reads).
#pragma once

#include <cstddef>
#include <string>

#include "base/result.h"

namespace jewel {

struct CudaRates {
  double bytes_per_s = 0;      // 16-byte loads of memory far larger than the caches
  double bf16_flop_per_s = 0;  // tensor cores, operands at hand: wgmma on sm_90, mma.sync elsewhere
  double fp8_flop_per_s = 0;   // E4M3 likewise; 0: the device has none
  std::string how;
};

// Reads min(bytes, a quarter of what is free). The best of half a second each, on values that are neither
// zeros nor all alike, because a tensor core that multiplies zeros draws less and is clocked higher.
// Errors: no device; too little memory.
Result<CudaRates> measure_cuda_rates(int device, size_t bytes);

}  // namespace jewel

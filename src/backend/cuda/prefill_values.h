// Small conversions that the prefill kernels share: E4M3 to BF16, the order of a product's
// input.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "backend/cuda/device_values.h"

namespace jewel::cuda {

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

__device__ __forceinline__ void store_shared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

// Four E4M3 to two pairs of BF16 (bytes 0, 1 and bytes 2, 3), exact: exponent and mantissa move to the low
// end of BF16's, which divides by 2^120 (subnormals included, as BF16 subnormals), and a product puts that
// back. The two codes of NaN become +-480.
__device__ __forceinline__ void widen_e4m3x4(uint32_t bytes, uint32_t& low, uint32_t& high) {
  constexpr uint32_t kPower120 = 0x7b807b80;  // bf16 2^120, twice
  const auto widen = [](uint32_t spread) {    // E4M3 in bits 15..8 and 31..24
    const uint32_t bits = (spread & 0x80008000u) | (spread >> 4 & 0x07f007f0u);
    uint32_t value;
    asm("{\n.reg .b32 zero;\nmov.b32 zero, 0x80008000;\nfma.rn.bf16x2 %0, %1, %2, zero;\n}"
        : "=r"(value)
        : "r"(bits), "r"(kPower120));
    return value;
  };
  low = widen(__byte_perm(bytes, 0, 0x1404));
  high = widen(__byte_perm(bytes, 0, 0x3424));
}

}  // namespace jewel::cuda

// Launchers of the loops behind device_rates.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace jewel::cuda {

// Words that differ, in which no value is infinite or NaN as BF16 or as E4M3, and few are zero.
cudaError_t fill_with_values(uint32_t* words, size_t n_words, cudaStream_t stream);

// Reads n_bytes (a multiple of 16). `sink` is written only if the words' XOR were one value in 2^32.
cudaError_t read_all(const void* from, size_t n_bytes, uint32_t* sink, int n_sms, cudaStream_t stream);

// Multiplies for a while on every SM. Returns through `flop` how much that was; 0: this device cannot.
struct MultiplyLoop {
  bool fp8 = false;
  int repeats = 0;
};
cudaError_t multiply(const MultiplyLoop& loop, int major, int minor, int n_sms, uint32_t* sink, double* flop,
                     cudaStream_t stream);

}  // namespace jewel::cuda

// NVML: the joules of one GPU since its driver was loaded, by the counter of the board itself.
//
// The library comes with the driver, so it is opened when the program runs. NVML needs no CUDA context and
// makes none: a GPU that was given back is still measured, and drawing nothing for it.
#pragma once

#include <string>

#include "energy/counter.h"

namespace jewel {

struct NvmlChoice {
  int cuda_index = 0;
  std::string nvml = "libnvidia-ml.so.1";
  std::string cuda_driver = "libcuda.so.1";  // asked which board the index is; without it NVML's order counts
};

FoundCounter find_nvml_counter(const NvmlChoice& choice = {});

}  // namespace jewel

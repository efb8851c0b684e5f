#include "backend/cpu/kernels.h"

namespace jewel {

// __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
const Kernels* kernels_for(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPortable:
      return &portable_kernels();
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        return &avx2_kernels();
      }
      return nullptr;
    case CpuIsa::kAvx512Bf16:
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512bf16")) {
        return &avx512_bf16_kernels();
      }
      return nullptr;
#endif
    default:
      return nullptr;
  }
}

const Kernels& best_kernels() {
  for (CpuIsa isa : {CpuIsa::kAvx512Bf16, CpuIsa::kAvx2}) {
    if (const Kernels* kernels = kernels_for(isa)) return *kernels;
  }
  return portable_kernels();
}

}  // namespace jewel

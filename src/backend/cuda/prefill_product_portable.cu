#include "backend/cuda/prefill_product_kernel.h"
namespace jewel::cuda {
cudaError_t launch_portable_product(const PrefillProduct&, cudaStream_t) {
  return cudaErrorNotSupported;
}
}  // namespace jewel::cuda

// FP8 weights, BF16 activations: prefill_product_kernel.h.
#include <algorithm>

#include "backend/cuda/prefill_product_kernel.h"

namespace jewel::cuda {

cudaError_t launch_sm90_w8a16(const PrefillProduct& product, int tokens, cudaStream_t stream) {
  constexpr ProductKind kKind = ProductKind::kW8A16;
  switch (tokens) {
    case 64:
      return launch_sm90<kKind, 64>(product, stream);
    case 128:
      return launch_sm90<kKind, 128>(product, stream);
    case 160:
      return launch_sm90<kKind, 160>(product, stream);
    case 192:
      return launch_sm90<kKind, 192>(product, stream);
    case 256:
      return launch_sm90<kKind, 256>(product, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace jewel::cuda

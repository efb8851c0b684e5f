// FP8 weights and activations: prefill_product_kernel.h. With promotion a tile needs its registers twice.
#include <algorithm>

#include "backend/cuda/prefill_product_kernel.h"

namespace jewel::cuda {

cudaError_t launch_sm90_w8a8(const PrefillProduct& product, int tokens, bool promote, cudaStream_t stream) {
  constexpr ProductKind kKind = ProductKind::kW8A8;
  if (promote) {
    switch (tokens) {
      case 64:
        return launch_sm90<kKind, 64, true>(product, stream);
      case 128:
        return launch_sm90<kKind, 128, true>(product, stream);
      case 160:
        return launch_sm90<kKind, 160, true>(product, stream);
      default:
        return cudaErrorInvalidValue;
    }
  }
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

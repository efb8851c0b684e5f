#include "backend/cuda/quantize_rows.h"

#include "backend/cuda/row_store.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 256;

// Twice over the row: the second time it comes from the caches. A thread takes 16 columns at a time.
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(const QuantizeRows q) {
  __shared__ float scratch[kThreads / 32];
  const int64_t row = blockIdx.x;
  const auto* in = reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(q.x) + row * q.x_stride);
  const int n = q.columns / 16;
  uint32_t amax = 0;  // of the magnitudes' bits, two at a time; BF16 magnitudes order as their bits do
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const uint4 a = in[2 * i], b = in[2 * i + 1];
    for (const uint32_t pair : {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w})
      amax = __vmaxu2(amax, pair & 0x7fff7fffu);
  }
  const float mine = __uint_as_float(max(amax << 16, amax & 0xffff0000u));
  const float scale = quantization_scale(block_reduce<kThreads, true>(mine, scratch));
  if (threadIdx.x == 0) q.scale[row] = scale;
  auto* out = reinterpret_cast<uint4*>(static_cast<uint8_t*>(q.out) + row * q.columns);
  const auto quantize = [scale](uint32_t first, uint32_t second) {
    return pack_e4m3({__fdiv_rn(__uint_as_float(first << 16), scale),
                      __fdiv_rn(__uint_as_float(first & 0xffff0000u), scale),
                      __fdiv_rn(__uint_as_float(second << 16), scale),
                      __fdiv_rn(__uint_as_float(second & 0xffff0000u), scale)});
  };
  for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
    const uint4 a = in[2 * i], b = in[2 * i + 1];
    // Product order: word t of the first half holds columns 4t, 4t + 1, of the second half 4t + 2, 4t + 3.
    out[i] = q.product_order
                 ? make_uint4(quantize(a.x, b.x), quantize(a.y, b.y), quantize(a.z, b.z), quantize(a.w, b.w))
                 : make_uint4(quantize(a.x, a.y), quantize(a.z, a.w), quantize(b.x, b.y), quantize(b.z, b.w));
  }
}

}  // namespace

cudaError_t launch_quantize_rows(const QuantizeRows& quantize, cudaStream_t stream) {
  if (quantize.columns <= 0 || quantize.columns % 64 != 0 || quantize.columns > 32768 ||
      quantize.x_stride < quantize.columns || quantize.x_stride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (quantize.rows == 0) return cudaSuccess;
  quantize_rows_kernel<<<static_cast<unsigned>(quantize.rows), kThreads, 0, stream>>>(quantize);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

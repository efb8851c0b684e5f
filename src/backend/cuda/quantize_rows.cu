#include "backend/cuda/quantize_rows.h"

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/row_store.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 256;

// A thread holds groups of 16 columns, kGroups of them.
template <int kGroups>
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(const QuantizeRows q) {
  __shared__ float scratch[kThreads / 32];
  wait_for_previous();
  const int64_t row = blockIdx.x;
  const auto* in = reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(q.x) + row * q.x_stride);
  const int n = q.columns / 16;
  uint4 a[kGroups], b[kGroups];
  uint32_t amax = 0;  // of the magnitudes' bits, two at a time; BF16 magnitudes order as their bits do
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = static_cast<int>(threadIdx.x) + i * kThreads;
    if (group < n) a[i] = in[2 * group], b[i] = in[2 * group + 1];
  }
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    if (static_cast<int>(threadIdx.x) + i * kThreads >= n) continue;
    for (const uint32_t pair : {a[i].x, a[i].y, a[i].z, a[i].w, b[i].x, b[i].y, b[i].z, b[i].w}) {
      amax = __vmaxu2(amax, pair & 0x7fff7fffu);
    }
  }
  const float mine = fmaxf(__uint_as_float(amax << 16), __uint_as_float(amax & 0xffff0000u));
  const float scale = quantization_scale(block_reduce<kThreads, true>(mine, scratch)), inverse = 1.0f / scale;
  if (threadIdx.x == 0) q.scale[row] = scale;
  auto* out = reinterpret_cast<uint4*>(static_cast<uint8_t*>(q.out) + row * q.columns);
  const auto quantize = [inverse](uint32_t first, uint32_t second) {
    return pack_e4m3({__uint_as_float(first << 16) * inverse, __uint_as_float(first & 0xffff0000u) * inverse,
                      __uint_as_float(second << 16) * inverse,
                      __uint_as_float(second & 0xffff0000u) * inverse});
  };
#pragma unroll
  for (int i = 0; i < kGroups; ++i) {
    const int group = static_cast<int>(threadIdx.x) + i * kThreads;
    if (group >= n) continue;
    // Product order: word t of the first half holds columns 4t, 4t + 1, of the second half 4t + 2, 4t + 3.
    out[group] = q.product_order ? make_uint4(quantize(a[i].x, b[i].x), quantize(a[i].y, b[i].y),
                                              quantize(a[i].z, b[i].z), quantize(a[i].w, b[i].w))
                                 : make_uint4(quantize(a[i].x, a[i].y), quantize(a[i].z, a[i].w),
                                              quantize(b[i].x, b[i].y), quantize(b[i].z, b[i].w));
  }
}

}  // namespace

cudaError_t launch_quantize_rows(const QuantizeRows& quantize, cudaStream_t stream) {
  if (quantize.columns <= 0 || quantize.columns % 64 != 0 || quantize.columns > 32768 ||
      quantize.x_stride < quantize.columns || quantize.x_stride % 8 != 0) {
    return cudaErrorInvalidValue;
  }
  if (quantize.rows == 0) return cudaSuccess;
  const auto kernel = quantize.columns <= 4096    ? quantize_rows_kernel<1>
                      : quantize.columns <= 8192  ? quantize_rows_kernel<2>
                      : quantize.columns <= 12288 ? quantize_rows_kernel<3>
                      : quantize.columns <= 16384 ? quantize_rows_kernel<4>
                                                  : quantize_rows_kernel<8>;
  return launch_dependent(kernel, dim3(static_cast<unsigned>(quantize.rows)), kThreads, 0, stream, quantize);
}

}  // namespace jewel::cuda

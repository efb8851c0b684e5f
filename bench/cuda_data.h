// What the programs that test and time kernels on a GPU machine share: random data made on the device,
// weights and inputs packed as the kernels want them, and calls that end the program when they fail.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace jewel::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check((call), #call)

__host__ __device__ inline uint32_t mix(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 33;
  return static_cast<uint32_t>(x);
}
__device__ inline float gaussian(uint64_t seed, uint64_t i) {
  const float u = (static_cast<float>(mix(seed * 0x9e3779b97f4a7c15ull + 2 * i) >> 8) + 0.5f) / 16777216.0f;
  const float v = static_cast<float>(mix(seed * 0x9e3779b97f4a7c15ull + 2 * i + 1) >> 8) / 16777216.0f;
  return sqrtf(-2.0f * logf(u)) * cosf(6.2831853f * v);
}

// Natural [rows, columns], FP32 values that the format holds exactly.
static __global__ void fill(float* x, int64_t n, uint64_t seed, bool fp8, float sigma) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= n) return;
  const float value = gaussian(seed, i) * sigma;
  x[i] = fp8 ? static_cast<float>(__nv_fp8_e4m3(value)) : __bfloat162float(__float2bfloat16(value));
}

static __global__ void pack_weight(const float* w, int out, int in, bool fp8, void* tiles) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= static_cast<int64_t>(out) * in) return;
  const int row = static_cast<int>(i / in), k = static_cast<int>(i % in);
  if (fp8) {
    const int64_t tile = static_cast<int64_t>(row / 16) * (in / 32) + k / 32;
    const int lane = row % 8 * 4 + k % 16 / 4, byte = k % 32 / 16 * 8 + row % 16 / 8 * 4 + k % 4;
    static_cast<__nv_fp8_e4m3*>(tiles)[tile * 512 + lane * 16 + byte] = __nv_fp8_e4m3(w[i]);
  } else {
    const int64_t tile = static_cast<int64_t>(row / 16) * (in / 16) + k / 16;
    const int lane = row % 8 * 4 + k % 16 / 4, at = row % 16 / 8 * 4 + k % 4;
    static_cast<__nv_bfloat16*>(tiles)[tile * 256 + lane * 8 + at] = __float2bfloat16(w[i]);
  }
}

static __global__ void pack_input(const float* x, int64_t rows, int in, bool fp8, void* out) {
  constexpr int kOrder[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * in) return;
  const int k = static_cast<int>(i % in);
  if (fp8) {
    static_cast<__nv_fp8_e4m3*>(out)[i] = __nv_fp8_e4m3(x[i]);
  } else {
    static_cast<__nv_bfloat16*>(out)[i] = __float2bfloat16(x[i / in * in + k / 16 * 16 + kOrder[k % 16]]);
  }
}

template <class T>
T* allocate(int64_t n) {
  void* p = nullptr;
  CHECK(cudaMalloc(&p, static_cast<size_t>(n) * sizeof(T)));
  return static_cast<T*>(p);
}
inline unsigned blocks(int64_t n) {
  return static_cast<unsigned>((n + 255) / 256);
}

template <class T>
T* upload(const std::vector<T>& v) {
  T* p = allocate<T>(static_cast<int64_t>(v.size()));
  CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T>
std::vector<T> download(const void* p, size_t n) {
  std::vector<T> v(n);
  CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return v;
}

}  // namespace jewel::cuda

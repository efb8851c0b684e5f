// How kernels follow each other: on sm_90 a kernel is launched while the one before it still runs
// (programmatic dependent launch), sets itself up, and waits. Every kernel launched by launch_dependent()
// calls wait_for_previous() in each thread before it touches memory that another kernel reads or writes; then
// the order is that of plain launches. Kernels of the decode chain, and those that say so, do the two halves
// of it by themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <utility>

namespace jewel::cuda {

#ifdef __CUDACC__

// Lets the next kernel of the stream start as this one's blocks make room.
__device__ __forceinline__ void release_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Returns when the kernels before are complete.
__device__ __forceinline__ void wait_for_last_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous() {
  release_next_kernel();
  wait_for_last_kernel();
}

inline bool has_dependent_launch() {
  static const bool has = [] {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           major >= 9;
  }();
  return has;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_dependent_if(bool dependent, void (*kernel)(Parameters...), dim3 grid, int threads,
                                int shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent && has_dependent_launch() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}

template <class... Parameters, class... Arguments>
cudaError_t launch_dependent(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes,
                             cudaStream_t stream, Arguments&&... arguments) {
  return launch_dependent_if(true, kernel, grid, threads, shared_bytes, stream,
                             std::forward<Arguments>(arguments)...);
}

#endif

}  // namespace jewel::cuda

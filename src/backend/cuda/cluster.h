// Thread block clusters and their shared memory (sm_90; elsewhere a block is its own cluster). Included by
// .cu files alone.
#pragma once

#include <cstdint>

namespace jewel::cuda {

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
// Releases what the block wrote to its own shared memory, and no more: whoever waits finds it there. Without
// the wait for stores to global memory that cluster_arrive() is.
__device__ __forceinline__ void cluster_arrive_shared() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;\nbarrier.cluster.arrive.relaxed.aligned;" ::
                   : "memory");
#endif
}
// Orders nothing: for beginning and leaving.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Shared memory of block `rank` of the cluster, where our own has `p`.
__device__ __forceinline__ uint32_t address_in(const void* p, [[maybe_unused]] int rank) {
  const auto local = static_cast<uint32_t>(__cvta_generic_to_shared(p));
#if __CUDA_ARCH__ >= 900
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  return remote;
#else
  return local;
#endif
}

__device__ __forceinline__ float2 load_cluster2(uint32_t address) {
  float2 v;
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];"
#else
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];"
#endif
               : "=f"(v.x), "=f"(v.y)
               : "r"(address));
  return v;
}

// Like fetch_bulk(), to the same place of every block of the cluster whose bit is set in `blocks`, whose own
// barrier at the same place counts the bytes.
__device__ __forceinline__ void fetch_bulk_for([[maybe_unused]] uint32_t to,
                                               [[maybe_unused]] const void* from,
                                               [[maybe_unused]] uint32_t bytes,
                                               [[maybe_unused]] uint32_t barrier,
                                               [[maybe_unused]] uint16_t blocks) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
      "[%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "h"(blocks)
      : "memory");
#endif
}

// 8 bytes into another block's shared memory; that block's `barrier` (an mbarrier, both addresses by
// address_in()) counts them.
__device__ __forceinline__ void send_cluster8([[maybe_unused]] uint32_t to, [[maybe_unused]] uint2 v,
                                              [[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(v.x), "r"(v.y), "r"(barrier)
               : "memory");
#endif
}
// The same for 16 bytes.
__device__ __forceinline__ void send_cluster16([[maybe_unused]] uint32_t to, [[maybe_unused]] float4 v,
                                               [[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
#endif
}
// Waits for the first phase of our own barrier, whose bytes other blocks send.
__device__ __forceinline__ void wait_for_sent([[maybe_unused]] uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier)
        : "memory");
  }
#endif
}

}  // namespace jewel::cuda

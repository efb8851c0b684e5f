// The sm_90 instructions that the large products use, one function each: barriers in shared memory, bulk and
// tensor copies, stmatrix, and wgmma with A in registers (m64, FP32 sums). Names and operands follow the PTX
// manual.
//
// Device code of sm_90a alone: include it where __CUDA_ARCH_FEAT_SM90_ALL holds. The lists of registers are
// long because the instruction names every one of them; they differ in nothing but their number.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace jewel::cuda {

// --- barriers in shared memory

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_expect_bytes(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives at the same barrier of block `rank` of the cluster. Predicated, not branched around: ptxas takes a
// branch between wgmmas in flight as a reason to run them one at a time (C7513).
__device__ __forceinline__ void barrier_arrive_if(uint32_t barrier, uint32_t rank, bool really) {
  asm volatile(
      "{\n.reg .b32 remote;\n.reg .pred p;\n"
      "setp.ne.b32 p, %2, 0;\n"
      "@p mapa.shared::cluster.u32 remote, %0, %1;\n"
      "@p mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank), "r"(static_cast<int>(really))
      : "memory");
}

__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A barrier among `threads` threads of the block; id 0 is __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The two halves of such a barrier: who arrives goes on, who waits is counted too.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- copies

// A box of a 2-D tensor to this block.
__device__ __forceinline__ void copy_box_here(uint32_t to, const CUtensorMap* map, int column, int row,
                                              uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row)
      : "memory");
}

// A box of a 2-D tensor to the same offset in every block of the cluster named in `mask`.
__device__ __forceinline__ void copy_box(uint32_t to, const CUtensorMap* map, int column, int row,
                                         uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, "
      "{%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(mask)
      : "memory");
}

__device__ __forceinline__ float2 load_shared_pair(uint32_t address) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
  return v;
}

// Four 8 x 8 matrices of 16-bit values, each written transposed; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void store_matrices_transposed(uint32_t address, uint32_t a, uint32_t b,
                                                          uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

// --- wgmma

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Says that the registers are complete here: without it the compiler may move what computes them behind the
// fence that must follow, and ptxas then runs one wgmma at a time (C7513).
__device__ __forceinline__ void hold(uint32_t (&a)[4]) {
  asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])::"memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// B in shared memory, rows of 128 bytes along K, 128-byte swizzle, groups of 8 rows 1024 bytes apart. A step
// along K inside the 128 bytes adds to the address.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | (uint64_t{1} << 16) | (uint64_t{1024 >> 4} << 32) |
         (uint64_t{1} << 62);
}

// The same without swizzle: 8 rows x 16 bytes stand together; 8 more rows 128 bytes on, 8 more columns
// `next_columns` on.
__device__ __forceinline__ uint64_t plain_descriptor(uint32_t address, uint32_t next_columns) {
  const uint32_t low = (address >> 4) + (next_columns >> 4 << 16);
  return low | uint64_t{128 >> 4} << 32;
}

// What wgmma multiplies.
enum class WgmmaType : uint8_t { kBF16, kF16, kE4M3 };

// d[n / 2] = (keep ? d : 0) + A B, A 64 x 16 of 16 bits or 64 x 32 E4M3 in four registers a lane, B n columns
// of it.
template <int kColumns, WgmmaType kType>
struct Wgmma;

// clang-format off
#define JEWEL_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define JEWEL_D32(i) JEWEL_D8(i), JEWEL_D8(i + 8), JEWEL_D8(i + 16), JEWEL_D8(i + 24)
#define JEWEL_L1_PART "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51"
#define JEWEL_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define JEWEL_L0_QUARTER "%0, %1, %2, %3, %4, %5, %6, %7"
#define JEWEL_L0_HALF "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define JEWEL_L0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define JEWEL_L1 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define JEWEL_L2 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define JEWEL_L3 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define JEWEL_L2_HALF "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"

#define JEWEL_WGMMA(columns, type, shape, types, tail, list, operands, a0, a1, a2, a3, b, keep)                          \
  template <>                                                                                                           \
  struct Wgmma<columns, WgmmaType::type> {                                                                                          \
    __device__ static __forceinline__ void run(float (&d)[columns / 2], const uint32_t (&a)[4], uint64_t descriptor,    \
                                               int keep_sums) {                                                         \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " keep ", 0;\nwgmma.mma_async.sync.aligned." shape ".f32." types   \
                   " {" list "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b ", p, 1, 1" tail ";\n}"                          \
                   : operands                                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(keep_sums));                      \
    }                                                                                                                   \
  };
#define JEWEL_OPERANDS(...) __VA_ARGS__
JEWEL_WGMMA(16, kBF16, "m64n16k16", "bf16.bf16", ", 0", JEWEL_L0_QUARTER, JEWEL_OPERANDS(JEWEL_D8(0)), "%8", "%9", "%10", "%11", "%12", "%13")
JEWEL_WGMMA(16, kF16, "m64n16k16", "f16.f16", ", 0", JEWEL_L0_QUARTER, JEWEL_OPERANDS(JEWEL_D8(0)), "%8", "%9", "%10", "%11", "%12", "%13")
JEWEL_WGMMA(32, kBF16, "m64n32k16", "bf16.bf16", ", 0", JEWEL_L0_HALF, JEWEL_OPERANDS(JEWEL_D8(0), JEWEL_D8(8)), "%16", "%17", "%18", "%19", "%20", "%21")
JEWEL_WGMMA(32, kF16, "m64n32k16", "f16.f16", ", 0", JEWEL_L0_HALF, JEWEL_OPERANDS(JEWEL_D8(0), JEWEL_D8(8)), "%16", "%17", "%18", "%19", "%20", "%21")
JEWEL_WGMMA(64, kBF16, "m64n64k16", "bf16.bf16", ", 0", JEWEL_L0, JEWEL_OPERANDS(JEWEL_D32(0)), "%32", "%33", "%34", "%35", "%36", "%37")
JEWEL_WGMMA(64, kF16, "m64n64k16", "f16.f16", ", 0", JEWEL_L0, JEWEL_OPERANDS(JEWEL_D32(0)), "%32", "%33", "%34", "%35", "%36", "%37")
JEWEL_WGMMA(104, kBF16, "m64n104k16", "bf16.bf16", ", 0", JEWEL_L0 ", " JEWEL_L1_PART, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D8(32), JEWEL_D8(40), JEWEL_D4(48)), "%52", "%53", "%54", "%55", "%56", "%57")
JEWEL_WGMMA(104, kF16, "m64n104k16", "f16.f16", ", 0", JEWEL_L0 ", " JEWEL_L1_PART, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D8(32), JEWEL_D8(40), JEWEL_D4(48)), "%52", "%53", "%54", "%55", "%56", "%57")
JEWEL_WGMMA(128, kBF16, "m64n128k16", "bf16.bf16", ", 0", JEWEL_L0 ", " JEWEL_L1, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32)), "%64", "%65", "%66", "%67", "%68", "%69")
JEWEL_WGMMA(128, kF16, "m64n128k16", "f16.f16", ", 0", JEWEL_L0 ", " JEWEL_L1, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32)), "%64", "%65", "%66", "%67", "%68", "%69")
JEWEL_WGMMA(160, kBF16, "m64n160k16", "bf16.bf16", ", 0", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2_HALF, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D8(64), JEWEL_D8(72)), "%80", "%81", "%82", "%83", "%84", "%85")
JEWEL_WGMMA(192, kBF16, "m64n192k16", "bf16.bf16", ", 0", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D32(64)), "%96", "%97", "%98", "%99", "%100", "%101")
JEWEL_WGMMA(256, kBF16, "m64n256k16", "bf16.bf16", ", 0", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2 ", " JEWEL_L3, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D32(64), JEWEL_D32(96)), "%128", "%129", "%130", "%131", "%132", "%133")
JEWEL_WGMMA(64, kE4M3, "m64n64k32", "e4m3.e4m3", "", JEWEL_L0, JEWEL_OPERANDS(JEWEL_D32(0)), "%32", "%33", "%34", "%35", "%36", "%37")
JEWEL_WGMMA(128, kE4M3, "m64n128k32", "e4m3.e4m3", "", JEWEL_L0 ", " JEWEL_L1, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32)), "%64", "%65", "%66", "%67", "%68", "%69")
JEWEL_WGMMA(160, kE4M3, "m64n160k32", "e4m3.e4m3", "", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2_HALF, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D8(64), JEWEL_D8(72)), "%80", "%81", "%82", "%83", "%84", "%85")
JEWEL_WGMMA(192, kE4M3, "m64n192k32", "e4m3.e4m3", "", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D32(64)), "%96", "%97", "%98", "%99", "%100", "%101")
JEWEL_WGMMA(256, kE4M3, "m64n256k32", "e4m3.e4m3", "", JEWEL_L0 ", " JEWEL_L1 ", " JEWEL_L2 ", " JEWEL_L3, JEWEL_OPERANDS(JEWEL_D32(0), JEWEL_D32(32), JEWEL_D32(64), JEWEL_D32(96)), "%128", "%129", "%130", "%131", "%132", "%133")

#undef JEWEL_OPERANDS
#undef JEWEL_WGMMA
#undef JEWEL_L2_HALF
#undef JEWEL_L3
#undef JEWEL_L2
#undef JEWEL_L1
#undef JEWEL_L0
#undef JEWEL_L0_HALF
#undef JEWEL_L0_QUARTER
#undef JEWEL_L1_PART
#undef JEWEL_D4
#undef JEWEL_D32
#undef JEWEL_D8
// clang-format on

}  // namespace jewel::cuda

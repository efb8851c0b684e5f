// What the two ways of sampling share. Both must choose the same token for the same row.
#pragma once

#include "backend/cuda/dependent_launch.h"
#include "backend/cuda/sampler.h"

namespace jewel::cuda {

// Decides rows by the largest of each tile of logits; those that it cannot decide it leaves to sample_parts,
// and, where that is not launched, to sample_rows.
cudaError_t launch_sample_tiles(const SampleRows& sample, cudaStream_t stream);
// Decides rows by many blocks; those it cannot decide it leaves to sample_rows (sampler.cu).
cudaError_t launch_sample_parts(const SampleRows& sample, cudaStream_t stream);

namespace device {

constexpr float kMasked = -__builtin_huge_valf();

// Order-preserving: a < b exactly when key(a) < key(b). NaN is below everything.
__device__ __forceinline__ uint32_t key_of(float value) {
  if (!(value == value)) return 0;
  const uint32_t bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A logit's key, and below it its id, so that of equal logits the first is the largest.
__device__ __forceinline__ uint64_t candidate_of(uint32_t key, int id) {
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ int id_of(uint64_t candidate) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(candidate));
}
__device__ __forceinline__ uint32_t key_of(uint64_t candidate) {
  return static_cast<uint32_t>(candidate >> 32);
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// The largest value of a block's kThreads threads; scratch [kThreads / 32] in shared memory.
template <int kThreads>
__device__ __forceinline__ uint64_t block_best(uint64_t value, uint64_t* scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, value, step);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) value = scratch[w] > value ? scratch[w] : value;
  return value;
}

// exp((logit - max) / temperature) in units of 2^-44; at most 2^44, so 2^18 of them fit.
__device__ __forceinline__ unsigned long long weight_of(float logit, float max, float temperature) {
  const float power = (logit - max) / temperature;
  return static_cast<unsigned long long>(static_cast<double>(expf(power)) * 17592186044416.0);
}

// What was sampled of a row; -1: nothing.
__device__ __forceinline__ void put_token(const SampleRows& s, const SlotSampling& p, int row, int slot,
                                          int id) {
  s.ids[row] = id;
  if (s.also_ids != nullptr) (*s.also_ids)[row] = id;
  if (id < 0) return;
  s.last_tokens[slot] = id;
  if (p.seen != nullptr) p.seen[id] += 1;
}

// Uniform in [0, 1) with 53 bits by Philox4x32-10: the same as cpu/philox.h.
__device__ __forceinline__ double philox_uniform(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    const uint32_t next0 = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key0;
    const uint32_t next2 = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key1;
    counter[0] = next0;
    counter[1] = static_cast<uint32_t>(b);
    counter[2] = next2;
    counter[3] = static_cast<uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{counter[0]} << 21) | (counter[1] >> 11)) * 0x1p-53;
}

// The workspace: per row whether the general way is asked for, a counter of finished parts, and what each
// part found.
constexpr int kParts = 32;            // of a row
constexpr int kPartIds = 8192;        // at most
constexpr int kPartCandidates = 256;  // (key << 32 | ~id), room for each part
struct SampleWorkspace {
  uint64_t* candidates;  // [rows, kParts, kPartCandidates]
  uint64_t* best;        // [rows, kParts]
  unsigned* n;           // [rows, kParts]
  unsigned* finished;    // [rows], 0 between launches
  unsigned* general;     // [rows]
};
constexpr size_t kSampleWorkspaceBytes =
    kParts * (kPartCandidates * sizeof(uint64_t) + sizeof(uint64_t) + sizeof(unsigned)) +
    2 * sizeof(unsigned);
__host__ __device__ inline SampleWorkspace sample_workspace_of(const SampleRows& s) {
  const auto rows = static_cast<size_t>(s.workspace_rows);
  SampleWorkspace w;
  w.candidates = static_cast<uint64_t*>(s.workspace);
  w.best = w.candidates + rows * kParts * kPartCandidates;
  w.n = reinterpret_cast<unsigned*>(w.best + rows * kParts);
  w.finished = w.n + rows * kParts;
  w.general = w.finished + rows;
  return w;
}
// Whether sample_tiles takes the row.
__device__ __forceinline__ bool by_tiles(const SampleRows& s, const SlotSampling& p, int row) {
  return s.tile_max != nullptr && by_tiles(p) && (s.allowed == nullptr || s.allowed[row] == nullptr);
}
__device__ __forceinline__ bool asks_general_way(const SampleRows& s, int row) {
  return sample_workspace_of(s).general[row] != 0;
}

}  // namespace device
}  // namespace jewel::cuda

// Sampling from the largest of each 16 logits, which the head's product leaves beside them: a block a row.
//
//   tiles    that can hold one of the row's k best: 256 threads each know the largest of 64 tiles or so, and
//            the k-th largest of what they know (and a few further, for ids that are never sampled) is a
//            bound that at least k logits reach
//   logits   of those tiles alone, about 75 of 16,384 for k = 64 of random rows: all that reach the bound
//   row      the exact choice among them (sampler_choice.h)
//
// Rows with penalties, biases or a mask have other logits than the head made, and are left to others.
#include "backend/cuda/decode_product.h"
#include "backend/cuda/sampler_choice.h"

namespace jewel::cuda {
namespace {

using namespace device;

constexpr int kTileIds = 16;
constexpr int kFours = 16;  // of a thread's tiles
constexpr int kMostTiles = 4 * kFours * kThreads;
constexpr int kHeld = kMostCandidates / (kThreads / kTileIds);  // logits of a thread

struct Shared {
  Choice choice;
  unsigned n_tiles;
  int tiles[kMostCandidates];
  int masked[kMostByTiles];  // ids
};

// The row's candidates among the tiles whose largest logit reaches `threshold`; false when they do not fit.
__device__ bool gather(const float (&maxima)[kFours][4], const float* logits, int vocab, int n_masked,
                       uint32_t threshold, Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const float least = logit_of(threshold);
  uint64_t kept = 0;  // bit 4 i + e
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) kept |= maxima[i][e] >= least ? uint64_t{1} << (4 * i + e) : 0;
  }
  for (; kept != 0; kept &= kept - 1) {
    const int bit = __ffsll(static_cast<long long>(kept)) - 1;
    const unsigned at = atomicAdd(&shared.n_tiles, 1u);
    if (at < kMostCandidates) shared.tiles[at] = 4 * (bit / 4 * kThreads + thread) + bit % 4;
  }
  __syncthreads();
  const unsigned n_tiles = shared.n_tiles;
  if (n_tiles > kMostCandidates) return false;
  float held[kHeld];
  const auto tile_of = [&](int i) {
    return static_cast<unsigned>(i * (kThreads / kTileIds) + thread / kTileIds);
  };
  const auto id_at = [&](int i) { return shared.tiles[tile_of(i)] * kTileIds + thread % kTileIds; };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    held[i] = kMasked;
    if (tile_of(i) < n_tiles && id_at(i) < vocab) held[i] = __ldcg(logits + id_at(i));
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const uint32_t key = device::key_of(held[i]);
    if (key < threshold) continue;
    const int id = id_at(i);
    bool never = false;
    for (int m = 0; m < n_masked; ++m) never |= shared.masked[m] == id;
    if (!never) shared.choice.add(candidate_of(key, id));
  }
  __syncthreads();
  return shared.choice.n <= kMostCandidates;
}

__global__ void __launch_bounds__(kThreads) sample_tiles(const __grid_constant__ SampleRows s) {
  __shared__ Shared shared;
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  release_next_kernel();
  // What a step's first kernel, or the host before it, has written.
  const int position = s.positions[row], slot = s.slots[row];
  const SlotSampling p = s.sampling[slot];
  const bool takes = by_tiles(s, p, row);
  const int n_never = takes ? p.n_never : 0;
  const int n_masked = n_never + (takes && position + 1 < p.not_before_position ? p.n_not_before : 0);
  for (int i = thread; i < n_masked; i += kThreads) {
    shared.masked[i] = i < n_never ? p.never[i] : p.not_before[i - n_never];
  }
  if (thread == 0) shared.n_tiles = 0, shared.choice.n = 0;
  const double uniform = philox_uniform(p.seed, static_cast<uint64_t>(position + 1));
  wait_for_last_kernel();
  const int stride = logit_tile_stride(s.vocab);
  const float* from = s.tile_max + static_cast<int64_t>(row) * stride;
  float maxima[kFours][4];  // of tiles 4 (i kThreads + thread) and on
  float most = kMasked;     // fmaxf passes over what is not a number
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int at = 4 * (i * kThreads + thread);
    const float4 v = at < stride ? __ldcg(reinterpret_cast<const float4*>(from + at))
                                 : float4{kMasked, kMasked, kMasked, kMasked};
    maxima[i][0] = v.x, maxima[i][1] = v.y, maxima[i][2] = v.z, maxima[i][3] = v.w;
  }
  if (position < 0) return;
  const SampleWorkspace w = sample_workspace_of(s);
  if (!takes) {
    if (thread == 0) w.general[row] = 1;
    return;
  }
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) most = fmaxf(most, maxima[i][e]);
  }
  const bool greedy = p.temperature <= 0;
  const int k = greedy ? 1 : min(p.top_k, s.vocab);
  const uint32_t threshold = key_that_reach(device::key_of(most), k + n_masked, device::key_of(kMasked) + 1);
  const bool decided =
      gather(maxima, s.logits + static_cast<int64_t>(row) * s.vocab, s.vocab, n_masked, threshold, shared);
  int id = -1;
  if (decided && shared.choice.n > 0) {
    if (greedy) {
      const uint64_t mine = thread < static_cast<int>(shared.choice.n) ? shared.choice.candidates[thread] : 0;
      id = id_of(block_best<kThreads>(mine, shared.choice.scratch));
    } else {
      id = choose(p, k, uniform, shared.choice);
    }
  }
  if (thread != 0) return;
  w.general[row] = decided ? 0 : 1;
  if (decided) put_token(s, p, row, slot, id);
}

}  // namespace

cudaError_t launch_sample_tiles(const SampleRows& sample, cudaStream_t stream) {
  if (sample.n > sample.workspace_rows || sample.vocab > kMostTiles * kTileIds) return cudaErrorInvalidValue;
  return launch_dependent_if(sample.overlap, sample_tiles, dim3(static_cast<unsigned>(sample.n)), kThreads, 0,
                             stream, sample);
}

}  // namespace jewel::cuda

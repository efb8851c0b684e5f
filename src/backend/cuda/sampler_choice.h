// From candidates to a row's token: what the two ways share that keep only the logits that may be chosen
// (sampler_tiles.cu, sampler_parts.cu). Blocks of kThreads; all of a block calls. Include from .cu files
// only.
#pragma once

#include "backend/cuda/sampler_device.h"

namespace jewel::cuda::device {

constexpr int kThreads = 256;

// A key, at least `lowest`, that k or a few more of the threads' keys reach, or `lowest` where fewer do. By
// halving, which stops when close enough: what is chosen later does not depend on where.
inline __device__ uint32_t key_that_reach(uint32_t mine, int k, uint32_t lowest) {
  uint32_t low = lowest, high = 0xff800001u;  // nothing lies above infinity
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int n = __syncthreads_count(mine >= middle ? 1 : 0);
    if (n < k) {
      high = middle;
      continue;
    }
    low = middle;
    if (n <= k + k / 8 + 1) break;
  }
  return low;
}

constexpr int kMostCandidates = 256;  // a thread each

struct Choice {
  uint64_t scratch[kThreads / 32];
  unsigned n;  // candidates; more than there is room for: they are not all there
  uint64_t candidates[kMostCandidates];
  uint64_t sorted[kMostCandidates];             // from the largest on
  int places[kMostCandidates];                  // in the order of ids
  unsigned long long weights[kMostCandidates];  // in the order of ids; 0 once dropped
  unsigned long long sums[2][kThreads / 32];
  int picked;

  // By any thread.
  __device__ __forceinline__ void add(uint64_t candidate) {
    const unsigned at = atomicAdd(&n, 1u);
    if (at < kMostCandidates) candidates[at] = candidate;
  }
};

// The sum of the threads' values in front of this one's, and of all.
struct Prefix {
  unsigned long long before, total;
};
inline __device__ Prefix prefix_of(unsigned long long value, unsigned long long* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  unsigned long long sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned long long other = __shfl_up_sync(~0u, sum, step);
    sum += lane >= step ? other : 0;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  Prefix prefix = {.before = sum - value, .total = 0};
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    const unsigned long long of_warp = scratch[w];
    prefix.before += w < warp ? of_warp : 0;
    prefix.total += of_warp;
  }
  return prefix;
}

// The token of a row with top_k, from the candidates. Each finds its rank among all, by key and by
// id; from then on a thread has the candidate of its rank.
inline __device__ int choose(const SlotSampling& p, int k, double uniform, Choice& choice) {
  const int n = static_cast<int>(choice.n), me = static_cast<int>(threadIdx.x);
  if (me / 32 * 32 < n) {  // warps without a candidate have nothing to find
    const uint64_t mine = me < n ? choice.candidates[me] : 0;
    int rank = 0, place = 0;
#pragma unroll 8
    for (int i = 0; i < n; ++i) {
      const uint64_t other = choice.candidates[i];
      rank += other > mine ? 1 : 0;
      place += id_of(other) < id_of(mine) ? 1 : 0;
    }
    if (me < n) choice.sorted[rank] = mine, choice.places[rank] = place;
  }
  __syncthreads();
  const bool exists = me < n;
  const uint64_t mine = exists ? choice.sorted[me] : 0;
  const float max = logit_of(key_of(choice.sorted[0]));
  const uint32_t floor = n < k ? 0 : key_of(choice.sorted[k - 1]);  // fewer than k: no floor
  unsigned long long weight =
      exists && key_of(mine) >= floor ? weight_of(logit_of(key_of(mine)), max, p.temperature) : 0;
  if (p.top_p < 1) {
    const Prefix above = prefix_of(weight, choice.sums[0]);
    auto wanted =
        static_cast<unsigned long long>(static_cast<double>(p.top_p) * static_cast<double>(above.total));
    wanted = wanted > 0 ? wanted : 1;
    if (above.before >= wanted) weight = 0;
  }
  if (p.min_p > 0) {
    const auto least = static_cast<unsigned long long>(static_cast<double>(p.min_p) * 17592186044416.0);
    if (weight < least && me != 0) weight = 0;
  }
  // The candidates' places are free: all have read theirs.
  if (exists) choice.candidates[choice.places[me]] = mine, choice.weights[choice.places[me]] = weight;
  if (me == 0) choice.picked = id_of(mine);
  __syncthreads();
  weight = exists ? choice.weights[me] : 0;
  const Prefix in_front = prefix_of(weight, choice.sums[1]);
  const auto target = static_cast<unsigned long long>(uniform * static_cast<double>(in_front.total));
  if (target >= in_front.before && target < in_front.before + weight)
    choice.picked = id_of(choice.candidates[me]);
  __syncthreads();
  return choice.picked;
}

}  // namespace jewel::cuda::device

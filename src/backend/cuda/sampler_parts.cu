// Sampling by many blocks: kParts blocks a row, each with its part of the ids; the last to finish decides.
//
//   part    logits in registers; where there are penalties, biases or masks, by way of shared memory. Then
//           the best of them (greedy), or candidates: all keys that reach the k-th largest of the 256
//           threads' maxima. At least k of the part reach it, so what does not cannot be among the row's k
//           best; of random rows about 75 do for k = 64
//   row     the same step over the parts' candidates, then exact: ranks by counting, top_p and min_p by
//           integer sums (order does not matter), the pick in the order of ids
//
// A row whose candidates do not fit (very many equal logits) or whose top_k is off or above 128 is left to
// the general way. E4B: 1 MB of logits a row, read once.
#include "backend/cuda/sampler_choice.h"

namespace jewel::cuda {
namespace {

using namespace device;

struct Shared {
  Choice choice;
  unsigned before;
};

// Penalties, biases and masks of the ids [begin, begin + n), on logits in shared memory.
__device__ void adjust(const SampleRows& s, const SlotSampling& p, int row, float* logits, int begin, int n) {
  const auto mine = [&](int id) { return id >= begin && id < begin + n; };
  if (p.seen != nullptr) {
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const uint32_t seen = p.seen[begin + i];
      if (seen == 0) continue;
      float logit = logits[i];
      logit = logit > 0 ? logit / p.repetition_penalty : logit * p.repetition_penalty;
      const uint32_t count = seen & 0x7fffffffu;
      if (count > 0) logit -= p.frequency_penalty * static_cast<float>(count) + p.presence_penalty;
      logits[i] = logit;
    }
    __syncthreads();
  }
  for (int i = threadIdx.x; i < p.n_biases; i += kThreads) {
    const BiasedToken biased = p.biases[i];
    if (mine(biased.id)) atomicAdd(&logits[biased.id - begin], biased.bias);
  }
  if (p.n_biases > 0) __syncthreads();
  for (int i = threadIdx.x; i < p.n_never; i += kThreads) {
    if (mine(p.never[i])) logits[p.never[i] - begin] = kMasked;
  }
  if (s.positions[row] + 1 < p.not_before_position) {
    for (int i = threadIdx.x; i < p.n_not_before; i += kThreads) {
      if (mine(p.not_before[i])) logits[p.not_before[i] - begin] = kMasked;
    }
  }
  const uint32_t* allowed = s.allowed != nullptr ? s.allowed[row] : nullptr;
  if (allowed != nullptr) {
    for (int i = threadIdx.x; i < n; i += kThreads) {
      if ((allowed[(begin + i) / 32] >> ((begin + i) % 32) & 1u) == 0) logits[i] = kMasked;
    }
  }
  __syncthreads();
}

// Whether adjust() would leave the row as it is.
__device__ __forceinline__ bool is_plain(const SampleRows& s, const SlotSampling& p, int row, int position) {
  return p.seen == nullptr && p.n_biases == 0 && p.n_never == 0 &&
         (p.n_not_before == 0 || position + 1 >= p.not_before_position) &&
         (s.allowed == nullptr || s.allowed[row] == nullptr);
}

// The row's candidates that can be among its k best, to shared memory; false when they do not fit.
__device__ bool gather(const SampleWorkspace& w, int row, int k, Shared& shared) {
  constexpr int kLanes = kThreads / kParts, kHeld = 16;  // of a part's candidates, in registers
  const int part = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const uint64_t* from = w.candidates + (static_cast<size_t>(row) * kParts + part) * kPartCandidates;
  const auto n = static_cast<int>(__ldcg(w.n + row * kParts + part));
  uint64_t held[kHeld];
  uint32_t top = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = __ldcg(from + lane + i * kLanes);  // before n is there
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (lane + i * kLanes >= n) held[i] = 0;
    top = max(top, key_of(held[i]));
  }
  Choice& choice = shared.choice;
  if (threadIdx.x == 0) choice.n = 0;
  if (__syncthreads_or(n > kPartCandidates ? 1 : 0) != 0) return false;
  for (int i = lane + kHeld * kLanes; i < n; i += kLanes) top = max(top, key_of(__ldcg(from + i)));
  const uint32_t threshold = key_that_reach(top, k, 1);
  const auto keep = [&](uint64_t c) {
    if (key_of(c) >= threshold) choice.add(c);
  };
  if (top >= threshold) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) keep(held[i]);
    for (int i = lane + kHeld * kLanes; i < n; i += kLanes) keep(__ldcg(from + i));
  }
  __syncthreads();
  return choice.n <= kMostCandidates;
}

__global__ void __launch_bounds__(kThreads) sample_parts(const __grid_constant__ SampleRows s) {
  __shared__ Shared shared;
  __shared__ alignas(16) float logits[kPartIds];
  // The head makes the logits of all rows from the first id to the last; the last are still in L2.
  const int part = kParts - 1 - static_cast<int>(blockIdx.y), row = static_cast<int>(blockIdx.x);
  const int per_part = (s.vocab + kParts * 4 - 1) / (kParts * 4) * 4;
  const int begin = part * per_part, n = max(0, min(per_part, s.vocab - begin));
  const float* from = s.logits + static_cast<int64_t>(row) * s.vocab + begin;
  release_next_kernel();
  // What a step's first kernel, or the host before it, has written.
  const int position = s.positions[row], slot = s.slots[row];
  const SlotSampling p = s.sampling[slot];
  wait_for_last_kernel();
  if (by_tiles(s, p, row)) return;
  // All loads are under way before the first is needed.
  constexpr int kFours = kPartIds / 4 / kThreads;
  float fours[kFours][4];  // of ids 4 at(i) .. 4 at(i) + 3 of the part; masked beyond its end
  const auto at = [](int i) { return 4 * (i * kThreads + static_cast<int>(threadIdx.x)); };
  const auto load_four = [&](int i, const float4& v) {
    fours[i][0] = v.x, fours[i][1] = v.y, fours[i][2] = v.z, fours[i][3] = v.w;
  };
  const bool by_fours = s.vocab % 4 == 0;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const bool exists = by_fours && at(i) < n;
    load_four(i, exists ? __ldcs(reinterpret_cast<const float4*>(from + at(i)))
                        : float4{kMasked, kMasked, kMasked, kMasked});
  }
  if (position < 0) return;
  const SampleWorkspace w = sample_workspace_of(s);
  const bool greedy = p.temperature <= 0;
  const int k = min(p.top_k, s.vocab);
  if (!greedy && (k < 1 || k > kMaxTopK)) {
    if (part == 0 && threadIdx.x == 0) w.general[row] = 1;
    return;
  }
  const bool adjusted = !by_fours || !is_plain(s, p, row, position);  // `logits` holds the part
  if (adjusted) {
    if (by_fours) {
#pragma unroll
      for (int i = 0; i < kFours; ++i) {
        *reinterpret_cast<float4*>(logits + at(i)) = {fours[i][0], fours[i][1], fours[i][2], fours[i][3]};
      }
    } else {
      for (int i = threadIdx.x; i < kPartIds; i += kThreads) logits[i] = i < n ? from[i] : kMasked;
    }
    __syncthreads();
    adjust(s, p, row, logits, begin, n);
#pragma unroll
    for (int i = 0; i < kFours; ++i) load_four(i, *reinterpret_cast<const float4*>(logits + at(i)));
  }

  uint64_t best = 0;
  const uint32_t masked = device::key_of(kMasked);
  if (greedy) {
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {  // ids ascend: the first of equals stays
        const uint32_t key = device::key_of(fours[i][e]);
        if (key > key_of(best)) best = candidate_of(key, begin + at(i) + e);
      }
    }
    best = block_best<kThreads>(best, shared.choice.scratch);
    if (threadIdx.x == 0) __stcg(w.best + row * kParts + part, best);
  } else {
    float most = fours[0][0];  // fmaxf passes over what is not a number
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) most = fmaxf(most, fours[i][e]);
    }
    if (threadIdx.x == 0) shared.choice.n = 0;
    const uint32_t threshold = key_that_reach(device::key_of(most), k, masked + 1);
    uint64_t* to = w.candidates + (static_cast<size_t>(row) * kParts + part) * kPartCandidates;
    const float least = logit_of(threshold);
    uint32_t kept = 0;  // bit 4 i + e
    static_assert(kFours * 4 <= 32);
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) kept |= fours[i][e] >= least ? 1u << (4 * i + e) : 0;
    }
    for (; kept != 0; kept &= kept - 1) {  // few: read once more, where an index can say which
      const int bit = __ffs(static_cast<int>(kept)) - 1, id = at(bit / 4) + bit % 4;
      const uint32_t key = device::key_of(adjusted ? logits[id] : from[id]);
      if (key < threshold) continue;  // -0 is not below 0, its key is
      const unsigned place = atomicAdd(&shared.choice.n, 1u);
      if (place < kPartCandidates) __stcg(to + place, candidate_of(key, begin + id));
    }
    __syncthreads();
    if (threadIdx.x == 0) __stcg(w.n + row * kParts + part, shared.choice.n);
  }

  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.before = atomicAdd(w.finished + row, 1u);
  __syncthreads();
  if (shared.before != kParts - 1) return;
  __threadfence();

  int id = -1;
  bool decided = true;
  if (greedy) {
    best = threadIdx.x < kParts ? __ldcg(w.best + row * kParts + threadIdx.x) : 0;
    best = block_best<kThreads>(best, shared.choice.scratch);
    if (key_of(best) > masked) id = id_of(best);
  } else {
    decided = gather(w, row, k, shared);
    if (decided && shared.choice.n > 0) {
      id = choose(p, k, philox_uniform(p.seed, static_cast<uint64_t>(position + 1)), shared.choice);
    }
  }
  if (threadIdx.x != 0) return;
  w.finished[row] = 0;
  w.general[row] = decided ? 0 : 1;
  if (!decided) return;
  put_token(s, p, row, slot, id);
}

}  // namespace

size_t sample_workspace(int max_rows) {
  return static_cast<size_t>(max_rows) * kSampleWorkspaceBytes;
}

cudaError_t launch_sample_parts(const SampleRows& sample, cudaStream_t stream) {
  if (sample.n > sample.workspace_rows || sample.vocab > kParts * kPartIds) return cudaErrorInvalidValue;
  return launch_dependent_if(sample.overlap, sample_parts, dim3(static_cast<unsigned>(sample.n), kParts),
                             kThreads, 0, stream, sample);
}

}  // namespace jewel::cuda

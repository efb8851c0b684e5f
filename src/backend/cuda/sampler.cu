// The general way: a block a row, any parameters, several passes over the row. Rows that sampler_parts.cu can
// decide (greedy, top_k up to 128: nearly all) never come here.
#include "backend/cuda/sampler.h"

#include "backend/cuda/sampler_device.h"

namespace jewel::cuda {
namespace {

constexpr int kThreads = 1024;

using namespace device;

template <typename T>
__device__ T block_sum(T value, T* scratch) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += scratch[w];
  return sum;
}

__device__ uint64_t best_of_row(const float* logits, int vocab, uint64_t* scratch) {
  uint64_t best = 0;
  for (int i = threadIdx.x; i < vocab; i += kThreads) {
    const uint64_t candidate = candidate_of(key_of(logits[i]), i);
    best = candidate > best ? candidate : best;
  }
  return block_best<kThreads>(best, scratch);
}

// Amounts by digit, in 32 copies: of random logits nearly all have the same first digit, and additions to one
// address go one by one.
constexpr int kCopies = 32;
constexpr size_t kHistogramBytes = size_t{256} * kCopies * sizeof(unsigned long long);

struct Histogram {
  unsigned long long* copies;  // [256][kCopies], dynamic shared memory
  unsigned long long amount[256];
  int digit;
  unsigned long long above;
};

// The largest key t such that the amounts of keys >= t reach `wanted` (>= 1), among keys >= floor; `above`:
// the amounts of keys > t. amount_of(i, key) of every candidate is asked four times.
template <typename Amount>
__device__ uint32_t select_key(const float* logits, int vocab, uint32_t floor, unsigned long long wanted,
                               unsigned long long& above, Histogram& histogram, Amount amount_of) {
  uint32_t prefix = 0, mask = 0;
  above = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < 256 * kCopies; i += kThreads) histogram.copies[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab; i += kThreads) {
      const uint32_t key = key_of(logits[i]);
      if (key >= floor && (key & mask) == prefix) {
        atomicAdd(&histogram.copies[(key >> shift & 255) * kCopies + threadIdx.x % kCopies], amount_of(i));
      }
    }
    __syncthreads();
    if (threadIdx.x < 256) {
      unsigned long long sum = 0;
      for (int c = 0; c < kCopies; ++c) {
        sum += histogram.copies[threadIdx.x * kCopies + (c + threadIdx.x) % kCopies];
      }
      histogram.amount[threadIdx.x] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long sum = above;
      int digit = 255;
      while (digit > 0 && sum + histogram.amount[digit] < wanted) sum += histogram.amount[digit--];
      histogram.digit = digit;
      histogram.above = sum;
    }
    __syncthreads();
    prefix |= static_cast<uint32_t>(histogram.digit) << shift;
    mask |= 255u << shift;
    above = histogram.above;
  }
  return prefix;
}

__device__ void adjust_row(const SampleRows& s, const SlotSampling& p, int row, float* logits) {
  const int position = s.positions[row] + 1;
  if (p.seen) {
    for (int i = threadIdx.x; i < s.vocab; i += kThreads) {
      const uint32_t seen = p.seen[i];
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
    if (biased.id >= 0 && biased.id < s.vocab) atomicAdd(&logits[biased.id], biased.bias);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.n_never; i += kThreads) {
    if (p.never[i] >= 0 && p.never[i] < s.vocab) logits[p.never[i]] = kMasked;
  }
  if (position < p.not_before_position) {
    for (int i = threadIdx.x; i < p.n_not_before; i += kThreads) {
      if (p.not_before[i] >= 0 && p.not_before[i] < s.vocab) logits[p.not_before[i]] = kMasked;
    }
  }
  const uint32_t* allowed = s.allowed ? s.allowed[row] : nullptr;
  if (allowed) {
    for (int i = threadIdx.x; i < s.vocab; i += kThreads) {
      if ((allowed[i / 32] >> (i % 32) & 1u) == 0) logits[i] = kMasked;
    }
  }
  __syncthreads();
}

// One block a row.
__global__ void __launch_bounds__(kThreads) sample_rows(SampleRows s) {
  __shared__ uint64_t scratch[kThreads / 32];
  __shared__ unsigned long long sums[kThreads];
  __shared__ int ties[kThreads];
  __shared__ Histogram histogram;
  __shared__ int picked;
  extern __shared__ unsigned long long copies[];
  wait_for_previous();
  const int row = static_cast<int>(blockIdx.x), slot = s.slots[row], position = s.positions[row];
  const bool general = s.workspace == nullptr || asks_general_way(s, row);
  if (position < 0 || !general) return;
  if (threadIdx.x == 0) histogram.copies = copies;
  __syncthreads();
  const SlotSampling p = s.sampling[slot];
  float* logits = s.logits + static_cast<int64_t>(row) * s.vocab;
  adjust_row(s, p, row, logits);

  const uint64_t best = best_of_row(logits, s.vocab, scratch);
  const uint32_t best_key = key_of(best);
  int id = id_of(best);
  if (best_key <= key_of(kMasked)) id = -1;
  if (id >= 0 && p.temperature > 0) {
    const float max = logits[id];
    uint32_t floor = key_of(kMasked) + 1;
    unsigned long long above = 0;
    if (p.top_k > 0 && p.top_k < s.vocab) {
      const uint32_t kth = select_key(logits, s.vocab, floor, static_cast<unsigned long long>(p.top_k), above,
                                      histogram, [](int) { return 1ull; });
      floor = kth > floor ? kth : floor;
    }
    // top_p: everything above `tie_key`, and of its ties the first `n_ties` by id.
    uint32_t tie_key = 0;
    int n_ties = 0;
    if (p.top_p < 1) {
      unsigned long long mine = 0;
      for (int i = threadIdx.x; i < s.vocab; i += kThreads) {
        if (key_of(logits[i]) >= floor) mine += weight_of(logits[i], max, p.temperature);
      }
      const auto total = block_sum<unsigned long long>(mine, sums);
      auto wanted =
          static_cast<unsigned long long>(static_cast<double>(p.top_p) * static_cast<double>(total));
      wanted = wanted > 0 ? wanted : 1;
      tie_key = select_key(logits, s.vocab, floor, wanted, above, histogram,
                           [&](int i) { return weight_of(logits[i], max, p.temperature); });
      // All ties weigh the same.
      const float tie_logit = logit_of(tie_key);
      const unsigned long long tie_weight = weight_of(tie_logit, max, p.temperature);
      const unsigned long long missing = wanted > above ? wanted - above : 1;
      n_ties = tie_weight == 0 ? 1 : static_cast<int>((missing + tie_weight - 1) / tie_weight);
      floor = tie_key;
    }
    unsigned long long least = 0;
    if (p.min_p > 0) least = static_cast<unsigned long long>(static_cast<double>(p.min_p) * 17592186044416.0);

    // The pick, in the order of ids: each thread has a run of them.
    const int run = (s.vocab + kThreads - 1) / kThreads, begin = static_cast<int>(threadIdx.x) * run;
    const int end = min(begin + run, s.vocab);
    int my_ties = 0;
    for (int i = begin; i < end; ++i) my_ties += n_ties > 0 && key_of(logits[i]) == tie_key ? 1 : 0;
    __syncthreads();
    ties[threadIdx.x] = my_ties;
    __syncthreads();
    int tie_rank = 0;
    if (n_ties > 0) {
      for (int t = 0; t < static_cast<int>(threadIdx.x); ++t) tie_rank += ties[t];
    }
    const auto kept_weight = [&](int i, int& rank) -> unsigned long long {
      const uint32_t key = key_of(logits[i]);
      if (key < floor) return 0;
      if (n_ties > 0 && key == tie_key && rank++ >= n_ties) return 0;
      const unsigned long long weight = weight_of(logits[i], max, p.temperature);
      return weight >= least || i == id ? weight : 0;
    };
    unsigned long long mine = 0;
    int rank = tie_rank;
    for (int i = begin; i < end; ++i) mine += kept_weight(i, rank);
    __syncthreads();
    sums[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned long long sum = 0;
      for (int t = 0; t < kThreads; ++t) {
        const unsigned long long part = sums[t];
        sums[t] = sum;
        sum += part;
      }
      histogram.above = static_cast<unsigned long long>(
          philox_uniform(p.seed, static_cast<uint64_t>(s.positions[row] + 1)) * static_cast<double>(sum));
      picked = id;
    }
    __syncthreads();
    const unsigned long long target = histogram.above;
    unsigned long long sum = sums[threadIdx.x];
    if (target >= sum && target < sum + mine) {
      rank = tie_rank;
      for (int i = begin; i < end; ++i) {
        sum += kept_weight(i, rank);
        if (sum > target) {
          picked = i;
          break;
        }
      }
    }
    __syncthreads();
    id = picked;
  }
  if (threadIdx.x == 0) put_token(s, p, row, slot, id);
}

__global__ void note_seen(uint32_t* seen, int vocab, const int32_t* ids, int n, bool output) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n || ids[i] < 0 || ids[i] >= vocab) return;
  if (output)
    atomicAdd(&seen[ids[i]], 1u);
  else
    atomicOr(&seen[ids[i]], 0x80000000u);
}

__global__ void __launch_bounds__(kThreads) logprob_rows(LogprobRows r) {
  __shared__ uint64_t scratch[kThreads / 32];
  __shared__ double sums[kThreads / 32];
  const int row = static_cast<int>(blockIdx.x);
  if (r.n_top[row] < 0) return;
  const float* logits = r.logits + static_cast<int64_t>(row) * r.vocab;
  RowLogprobs& out = r.out[row];
  uint64_t best = best_of_row(logits, r.vocab, scratch);
  const float max = logits[0xffffffffu - static_cast<uint32_t>(best)];
  double mine = 0;
  for (int i = threadIdx.x; i < r.vocab; i += kThreads) mine += static_cast<double>(expf(logits[i] - max));
  const double log_sum = static_cast<double>(max) + log(block_sum<double>(mine, sums));
  const int id = r.ids ? r.ids[row] : -1;
  if (id >= 0) {
    int above = 0;
    for (int i = threadIdx.x; i < r.vocab; i += kThreads) above += logits[i] > logits[id] ? 1 : 0;
    const int rank = block_sum<int>(above, reinterpret_cast<int*>(scratch));
    if (threadIdx.x == 0) {
      out.rank = rank + 1;
      out.logprob = static_cast<float>(static_cast<double>(logits[id]) - log_sum);
    }
  }
  const int n_top = min(min(r.n_top[row], kMaxTopLogprobs), r.vocab);
  for (int k = 0; k < n_top; ++k) {
    const int top = id_of(best);
    if (threadIdx.x == 0) {
      out.top_ids[k] = top;
      out.top_logprobs[k] = static_cast<float>(static_cast<double>(logits[top]) - log_sum);
    }
    const uint64_t before = best;
    uint64_t next = 0;
    for (int i = threadIdx.x; i < r.vocab; i += kThreads) {
      const uint64_t candidate = candidate_of(key_of(logits[i]), i);
      if (candidate < before && candidate > next) next = candidate;
    }
    best = block_best<kThreads>(next, scratch);
  }
  if (threadIdx.x == 0) {
    out.id = id;
    out.n_top = n_top;
  }
}

}  // namespace

cudaError_t launch_sample_rows(const SampleRows& sample, cudaStream_t stream) {
  if (sample.n == 0) return cudaSuccess;
  SampleRows rows = sample;
  if (sample.vocab > kParts * kPartIds) rows.workspace = nullptr;
  if (rows.workspace == nullptr) rows.tile_max = nullptr;
  if (rows.tile_max != nullptr) {
    const cudaError_t error = launch_sample_tiles(rows, stream);
    if (error != cudaSuccess) return error;
  }
  if (rows.workspace != nullptr && (rows.tile_max == nullptr || !rows.all_by_tiles)) {
    const cudaError_t error = launch_sample_parts(rows, stream);
    if (error != cudaSuccess) return error;
  }
  const cudaError_t raised = cudaFuncSetAttribute(sample_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(kHistogramBytes));
  if (raised != cudaSuccess) return raised;
  return launch_dependent_if(sample.overlap, sample_rows, dim3(static_cast<unsigned>(rows.n)), kThreads,
                             static_cast<int>(kHistogramBytes), stream, rows);
}

cudaError_t launch_note_seen(uint32_t* seen, int vocab, const int32_t* ids, int n, bool output,
                             cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  note_seen<<<static_cast<unsigned>((n + 255) / 256), 256, 0, stream>>>(seen, vocab, ids, n, output);
  return cudaGetLastError();
}

cudaError_t launch_logprob_rows(const LogprobRows& rows, cudaStream_t stream) {
  if (rows.n == 0) return cudaSuccess;
  logprob_rows<<<static_cast<unsigned>(rows.n), kThreads, 0, stream>>>(rows);
  return cudaGetLastError();
}

}  // namespace jewel::cuda

// Tests and times of sampling on the device, stand-alone: rows with all kinds of parameters against a plain
// float64 version of the rules, the fast ways against the general one (the same token always), alone against
// in a batch; then times over buffers beyond L2. Exit status 1 when a check fails.
//
//   cuda_sampler                  all
//   cuda_sampler profile ROWS     one batch of sampled rows, for a profiler
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "backend/cuda/decode_product.h"
#include "backend/cuda/sampler.h"

namespace {

using namespace jewel::cuda;

constexpr float kInf = std::numeric_limits<float>::infinity();
int failures = 0;

void check_cuda(cudaError_t error, const char* what, int line) {
  if (error == cudaSuccess) return;
  std::printf("FAIL line %d: %s: %s\n", line, what, cudaGetErrorString(error));
  std::exit(1);
}
#define CUDA(call) check_cuda(call, #call, __LINE__)

template <typename T>
T* to_device(const std::vector<T>& host) {
  T* data = nullptr;
  CUDA(cudaMalloc(&data, std::max<size_t>(1, host.size()) * sizeof(T)));
  CUDA(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

struct Row {
  SlotSampling sampling;  // pointers unset
  std::vector<BiasedToken> biases;
  std::vector<int32_t> never, not_before;
  std::vector<uint32_t> seen;     // [vocab] or empty
  std::vector<uint32_t> allowed;  // bits or empty
  std::vector<float> logits;
  int position = 0;
};

double philox_uniform(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c[0], b = uint64_t{0xCD9E8D57u} * c[2];
    const uint32_t n[4] = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
                           static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    std::copy(n, n + 4, c);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return static_cast<double>((uint64_t{c[0]} << 21) | (c[1] >> 11)) * 0x1p-53;
}

// The token by the rules of sampler.h; `margin`: how far, as a share of all weight, the nearest other choice
// is.
int reference(const Row& r, double& margin) {
  const SlotSampling& p = r.sampling;
  std::vector<float> x = r.logits;
  const int vocab = static_cast<int>(x.size()), sampled_at = r.position + 1;
  for (int i = 0; i < vocab && !r.seen.empty(); ++i) {
    const uint32_t seen = r.seen[static_cast<size_t>(i)];
    if (seen == 0) continue;
    float& l = x[static_cast<size_t>(i)];
    l = l > 0 ? l / p.repetition_penalty : l * p.repetition_penalty;
    if ((seen & 0x7fffffffu) > 0)
      l -= p.frequency_penalty * static_cast<float>(seen & 0x7fffffffu) + p.presence_penalty;
  }
  for (const BiasedToken& b : r.biases) x[static_cast<size_t>(b.id)] += b.bias;
  for (int id : r.never) x[static_cast<size_t>(id)] = -kInf;
  if (sampled_at < p.not_before_position) {
    for (int id : r.not_before) x[static_cast<size_t>(id)] = -kInf;
  }
  for (size_t i = 0; i < x.size() && !r.allowed.empty(); ++i) {
    if ((r.allowed[i / 32] >> (i % 32) & 1u) == 0) x[i] = -kInf;
  }
  margin = 1;
  std::vector<int> order;
  for (int i = 0; i < vocab; ++i) {
    if (x[static_cast<size_t>(i)] > -kInf) order.push_back(i);
  }
  if (order.empty()) return -1;
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)]; });
  if (p.temperature <= 0) return order[0];
  size_t kept = order.size();
  if (p.top_k > 0 && static_cast<size_t>(p.top_k) < kept) {
    const float floor = x[static_cast<size_t>(order[static_cast<size_t>(p.top_k - 1)])];
    kept = static_cast<size_t>(
        std::find_if(order.begin(), order.end(), [&](int i) { return x[static_cast<size_t>(i)] < floor; }) -
        order.begin());
  }
  const double max = x[static_cast<size_t>(order[0])];
  const auto weight = [&](int i) {
    return std::exp((x[static_cast<size_t>(i)] - max) / static_cast<double>(p.temperature));
  };
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += weight(order[i]);
  if (p.top_p < 1) {
    double sum = 0;
    size_t n = 0;
    while (n < kept && (n == 0 || sum < static_cast<double>(p.top_p) * total)) sum += weight(order[n++]);
    const double last = weight(order[n - 1]);
    margin = std::min(margin, std::min(std::abs(sum - static_cast<double>(p.top_p) * total),
                                       std::abs(static_cast<double>(p.top_p) * total - sum + last)) /
                                  total);
    kept = n;
  }
  std::vector<int> ids(order.begin(), order.begin() + static_cast<long>(kept));
  if (p.min_p > 0)
    std::erase_if(ids, [&](int i) { return weight(i) < static_cast<double>(p.min_p) && i != order[0]; });
  std::sort(ids.begin(), ids.end());
  double sum = 0;
  total = 0;
  for (int i : ids) total += weight(i);
  const double target = philox_uniform(p.seed, static_cast<uint64_t>(sampled_at)) * total;
  for (int i : ids) {
    sum += weight(i);
    margin = std::min(margin, std::abs(sum - target) / total);
    if (sum > target) return i;
  }
  return ids.back();
}

std::vector<Row> make_rows(int vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> gauss;
  std::vector<Row> rows;
  for (int kind = 0; kind < 24; ++kind) {
    Row r;
    SlotSampling& p = r.sampling;
    p.seed = seed * 1000ull + static_cast<uint64_t>(kind) + (uint64_t{77} << 32);
    r.position = static_cast<int>(random() % 100000);
    const float spread = kind % 2 == 0 ? 4.0f : 1.5f;
    for (int i = 0; i < vocab; ++i) r.logits.push_back(30 * std::tanh(gauss(random) * spread / 30));
    const auto some = [&](int n) {
      std::vector<int32_t> ids;
      for (int i = 0; i < n; ++i)
        ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
      return ids;
    };
    const int best = static_cast<int>(std::max_element(r.logits.begin(), r.logits.end()) - r.logits.begin());
    r.never = some(7);
    p.top_k = 64, p.top_p = 0.95f;
    switch (kind) {
      case 0:
        p.temperature = 0;
        break;
      case 1:
        p.temperature = 0, std::fill(r.logits.begin(), r.logits.end(), 1.0f);
        break;
      case 2:
        break;
      case 3:
        p.temperature = 0.7f, p.top_k = 40, p.top_p = 1;
        break;
      case 4:
        p.top_k = 128, p.min_p = 0.05f;
        break;
      case 5:
        p.top_k = 1;
        break;
      case 6:
        p.top_k = 0;
        break;
      case 7:
        p.top_k = 0, p.top_p = 1;
        break;
      case 8:
      case 9:
        p.repetition_penalty = 1.3f, p.presence_penalty = 0.4f, p.frequency_penalty = 0.2f;
        r.seen.assign(static_cast<size_t>(vocab), 0);
        for (int id : some(500)) r.seen[static_cast<size_t>(id)] |= 0x80000000u;
        for (int id : some(200)) r.seen[static_cast<size_t>(id)] += 1;
        r.seen[static_cast<size_t>(best)] = 0x80000003u;
        break;
      case 10:
        for (int id : some(50)) r.biases.push_back({id, 5 * gauss(random)});
        break;
      case 11:
        r.never.push_back(best);
        break;
      case 12:
        r.not_before = {best}, p.not_before_position = r.position + 2;
        break;
      case 13:
        r.not_before = {best}, p.not_before_position = r.position + 1;
        break;
      case 14:
      case 15:
        r.allowed.assign(static_cast<size_t>(vocab + 31) / 32, 0);
        for (int id : some(kind == 14 ? 20 : 5000))
          r.allowed[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
        break;
      case 16:
        std::fill(r.logits.begin(), r.logits.end(), 2.0f);
        break;  // everything ties with the k-th
      case 17:
        r.allowed.assign(static_cast<size_t>(vocab + 31) / 32, 0);
        break;  // nothing survives
      case 18:  // as BF16 logits would be: many ties
        for (float& l : r.logits) l = std::round(l * 8) / 8;
        break;
      case 19:
        r.logits[static_cast<size_t>(best)] = std::nanf("");
        break;
      case 20:
        p.temperature = 2.5f, p.top_k = 100, p.top_p = 0.5f;
        break;
      case 21:
        p.top_k = 129;
        break;
      case 22:
        p.temperature = 0.05f;
        break;
      case 23:
        p.top_p = 0.0f;
        break;
    }
    rows.push_back(std::move(r));
  }
  return rows;
}

// The largest of each 16 logits of rows [n, vocab], as the head's product leaves them.
std::vector<float> tile_max_of(const std::vector<float>& logits, int vocab) {
  const auto stride = static_cast<size_t>(logit_tile_stride(vocab)), width = static_cast<size_t>(vocab);
  std::vector<float> out(logits.size() / width * stride, std::nanf(""));
  for (size_t i = 0; i < logits.size(); ++i) {
    float& most = out[i / width * stride + i % width / 16];
    most = std::fmax(most, logits[i]);
  }
  return out;
}

enum class Way { kGeneral, kParts, kTiles };  // the last with parts behind it

std::vector<int32_t> run(const std::vector<Row>& rows, Way way, std::vector<int32_t>* last = nullptr) {
  const int n = static_cast<int>(rows.size()), vocab = static_cast<int>(rows[0].logits.size());
  std::vector<float> logits;
  std::vector<SlotSampling> sampling;
  std::vector<int32_t> positions, slots;
  std::vector<const uint32_t*> allowed;
  std::vector<void*> owned;
  for (int i = 0; i < n; ++i) {
    const Row& r = rows[static_cast<size_t>(i)];
    logits.insert(logits.end(), r.logits.begin(), r.logits.end());
    SlotSampling p = r.sampling;
    p.biases = to_device(r.biases), p.n_biases = static_cast<int>(r.biases.size());
    p.never = to_device(r.never), p.n_never = static_cast<int>(r.never.size());
    p.not_before = to_device(r.not_before), p.n_not_before = static_cast<int>(r.not_before.size());
    p.seen = r.seen.empty() ? nullptr : to_device(r.seen);
    allowed.push_back(r.allowed.empty() ? nullptr : to_device(r.allowed));
    sampling.push_back(p);
    positions.push_back(r.position);
    slots.push_back(n - 1 - i);
  }
  std::reverse(sampling.begin(), sampling.end());
  SampleRows s = {.logits = to_device(logits),
                  .vocab = vocab,
                  .n = n,
                  .slots = to_device(slots),
                  .positions = to_device(positions),
                  .sampling = to_device(sampling),
                  .allowed = to_device(allowed),
                  .ids = to_device(std::vector<int32_t>(static_cast<size_t>(n), -7)),
                  .last_tokens = to_device(std::vector<int32_t>(static_cast<size_t>(n), -7))};
  if (way != Way::kGeneral) {
    CUDA(cudaMalloc(&s.workspace, sample_workspace(n)));
    CUDA(cudaMemset(s.workspace, 0, sample_workspace(n)));
    s.workspace_rows = n;
  }
  if (way == Way::kTiles) {
    s.tile_max = to_device(tile_max_of(logits, vocab));
    s.all_by_tiles = std::all_of(rows.begin(), rows.end(), [&](const Row& r) {
      return r.allowed.empty() && by_tiles(sampling[static_cast<size_t>(n - 1 - (&r - rows.data()))]);
    });
  }
  std::vector<int32_t> ids(static_cast<size_t>(n)), again(static_cast<size_t>(n));
  CUDA(launch_sample_rows(s, nullptr));
  CUDA(cudaMemcpy(ids.data(), s.ids, sizeof(int32_t) * ids.size(), cudaMemcpyDeviceToHost));
  if (last != nullptr) {
    last->resize(ids.size());
    CUDA(cudaMemcpy(last->data(), s.last_tokens, sizeof(int32_t) * ids.size(), cudaMemcpyDeviceToHost));
  }
  return ids;
}

void check(int vocab) {
  int compared = 0, near = 0;
  for (uint32_t seed = 1; seed <= (vocab > 100000 ? 2u : 20u); ++seed) {
    const std::vector<Row> rows = make_rows(vocab, seed);
    std::vector<int32_t> last;
    const auto fast = run(rows, Way::kParts, &last), general = run(rows, Way::kGeneral),
               tiles = run(rows, Way::kTiles);
    for (size_t i = 0; i < rows.size(); ++i) {
      double margin;
      const int want = reference(rows[i], margin);
      ++compared;
      if (tiles[i] != fast[i] || (seed == 1 && run({rows[i]}, Way::kTiles)[0] != fast[i]))
        ++failures, std::printf("FAIL vocab %d seed %u row %zu: by tiles %d, by parts %d\n", vocab, seed, i,
                                tiles[i], fast[i]);
      if (fast[i] != general[i])
        ++failures, std::printf("FAIL vocab %d seed %u row %zu: fast %d, general %d, float64 %d\n", vocab,
                                seed, i, fast[i], general[i], want);
      if (fast[i] != want) {
        ++near;
        if (margin > 1e-5)
          ++failures, std::printf("FAIL vocab %d seed %u row %zu: %d, float64 says %d (margin %.2g)\n", vocab,
                                  seed, i, fast[i], want, margin);
      }
      if (fast[i] >= 0 && last[rows.size() - 1 - i] != fast[i])
        ++failures, std::printf("FAIL row %zu: last_tokens\n", i);
      if (seed == 1 && run({rows[i]}, Way::kParts)[0] != fast[i])
        ++failures, std::printf("FAIL row %zu: another token alone\n", i);
    }
  }
  std::printf("vocab %d: %d rows compared, %d differ from float64 within 1e-5 of a boundary\n", vocab,
              compared, near);
}

void bench(int vocab, int batch, bool greedy, Way way) {
  std::mt19937 random(3);
  std::normal_distribution<float> gauss;
  const int sets = std::max(2, 96 / batch);
  std::vector<float> logits(static_cast<size_t>(sets) * static_cast<size_t>(batch) *
                            static_cast<size_t>(vocab));
  for (size_t i = 0; i < logits.size(); ++i)
    logits[i] = i < 3000000 ? 4 * gauss(random) : logits[i - 2999999];
  const std::vector<int32_t> never = {255999, 256000, 258880, 258881, 258882, 258883, 258884};
  SlotSampling p;
  p.temperature = greedy ? 0 : 1, p.top_k = 64, p.top_p = 0.95f, p.seed = 5, p.never = to_device(never),
  p.n_never = 7;
  std::vector<int32_t> slots(static_cast<size_t>(batch)), positions(static_cast<size_t>(batch), 100);
  std::iota(slots.begin(), slots.end(), 0);
  SampleRows s = {.logits = to_device(logits),
                  .vocab = vocab,
                  .n = batch,
                  .slots = to_device(slots),
                  .positions = to_device(positions),
                  .sampling = to_device(std::vector<SlotSampling>(static_cast<size_t>(batch), p)),
                  .allowed = nullptr,
                  .ids = to_device(slots),
                  .last_tokens = to_device(slots)};
  if (way != Way::kGeneral) {
    CUDA(cudaMalloc(&s.workspace, sample_workspace(batch)));
    CUDA(cudaMemset(s.workspace, 0, sample_workspace(batch)));
    s.workspace_rows = batch;
  }
  const size_t tiles = static_cast<size_t>(batch) * static_cast<size_t>(logit_tile_stride(vocab));
  float* tile_max = to_device(tile_max_of(logits, vocab));
  cudaStream_t stream;
  CUDA(cudaStreamCreate(&stream));
  CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const int calls = sets;
  for (int i = 0; i < calls; ++i) {
    SampleRows one = s;
    one.logits += static_cast<size_t>(i) * static_cast<size_t>(batch) * static_cast<size_t>(vocab);
    if (way == Way::kTiles) one.tile_max = tile_max + static_cast<size_t>(i) * tiles, one.all_by_tiles = true;
    CUDA(launch_sample_rows(one, stream));
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA(cudaStreamEndCapture(stream, &graph));
  CUDA(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  CUDA(cudaEventCreate(&a));
  CUDA(cudaEventCreate(&b));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    CUDA(cudaEventRecord(a, stream));
    CUDA(cudaGraphLaunch(exec, stream));
    CUDA(cudaEventRecord(b, stream));
    CUDA(cudaStreamSynchronize(stream));
    float ms;
    CUDA(cudaEventElapsedTime(&ms, a, b));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  std::printf("sample %3d x %d, %s, %s: %7.1f us (logits' bytes at 4.6 TB/s: %.1f)\n", batch, vocab,
              greedy ? "greedy" : "T 1, top_k 64, top_p .95",
              way == Way::kTiles   ? "tiles"
              : way == Way::kParts ? "parts"
                                   : "general",
              times[3] * 1e3 / calls, static_cast<double>(batch) * vocab * 4 / 4.6e6);
  CUDA(cudaFree(s.logits));
  CUDA(cudaFree(tile_max));
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 4096);
  if (argc == 3 && std::string_view(argv[1]) == "profile") {
    bench(262144, std::atoi(argv[2]), false, Way::kTiles);
    return 0;
  }
  check(262144);
  check(5003);
  for (bool greedy : {true, false}) {
    for (Way way : {Way::kTiles, Way::kParts}) {
      for (int batch : {1, 8, 32, 100}) bench(262144, batch, greedy, way);
    }
    bench(262144, 1, greedy, Way::kGeneral);
    bench(262144, 32, greedy, Way::kGeneral);
  }
  std::printf(failures == 0 ? "all checks passed\n" : "%d CHECKS FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}

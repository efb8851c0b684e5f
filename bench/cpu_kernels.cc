// How fast the CPU backend's products are, next to what this machine can do, measured in the same run:
//   bytes/s   a plain read of memory larger than the caches, on all threads
//   FLOP/s    the dot-product instruction on registers alone, on all threads
// Weights are laid out one after another and walked in turn, so that none is in a cache when its turn comes.
//
//   cpu_kernels [THREADS [SECONDS_PER_FIGURE]]
// With THREADS 1 processor time is counted, so that other programs on the machine disturb less.
#include <fmt/core.h>
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "backend/cpu/attention.h"
#include "backend/cpu/kv_cache.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/ops.h"

namespace jewel {
namespace {

double seconds_per_figure = 1;

// With one thread, the processor time it used; with several, the time that passed.
double now_seconds(bool one_thread) {
  timespec time{};
  clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

bool one_thread = false;

// The best of several runs: other programs only ever make it slower.
double best_seconds(const std::function<void()>& body) {
  double best = 1e9;
  const double start = now_seconds(one_thread);
  int runs = 0;
  do {
    const double begin = now_seconds(one_thread);
    body();
    best = std::min(best, now_seconds(one_thread) - begin);
  } while (++runs < 3 || now_seconds(one_thread) - start < seconds_per_figure);
  return best;
}

struct Ceilings {
  double gb_per_s = 0;
  double gflop_per_s = 0;
};

Ceilings measure_ceilings(const Compute& compute) {
  Ceilings ceilings;
  std::vector<float> memory(64 << 20, 1.0f);  // 256 MB
  std::vector<float> sums(1024);
  const int64_t piece = static_cast<int64_t>(memory.size()) / 1024;
  ceilings.gb_per_s = static_cast<double>(memory.size()) * 4e-9 / best_seconds([&] {
                        compute.pool->parallel_for(1024, 1, [&](int64_t begin, int64_t end) {
                          for (int64_t i = begin; i < end; ++i) {
                            sums[static_cast<size_t>(i)] =
                                compute.kernels->max(memory.data() + i * piece, piece);
                          }
                        });
                      });
  // 4 x 4 outputs over 1 KB of each operand: all from the first-level cache.
  const bool bf16 =
      compute.kernels->dot_bf16[static_cast<int>(Format::kBF16)] != nullptr && compute.dtype == DType::kBF16;
  const int64_t k = bf16 ? 512 : 256;
  std::vector<std::byte> operands(8192);
  const auto dot = bf16 ? compute.kernels->dot_bf16[static_cast<int>(Format::kBF16)]
                        : compute.kernels->dot_f32[static_cast<int>(Format::kF32)];
  constexpr int kRepeats = 20000;
  const int64_t pieces = compute.pool->n_threads() * 4;
  const double seconds = best_seconds([&] {
    compute.pool->parallel_for(pieces, 1, [&](int64_t, int64_t) {
      float y[16];
      for (int i = 0; i < kRepeats; ++i) {
        dot({.x = operands.data(),
             .x_stride = k,
             .rows = 4,
             .w = operands.data() + 4096,
             .w_stride = k,
             .outputs = 4,
             .k = k,
             .y = y,
             .y_stride = 4});
      }
    });
  });
  ceilings.gflop_per_s = 2.0 * 16 * static_cast<double>(k * kRepeats * pieces) * 1e-9 / seconds;
  return ceilings;
}

// Products of the shapes of E4B, for some numbers of rows.
void measure_linear(const Compute& compute, const Ceilings& ceilings, DType dtype, int64_t out, int64_t in) {
  constexpr size_t kTotalBytes = size_t{400} << 20;
  const size_t bytes = static_cast<size_t>(out * in) * dtype_bytes(dtype);
  const size_t copies = std::max<size_t>(1, kTotalBytes / bytes);
  std::vector<std::byte> memory(copies * bytes);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>((i * 7919) % 0x38);
  std::vector<LinearWeight> weights(copies);
  for (size_t i = 0; i < copies; ++i) {
    weights[i].weight = {dtype, {out, in}, memory.data() + i * bytes, bytes};
    weights[i].scale = {1.0f};
  }
  for (int64_t rows : {1, 2, 4, 8, 32, 128, 256}) {
    std::vector<float> x(static_cast<size_t>(rows * in), 0.5f), y(static_cast<size_t>(rows * out));
    ProductInput input;
    size_t next = 0;
    const double seconds = best_seconds([&] {
                             // A few products in a run, so that a run is long enough to time.
                             const int products = rows <= 8 ? 8 : 1;
                             for (int i = 0; i < products; ++i) {
                               input.set(compute, {x.data(), rows, in});
                               linear(compute, input, weights[next++ % copies], {y.data(), rows, out});
                             }
                           }) /
                           (rows <= 8 ? 8 : 1);
    const double gb = static_cast<double>(bytes) * 1e-9 / seconds;
    const double gflop = 2e-9 * static_cast<double>(rows * out * in) / seconds;
    fmt::print(
        "  {:8} [{:5}, {:5}] x {:3} rows  {:8.3f} ms  {:6.1f} GB/s ({:3.0f} %)  {:7.1f} GFLOP/s ({:3.0f} "
        "%)\n",
        dtype_name(dtype), out, in, rows, seconds * 1e3, gb, 100 * gb / ceilings.gb_per_s, gflop,
        100 * gflop / ceilings.gflop_per_s);
  }
}

// E4B's attention: 8 heads over 2, for one layer of each type.
void measure_attention(const Compute& compute, const Ceilings& ceilings, DType kv_dtype, LayerType type,
                       int queries, int context) {
  const int head_dim = type == LayerType::kFull ? 512 : 256;
  TextConfig config;
  config.layers = {{.type = type, .head_dim = head_dim, .n_kv_heads = 2}};
  ModelWeights weights;
  weights.layers.resize(1);
  KvCache cache(config, weights, kv_dtype, *compute.kernels);
  const int n_pages = (context + kPageTokens - 1) / kPageTokens;
  if (!cache.allocate({.n_full_pages = n_pages, .n_sliding_pages = n_pages}).ok()) std::abort();
  std::vector<PageId> pages;
  for (int i = 0; i < n_pages; ++i) pages.push_back(i);
  const std::vector<float> kv(static_cast<size_t>(2 * head_dim), 0.1f);
  for (int i = 0; i < context; ++i) cache.store(0, i / kPageTokens, i % kPageTokens, kv.data(), kv.data());
  std::vector<float> q(static_cast<size_t>(queries * 8 * head_dim), 0.1f), out(q.size());
  const int window = type == LayerType::kFull ? 0 : 512;
  const QuerySpan span{.row = 0, .n = queries, .position = context - queries, .pages = pages};
  const AttentionLayer layer{
      .kv_layer = 0, .n_heads = 8, .n_kv_heads = 2, .head_dim = head_dim, .window = window};
  double keys = 0;
  for (int i = 0; i < queries; ++i) {
    const int visible = span.position + i + 1;
    keys += window > 0 ? std::min(window, visible) : visible;
  }
  const double seconds = best_seconds([&] {
    attention(compute, cache, layer, std::span(&span, 1), {q.data(), queries, 8 * head_dim},
              {out.data(), queries, 8 * head_dim});
  });
  const double gflop = keys * 8 * head_dim * 4 * 1e-9 / seconds;
  const double gb =
      keys / queries * 2 * 2 * head_dim * static_cast<double>(dtype_bytes(kv_dtype)) * 1e-9 / seconds;
  fmt::print(
      "  kv {:8} {:7} {:4} queries, context {:6}  {:8.3f} ms  {:6.1f} GB/s ({:3.0f} %)  {:7.1f} GFLOP/s\n",
      dtype_name(kv_dtype), type == LayerType::kFull ? "full" : "sliding", queries, context, seconds * 1e3,
      gb, 100 * gb / ceilings.gb_per_s, gflop);
}

void measure(const Compute& compute) {
  const Ceilings ceilings = measure_ceilings(compute);
  fmt::print("{}, {} threads, {}: reads {:.1f} GB/s, dot products {:.1f} GFLOP/s\n", compute.kernels->name,
             compute.pool->n_threads(), dtype_name(compute.dtype), ceilings.gb_per_s, ceilings.gflop_per_s);
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    measure_linear(compute, ceilings, dtype, 10240, 2560);
    measure_linear(compute, ceilings, dtype, 2560, 10240);
  }
  for (DType kv_dtype : {DType::kBF16, DType::kF8E4M3}) {
    measure_attention(compute, ceilings, kv_dtype, LayerType::kSliding, 1, 4096);
    measure_attention(compute, ceilings, kv_dtype, LayerType::kFull, 1, 32768);
    measure_attention(compute, ceilings, kv_dtype, LayerType::kSliding, 256, 2048);
    measure_attention(compute, ceilings, kv_dtype, LayerType::kFull, 256, 2048);
  }
}

}  // namespace
}  // namespace jewel

int main(int argc, char** argv) {
  const int n_threads = argc > 1 ? std::atoi(argv[1]) : 0;
  if (argc > 2) jewel::seconds_per_figure = std::atof(argv[2]);
  jewel::ThreadPool pool(n_threads);
  jewel::one_thread = pool.n_threads() == 1;
  for (jewel::CpuIsa isa : {jewel::CpuIsa::kAvx512Bf16, jewel::CpuIsa::kAvx2}) {
    const jewel::Kernels* kernels = jewel::kernels_for(isa);
    if (kernels == nullptr) continue;
    jewel::measure({.kernels = kernels, .pool = &pool, .dtype = jewel::DType::kBF16});
  }
}

#include "bench/cpu_rates.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "backend/cpu/kernels.h"
#include "base/threads.h"

namespace jewel {
namespace {

constexpr double kSecondsEach = 0.5;
constexpr size_t kLeastBytes = size_t{1} << 20;
constexpr size_t kMostBytes = size_t{512} << 20;

double best_seconds(const std::function<void()>& body) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  double best = 1e9;
  int runs = 0;
  do {
    const auto begin = Clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  } while (++runs < 3 || std::chrono::duration<double>(Clock::now() - start).count() < kSecondsEach);
  return best;
}

double read_bytes_per_s(ThreadPool& pool, const Kernels& kernels, size_t bytes) {
  const int64_t pieces = int64_t{64} * pool.n_threads();
  const auto piece = static_cast<int64_t>(bytes / sizeof(float)) / pieces;
  std::vector<float> memory(static_cast<size_t>(piece * pieces), 1.0f);
  std::vector<float> found(static_cast<size_t>(pieces));
  const int passes = static_cast<int>(std::max<size_t>(1, (size_t{64} << 20) / bytes));
  const double seconds = best_seconds([&] {
    for (int pass = 0; pass < passes; ++pass) {
      pool.parallel_for(pieces, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          found[static_cast<size_t>(i)] = kernels.max(memory.data() + i * piece, piece);
      });
    }
  });
  return static_cast<double>(memory.size() * sizeof(float)) * passes / seconds;
}

// 4 x 4 outputs over 1 KB of each operand.
double flop_per_s(ThreadPool& pool, const Kernels& kernels) {
  const auto bf16 = kernels.dot_bf16[static_cast<int>(Format::kBF16)];
  const auto dot = bf16 != nullptr ? bf16 : kernels.dot_f32[static_cast<int>(Format::kF32)];
  const int64_t k = bf16 != nullptr ? 512 : 256;
  const std::vector<std::byte> operands(8192);
  constexpr int kRepeats = 2000;
  const int64_t pieces = int64_t{8} * pool.n_threads();
  const double seconds = best_seconds([&] {
    pool.parallel_for(pieces, 1, [&](int64_t, int64_t) {
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
  return 2.0 * 16 * static_cast<double>(k * kRepeats * pieces) / seconds;
}

}  // namespace

Rates measure_cpu_rates(int n_threads, size_t working_set) {
  ThreadPool pool(n_threads);
  const Kernels& kernels = best_kernels();
  const size_t bytes = std::clamp(working_set, kLeastBytes, kMostBytes);
  const bool bf16 = kernels.dot_bf16[static_cast<int>(Format::kBF16)] != nullptr;
  return {.bytes_per_s = read_bytes_per_s(pool, kernels, bytes),
          .flop_per_s = flop_per_s(pool, kernels),
          .how = fmt::format("{} threads, {}: {:.0f} MB read over and over; {} products in the first cache",
                             pool.n_threads(), kernels.name, static_cast<double>(bytes) * 1e-6,
                             bf16 ? "BF16" : "float32")};
}

}  // namespace jewel

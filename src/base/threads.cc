#include "base/threads.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#include "base/check.h"

namespace jewel {
namespace {

// About 20 µs on today's cores: longer than the gap between two loops of a forward pass, short enough that an
// idle program uses no measurable share of a core.
constexpr int kSpins = 2000;

thread_local bool inside_loop = false;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Waits until `value` differs from `old`, first spinning, then in the kernel.
template <typename T>
T wait_for_change(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (const T now = value.load(std::memory_order_acquire); now != old) return now;
    pause();
  }
  while (true) {
    if (const T now = value.load(std::memory_order_acquire); now != old) return now;
    value.wait(old, std::memory_order_acquire);
  }
}

}  // namespace

struct ThreadPool::Shared {
  // Written by the caller before `generation` is raised, read by workers after they saw it.
  Call call = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  int64_t grain = 1;
  bool stop = false;

  alignas(64) std::atomic<uint64_t> generation{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> busy_workers{0};
  std::vector<std::thread> workers;

  void take_chunks() {
    inside_loop = true;
    while (true) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      call(context, begin, std::min(begin + grain, count));
    }
    inside_loop = false;
  }

  void worker_main() {
    uint64_t seen = 0;
    while (true) {
      seen = wait_for_change(generation, seen);
      if (stop) return;
      take_chunks();
      if (busy_workers.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_workers.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads > 0 ? n_threads : usable_cores()) {
  if (n_threads_ == 1) return;
  shared_ = std::make_unique<Shared>();
  for (int i = 1; i < n_threads_; ++i) shared_->workers.emplace_back([this] { shared_->worker_main(); });
}

ThreadPool::~ThreadPool() {
  if (!shared_) return;
  shared_->stop = true;
  shared_->generation.fetch_add(1, std::memory_order_release);
  shared_->generation.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

void ThreadPool::run(int64_t count, int64_t grain, Call call, void* context) {
  JEWEL_CHECK(grain >= 1, "grain is {}", grain);
  if (count <= 0) return;
  if (!shared_ || inside_loop || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain)
      call(context, begin, std::min(begin + grain, count));
    return;
  }
  Shared& s = *shared_;
  s.call = call;
  s.context = context;
  s.count = count;
  s.grain = grain;
  s.next.store(0, std::memory_order_relaxed);
  s.busy_workers.store(static_cast<int>(s.workers.size()), std::memory_order_relaxed);
  s.generation.fetch_add(1, std::memory_order_release);
  s.generation.notify_all();
  s.take_chunks();
  for (int busy = s.busy_workers.load(std::memory_order_acquire); busy != 0;) {
    busy = wait_for_change(s.busy_workers, busy);
  }
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof(set), &set) == 0
                  ? CPU_COUNT(&set)
                  : static_cast<int>(std::thread::hardware_concurrency());
  // A container's quota (cgroup v2): "max 100000" or "200000 100000" microseconds per period.
  std::ifstream quota_file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (quota_file >> quota >> period && quota != "max" && period > 0) {
    cores = std::min(cores, static_cast<int>(std::ceil(std::strtod(quota.c_str(), nullptr) / period)));
  }
  return std::max(cores, 1);
}

}  // namespace jewel

// ThreadPool: a fixed set of worker threads for the data-parallel loops of one forward pass.
//
// One thread at a time may call parallel_for (the engine thread); the caller works too. Work is cut into
// chunks that are handed out by an atomic counter, so which thread runs a chunk is not fixed, but what a
// chunk computes must not depend on it: a loop body writes only to the outputs of its own indices. Nested
// calls run serially in the caller.
//
// Between loops of one forward pass workers spin for a few microseconds before they sleep, because a step of
// a small model has a few hundred such loops; a pool without work sleeps in the kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace jewel {

class ThreadPool {
 public:
  // n_threads counts the caller: 1 means no worker at all. 0 means one per core that this process may use.
  explicit ThreadPool(int n_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return n_threads_; }

  // Calls body(begin, end) for disjoint ranges that cover [0, count), each at most `grain` long (grain >= 1).
  // Returns when all are done. The body must not throw.
  template <typename Body>
  void parallel_for(int64_t count, int64_t grain, Body&& body) {
    auto call = [](void* context, int64_t begin, int64_t end) {
      (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
    };
    run(count, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Call = void (*)(void* context, int64_t begin, int64_t end);
  struct Shared;

  void run(int64_t count, int64_t grain, Call call, void* context);

  int n_threads_;
  std::unique_ptr<Shared> shared_;
};

// Cores that this process may use (affinity mask and cgroup quota), at least 1.
int usable_cores();

}  // namespace jewel

// WorkerPool: threads that take jobs from one queue, first come, first served. Any thread may post, jobs too.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace jewel {

class WorkerPool {
 public:
  explicit WorkerPool(int n_threads);
  ~WorkerPool();  // stop()
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // A job must not throw. After stop() jobs are dropped.
  void post(std::function<void()> job);

  // Jobs that were posted are done, then the threads end. Not from a job.
  void stop();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace jewel

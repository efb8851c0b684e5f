#include "base/threads.h"

#include <gtest/gtest.h>

#include <numeric>

namespace jewel {
namespace {

TEST(ThreadPool, EveryIndexOnce) {
  for (int n_threads : {1, 2, 4}) {
    ThreadPool pool(n_threads);
    for (int64_t count : {0, 1, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 64, 5000}) {
        std::vector<int> visits(static_cast<size_t>(count), 0);
        pool.parallel_for(count, grain, [&](int64_t begin, int64_t end) {
          EXPECT_LE(end - begin, grain);
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
        });
        EXPECT_EQ(std::accumulate(visits.begin(), visits.end(), 0), count);
        for (int v : visits) EXPECT_EQ(v, 1);
      }
    }
  }
}

TEST(ThreadPool, ManyShortLoopsAndNesting) {
  ThreadPool pool(3);
  std::vector<int64_t> sums(8, 0);
  for (int round = 0; round < 5000; ++round) {
    pool.parallel_for(8, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        pool.parallel_for(4, 1, [&](int64_t b, int64_t e) { sums[static_cast<size_t>(i)] += e - b; });
      }
    });
  }
  for (int64_t sum : sums) EXPECT_EQ(sum, 4 * 5000);
}

}  // namespace
}  // namespace jewel

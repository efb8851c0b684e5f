#include "engine/pages.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace jewel {
namespace {

TEST(PagePool, BooksBalance) {
  PagePool pool(3);
  std::set<PageId> pages = {pool.take(), pool.take(), pool.take()};
  EXPECT_EQ(pages.size(), 3u);
  EXPECT_EQ(pool.take(), kNoPage);
  EXPECT_EQ(pool.n_held(), 3);
  for (const PageId page : pages) pool.give_back(page);
  EXPECT_EQ(pool.n_free(), 3);
}

TEST(PagePoolDeathTest, TwiceIsOurBug) {
  PagePool pool(1);
  pool.give_back(pool.take());
  EXPECT_DEATH(pool.give_back(0), "not held");
}

// Whatever the chunks: every key that a query may see is on a page, no page stands twice, the sizes of
// needed() suffice, and everything comes back.
TEST(SequencePages, WindowIsCoveredAndPagesReturn) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    const int window = 1 + static_cast<int>(random() % 70);
    const int total = 1 + static_cast<int>(random() % 300);
    const int step = 1 + static_cast<int>(random() % 64);
    const KvSizes sizes = SequencePages::needed(total, step, window);
    PagePool full(sizes.n_full_pages), sliding(sizes.n_sliding_pages);
    {
      SequencePages pages(full, sliding, window);
      for (int begin = 0; begin < total;) {
        const int count =
            std::min(1 + static_cast<int>(random() % static_cast<unsigned>(step)), total - begin);
        ASSERT_TRUE(pages.prepare_step(begin, count).ok())
            << "window " << window << ", at " << begin << " + " << count;
        std::set<PageId> seen;
        for (int position = std::max(0, begin - window + 1); position < begin + count; ++position) {
          const auto page = static_cast<size_t>(position / kPageTokens);
          ASSERT_NE(pages.sliding()[page], kNoPage) << position;
          ASSERT_NE(pages.full()[page], kNoPage) << position;
          seen.insert(pages.sliding()[page]);
        }
        EXPECT_EQ(static_cast<int>(seen.size()), sliding.n_held());
        begin += count;
      }
    }
    EXPECT_EQ(full.n_held(), 0);
    EXPECT_EQ(sliding.n_held(), 0);
  }
}

TEST(SequencePages, EmptyPoolIsAnError) {
  PagePool full(1), sliding(1);
  SequencePages pages(full, sliding, 16);
  EXPECT_TRUE(pages.prepare_step(0, 16).ok());
  EXPECT_EQ(pages.prepare_step(16, 1).error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace jewel

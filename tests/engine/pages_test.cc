#include "engine/pages.h"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST(PagePool, APageIsFreeWhenNobodyHoldsItAndNobodyKeepsIt) {
  PagePool pool(1);
  const PageId page = pool.take();
  pool.hold(page);
  pool.keep(page);
  pool.give_back(page);
  EXPECT_EQ(pool.n_held(), 1);
  pool.give_back(page);
  EXPECT_EQ(pool.n_held(), 0);
  EXPECT_EQ(pool.n_cached(), 1);
  EXPECT_EQ(pool.take(), kNoPage);
  pool.hold(page);  // a hit
  EXPECT_EQ(pool.n_cached(), 0);
  pool.drop(page);
  EXPECT_EQ(pool.n_held(), 1);
  pool.give_back(page);
  EXPECT_EQ(pool.n_free(), 1);
}

TEST(PagePoolDeathTest, WhatCannotBeIsOurBug) {
  PagePool pool(1);
  const PageId page = pool.take();
  pool.give_back(page);
  EXPECT_DEATH(pool.give_back(page), "not held");
  EXPECT_DEATH(pool.hold(page), "free and cannot be shared");
  EXPECT_DEATH(pool.drop(page), "not kept");
  EXPECT_DEATH(pool.hold(1), "page 1 of 1");
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
        pages.release_behind(begin);
        ASSERT_LE(pages.missing_full(begin + count), full.n_free());
        ASSERT_LE(pages.missing_sliding(begin + count), sliding.n_free())
            << "window " << window << ", at " << begin << " + " << count;
        pages.grow(begin + count);
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

TEST(SequencePages, AViewStaysUntilItsParityComesAgain) {
  PagePool full(20), sliding(20);
  SequencePages pages(full, sliding, 16);
  pages.reserve(10);
  pages.grow(48);
  const std::span<const PageId> in_flight = pages.sliding_view(0);
  const std::vector<PageId> before(in_flight.begin(), in_flight.end());
  pages.release_behind(47);
  pages.grow(160);
  const std::span<const PageId> planned = pages.sliding_view(1);
  EXPECT_TRUE(std::ranges::equal(in_flight, before)) << "a step in flight reads it";
  EXPECT_EQ(planned[0], kNoPage);
  EXPECT_EQ(planned.size(), 10u);
  EXPECT_TRUE(std::ranges::equal(pages.sliding_view(0), planned));
}

TEST(SequencePages, BeginsOnPagesOfOthers) {
  PagePool full(20), sliding(20);
  SequencePages first(full, sliding, 33), second(full, sliding, 33);
  first.grow(80);
  second.share(first.full(), first.sliding().last(2));
  EXPECT_EQ(full.n_held(), 5);
  EXPECT_EQ(second.first_sliding(), 3);
  EXPECT_EQ(second.sliding()[2], kNoPage);
  first.release_all();
  EXPECT_EQ(full.n_held(), 5);
  EXPECT_EQ(sliding.n_held(), 2);
  second.grow(81);
  EXPECT_EQ(full.n_held(), 6);
  second.release_all();
  EXPECT_EQ(full.n_free(), 20);
  EXPECT_EQ(sliding.n_free(), 20);
}

}  // namespace
}  // namespace jewel

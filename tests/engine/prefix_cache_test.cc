#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "engine/prefix_keys.h"

namespace jewel {
namespace {

constexpr int kWindow = 34;  // three sliding pages at a page boundary

using Kind = PrefixCache::Kind;

std::vector<TokenId> tokens_of(int seed, int n_pages) {
  std::vector<TokenId> tokens(static_cast<size_t>(n_pages) * kPageTokens);
  std::iota(tokens.begin(), tokens.end(), seed * 100000);
  return tokens;
}

// A sequence as far as the cache sees one.
struct Fake {
  Fake(PagePool& full, PagePool& sliding) : pages(full, sliding, kWindow) {}
  SequencePages pages;
  std::vector<PrefixCache::Node*> path;
};

class PrefixCacheTest : public testing::Test {
 protected:
  explicit PrefixCacheTest(int n_pages = 64)
      : full(n_pages), sliding(n_pages), cache(full, sliding, kWindow) {}
  ~PrefixCacheTest() override {
    cache.clear();
    EXPECT_EQ(full.n_free(), full.n_pages());
    EXPECT_EQ(sliding.n_free(), sliding.n_pages());
  }

  void make_room(LayerType type, PagePool& pool, int n) {
    while (pool.n_free() < n) ASSERT_TRUE(cache.evict(type));
  }

  // Resumes where it can, computes the rest, leaves checkpoints at `points` (in pages); how many pages it
  // found.
  int visit(const std::vector<Digest>& keys, const std::vector<int>& points, Kind kind = Kind::kEnd) {
    Fake sequence(full, sliding);
    const auto n_pages = static_cast<int>(keys.size());
    PrefixCache::Hit hit = cache.lookup(keys, n_pages);
    cache.take(hit, sequence.pages);
    cache.note_use(hit, keys, n_pages);
    sequence.path = hit.path;
    for (int page = hit.n_pages(); page < n_pages; ++page) {
      make_room(LayerType::kFull, full, 1);
      make_room(LayerType::kSliding, sliding, 1);
      sequence.pages.grow((page + 1) * kPageTokens);
      cache.extend(sequence.path, keys[static_cast<size_t>(page)], sequence.pages.full().back());
      if (std::ranges::find(points, page + 1) != points.end()) {
        EXPECT_TRUE(cache.checkpoint(sequence.path, page + 1, sequence.pages, kind, hit.return_distance));
        cache.supersede(sequence.path, hit.n_pages());
      }
      sequence.pages.release_behind((page + 1) * kPageTokens);
    }
    cache.check_books();
    sequence.pages.release_all();
    cache.let_go(sequence.path);
    cache.check_books();
    return hit.n_pages();
  }

  PagePool full, sliding;
  PrefixCache cache;
};

TEST_F(PrefixCacheTest, ResumesAtTheDeepestCheckpoint) {
  const auto keys = prefix_keys("", tokens_of(1, 12), {});
  EXPECT_EQ(visit(keys, {4, 9}), 0);
  EXPECT_EQ(full.n_cached(), 9) << "pages behind the last checkpoint are of no use";
  EXPECT_EQ(sliding.n_cached(), 6) << "two windows of three pages";
  EXPECT_EQ(cache.lookup(keys, 12).n_pages(), 9);
  EXPECT_EQ(cache.lookup(keys, 8).n_pages(), 4);
  EXPECT_EQ(cache.lookup(keys, 3).n_pages(), 0);
  auto other = tokens_of(1, 12);
  other[7 * kPageTokens] = 5;  // differs in its eighth page
  EXPECT_EQ(cache.lookup(prefix_keys("", other, {}), 12).n_pages(), 4);
}

TEST_F(PrefixCacheTest, NothingWithoutACheckpoint) {
  const auto keys = prefix_keys("", tokens_of(1, 12), {});
  visit(keys, {});
  EXPECT_EQ(cache.n_nodes(), 0);
  EXPECT_EQ(full.n_free(), full.n_pages());
}

TEST_F(PrefixCacheTest, WindowsThatTouchMakeMorePlacesToResume) {
  const auto keys = prefix_keys("", tokens_of(1, 12), {});
  visit(keys, {5, 7});  // sliding pages 2..4 and 4..6
  EXPECT_EQ(sliding.n_cached(), 5);
  EXPECT_EQ(cache.lookup(keys, 6).n_pages(), 6);
}

TEST_F(PrefixCacheTest, EvictionTakesLeavesAndLeavesWhatCanBeUsed) {
  const auto keys = prefix_keys("", tokens_of(1, 12), {});
  visit(keys, {4, 9});
  // The older one is a part of the younger's chain: full pages come from the leaf.
  EXPECT_TRUE(cache.evict(LayerType::kFull));
  cache.check_books();
  EXPECT_EQ(cache.lookup(keys, 12).n_pages(), 4);
  EXPECT_EQ(full.n_cached(), 4);
  EXPECT_TRUE(cache.evict(LayerType::kSliding));
  EXPECT_EQ(cache.n_nodes(), 0);
  EXPECT_FALSE(cache.evict(LayerType::kFull));
}

TEST_F(PrefixCacheTest, SlidingPagesOfAMiddlePointCanGoAlone) {
  const auto keys = prefix_keys("", tokens_of(1, 12), {});
  visit(keys, {4}, Kind::kEnd);
  visit(keys, {9}, Kind::kEnd);  // went on from 4, which is superseded
  EXPECT_TRUE(cache.evict(LayerType::kSliding));
  EXPECT_EQ(cache.lookup(keys, 12).n_pages(), 9) << "the conversation's end stays";
  EXPECT_EQ(cache.lookup(keys, 8).n_pages(), 0);
  EXPECT_EQ(full.n_cached(), 9);
}

TEST_F(PrefixCacheTest, APlaceWhereOthersBranchOffIsNotSuperseded) {
  auto first = tokens_of(1, 8), second = first;
  second[5 * kPageTokens] = 3;
  visit(prefix_keys("", first, {}), {4});
  visit(prefix_keys("", first, {}), {8});
  visit(prefix_keys("", second, {}), {8});
  EXPECT_TRUE(cache.evict(LayerType::kSliding));  // the least recently used is the first conversation's end
  EXPECT_EQ(cache.lookup(prefix_keys("", first, {}), 8).n_pages(), 4);
}

TEST_F(PrefixCacheTest, LeastRecentlyUsedGoesFirst) {
  std::vector<std::vector<Digest>> chains;
  for (int i = 0; i < 4; ++i) chains.push_back(prefix_keys("", tokens_of(i, 8), {}));
  for (const auto& keys : chains) visit(keys, {8});
  EXPECT_EQ(visit(chains[0], {8}), 8);
  EXPECT_TRUE(cache.evict(LayerType::kFull));
  EXPECT_EQ(cache.lookup(chains[1], 8).n_pages(), 0);
  EXPECT_EQ(cache.lookup(chains[0], 8).n_pages(), 8);
}

TEST_F(PrefixCacheTest, WhatASequenceHoldsIsNotEvicted) {
  const auto keys = prefix_keys("", tokens_of(1, 8), {});
  visit(keys, {8});
  Fake sequence(full, sliding);
  auto hit = cache.lookup(keys, 8);
  cache.take(hit, sequence.pages);
  EXPECT_FALSE(cache.evict(LayerType::kFull));
  EXPECT_EQ(full.n_held(), 8);
  EXPECT_EQ(sliding.n_held(), 3);
  sequence.pages.release_all();
  cache.let_go(hit.path);
  EXPECT_EQ(full.n_held(), 0);
}

class TightPrefixCacheTest : public PrefixCacheTest {
 protected:
  TightPrefixCacheTest() : PrefixCacheTest(64 + 16) {}
};

// Conversations that return in turn and are more than fit: least recently used alone would never hit.
TEST_F(TightPrefixCacheTest, SessionsInTurnDoNotPushEachOtherOut) {
  constexpr int kSessions = 20, kPages = 8;  // room for ten
  int found = 0, asked = 0;
  for (int turn = 0; turn < 12; ++turn) {
    for (int session = 0; session < kSessions; ++session) {
      const int n = visit(prefix_keys("", tokens_of(session, kPages), {}), {kPages});
      if (turn >= 4) {
        found += n > 0 ? 1 : 0;
        ++asked;
      }
    }
  }
  EXPECT_GT(found, asked * 35 / 100) << "of " << asked << "; half of them fit";
}

// Those that never come back make room for those that do.
TEST_F(TightPrefixCacheTest, TheDeadDoNotStay) {
  for (int turn = 0; turn < 6; ++turn) {
    for (int session = 0; session < 20; ++session) visit(prefix_keys("", tokens_of(session, 8), {}), {8});
  }
  int found = 0;
  for (int turn = 0; turn < 40; ++turn) {
    for (int session = 100; session < 106; ++session) {
      const int n = visit(prefix_keys("", tokens_of(session, 8), {}), {8});
      if (turn >= 20) found += n > 0 ? 1 : 0;
    }
  }
  EXPECT_GE(found, 20 * 6 * 9 / 10);
}

TEST_F(PrefixCacheTest, BooksBalanceUnderRandomUse) {
  std::mt19937 random(5);
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<unsigned>(limit)); };
  for (int round = 0; round < 3000; ++round) {
    auto tokens = tokens_of(0, 1 + below(12));
    for (int fork = 0; fork < 2; ++fork) tokens[random() % tokens.size()] = below(3);
    const auto keys = prefix_keys("", tokens, {});
    visit(keys, {1 + below(12), 1 + below(12)}, below(2) == 0 ? Kind::kEnd : Kind::kGiven);
    if (below(5) == 0) cache.evict(below(2) == 0 ? LayerType::kFull : LayerType::kSliding);
    cache.check_books();
    ASSERT_EQ(full.n_held(), 0);
    ASSERT_EQ(sliding.n_held(), 0);
  }
}

TEST(PrefixKeys, TellEverythingApart) {
  const auto tokens = tokens_of(1, 3);
  PromptImage image{.budget = 280, .position = 20, .count = 8};
  const auto keys = [&](std::string_view salt, const std::vector<PromptImage>& images) {
    return prefix_keys(salt, tokens, images);
  };
  const auto plain = keys("", {});
  ASSERT_EQ(plain.size(), 3u);
  EXPECT_NE(keys("a", {})[0], plain[0]);
  EXPECT_EQ(keys("", {image})[0], plain[0]) << "the image begins in the second page";
  EXPECT_NE(keys("", {image})[1], plain[1]);
  EXPECT_NE(keys("", {image})[2], plain[2]) << "keys are chained";
  PromptImage other = image;
  other.content[31] = 1;
  EXPECT_NE(keys("", {other})[1], keys("", {image})[1]);
  other = image;
  other.budget = 70;
  EXPECT_NE(keys("", {other})[1], keys("", {image})[1]);
  other = image;
  other.position = 21;
  EXPECT_NE(keys("", {other})[1], keys("", {image})[1]);
}

TEST(PrefixKeys, AreSha256) {
  const std::string_view text = "abc";  // FIPS 180-4, appendix B.1
  const Digest digest = sha256(std::as_bytes(std::span(text)));
  EXPECT_EQ(digest[0], 0xba);
  EXPECT_EQ(digest[1], 0x78);
  EXPECT_EQ(digest[31], 0xad);
}

}  // namespace
}  // namespace jewel

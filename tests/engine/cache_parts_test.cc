// What the prefix cache is made of, against plain maps.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "engine/digest_index.h"
#include "engine/evicted_keys.h"
#include "engine/eviction_order.h"

namespace jewel {
namespace {

// Two digests in four have the same first 8 bytes, as an attacker could make them.
Digest digest_of(unsigned number) {
  Digest digest{};
  digest[0] = static_cast<uint8_t>(number >> 2);
  digest[1] = static_cast<uint8_t>(number >> 10);
  digest[8] = static_cast<uint8_t>(number & 1);
  digest[2] = static_cast<uint8_t>(number & 2);
  return digest;
}

TEST(DigestIndex, IsAMap) {
  std::mt19937 random(1);
  DigestIndex index;
  std::set<unsigned> numbers;
  const auto find = [&](unsigned number) {
    return index.find(digest_of(number), [&](uint32_t value) { return value == number; });
  };
  for (int round = 0; round < 200'000; ++round) {
    const unsigned number = random() % (round < 100'000 ? 3000 : 300);
    const bool in = numbers.contains(number);
    ASSERT_EQ(find(number), in ? number : DigestIndex::kNone);
    if (in) {
      index.erase(digest_of(number), number);
      numbers.erase(number);
    } else {
      index.insert(digest_of(number), number);
      numbers.insert(number);
    }
    ASSERT_EQ(index.size(), numbers.size());
  }
  for (const unsigned number : numbers) EXPECT_EQ(find(number), number);
  index.clear();
  for (const unsigned number : numbers) EXPECT_EQ(find(number), DigestIndex::kNone);
}

TEST(EvictionOrder, KnowsTheLeast) {
  std::mt19937 random(2);
  EvictionOrder order;
  std::map<size_t, uint64_t> ranks;
  size_t least = 0;
  EXPECT_FALSE(order.least(least));
  for (int round = 0; round < 20'000; ++round) {
    const size_t entry = random() % 200;
    const uint64_t rank = random() % 4 == 0 ? EvictionOrder::kNever : random() % 50;
    order.set(entry, rank);
    ranks[entry] = rank;
    ASSERT_EQ(order.rank(entry), rank);
    // Of equal ones the first, as the map goes through them.
    const auto expected = std::ranges::min_element(ranks, {}, [](const auto& of) { return of.second; });
    const bool any = expected->second != EvictionOrder::kNever;
    ASSERT_EQ(order.least(least), any);
    if (any) ASSERT_EQ(least, expected->first);
  }
}

TEST(EvictedKeys, ForgetTheOldest) {
  EvictedKeys keys(3);
  EXPECT_TRUE(keys.empty());
  for (unsigned i = 0; i < 3; ++i) keys.remember(digest_of(i), i + 10);
  EXPECT_EQ(keys.last_used(digest_of(1)), 11);
  keys.remember(digest_of(0), 20);  // known: it keeps its place
  keys.remember(digest_of(3), 13);
  EXPECT_EQ(keys.last_used(digest_of(0)), std::nullopt);
  EXPECT_EQ(keys.last_used(digest_of(3)), 13);
  // What was forgotten and is remembered again does not go when its old place is used.
  keys.forget(digest_of(1));
  EXPECT_EQ(keys.last_used(digest_of(1)), std::nullopt);
  keys.remember(digest_of(4), 14);
  keys.remember(digest_of(1), 15);
  EXPECT_EQ(keys.last_used(digest_of(1)), 15);
  EXPECT_EQ(keys.last_used(digest_of(2)), std::nullopt);
  keys.clear();
  EXPECT_TRUE(keys.empty());
}

}  // namespace
}  // namespace jewel

#include "engine/kv_plan.h"

#include <gtest/gtest.h>

#include "engine/pages.h"

namespace jewel {
namespace {

constexpr size_t kGiB = size_t{1} << 30;

// E4B with FP8 KV: 8 KiB a token in full layers, 20 KiB in sliding ones.
class KvPlanTest : public testing::Test {
 protected:
  KvPlanTest() {
    info.full_page_bytes = size_t{8} * 1024 * kPageTokens;
    info.sliding_page_bytes = size_t{20} * 1024 * kPageTokens;
    text.sliding_window = 512;
    text.max_position_embeddings = 131072;
  }
  BackendInfo info;
  TextConfig text;
};

TEST_F(KvPlanTest, TakesNoMoreThanAskedFor) {
  const auto plan =
      plan_kv({.memory_bytes = 100 * kGiB, .max_num_seqs = 32, .max_model_len = 4096}, info, text);
  ASSERT_TRUE(plan.ok());
  // 32 sequences: 1 GiB of full pages and 0.33 of windows; the cache's 4 GiB; two steps' chunks.
  EXPECT_GT(plan->bytes, 5 * kGiB);
  EXPECT_LT(plan->bytes, 6 * kGiB);
  EXPECT_EQ(plan->max_model_len, 4096);
  EXPECT_GE(plan->sizes.n_full_pages, 32 * 4096 / kPageTokens);
}

TEST_F(KvPlanTest, DividesWhatThereIs) {
  const auto plan = plan_kv({.memory_bytes = 8 * kGiB, .max_num_seqs = 32}, info, text);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_LE(plan->bytes, 8 * kGiB);
  EXPECT_GT(plan->bytes, 8 * kGiB - kGiB / 100);
  EXPECT_EQ(plan->max_model_len, 131072);
  EXPECT_GE(plan->sizes.n_full_pages, 131072 / kPageTokens);
  const KvSizes one = SequencePages::needed(131072, 2048, 512);
  EXPECT_GE(plan->sizes.n_sliding_pages, one.n_sliding_pages);
}

TEST_F(KvPlanTest, ShortensTheModelsLengthButNotTheUsers) {
  const size_t memory = kGiB / 2;
  const auto plan = plan_kv({.memory_bytes = memory, .max_num_seqs = 4}, info, text);
  ASSERT_TRUE(plan.ok()) << plan.error().message;
  EXPECT_LT(plan->max_model_len, 131072);
  EXPECT_GT(plan->max_model_len, 4096);
  EXPECT_LE(plan->bytes, memory);
  EXPECT_FALSE(
      plan_kv({.memory_bytes = memory, .max_num_seqs = 4, .max_model_len = 131072}, info, text).ok());
}

TEST_F(KvPlanTest, SaysWhatIsMissing) {
  const auto plan = plan_kv({.memory_bytes = 1 << 20, .max_num_seqs = 4}, info, text);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(plan.error().message.find("0.00 GiB are left"), std::string::npos) << plan.error().message;
}

}  // namespace
}  // namespace jewel

#include "eval/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/eval_run.h"

namespace jewel {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

EvalTask task(const std::string& category, Metric metric = Metric::kExact, std::string wanted = "right") {
  EvalTask out;
  out.category = category;
  out.metric = metric;
  out.answers = {std::move(wanted)};
  return out;
}

TaskAnswer said(std::string text, int tokens = 4) {
  return {.text = std::move(text), .output_tokens = tokens, .finish_reason = "stop"};
}

// `right` of n answers are right, the first ones.
void add(std::vector<EvalTask>& tasks, std::vector<TaskAnswer>& base, std::vector<TaskAnswer>& candidate,
         const std::string& category, int n, int base_right, int candidate_right) {
  for (int i = 0; i < n; ++i) {
    tasks.push_back(task(category));
    base.push_back(said(i < base_right ? "right" : "wrong", 10));
    candidate.push_back(said(i < candidate_right ? "right" : "wrong", 12));
  }
}

TEST(Recovery, IsTheShareOfTheBasesScore) {
  std::vector<EvalTask> tasks;
  std::vector<TaskAnswer> base, candidate;
  add(tasks, base, candidate, "read", 10, 10, 9);
  add(tasks, base, candidate, "count", 10, 5, 4);
  const RecoveryTable table = recovery_of(tasks, base, candidate, {});
  ASSERT_EQ(table.categories.size(), 2U);
  EXPECT_EQ(table.categories[0].category, "read");
  EXPECT_DOUBLE_EQ(*table.categories[0].recovery, 0.9);
  EXPECT_DOUBLE_EQ(*table.categories[1].recovery, 0.8);
  EXPECT_DOUBLE_EQ(*table.all.recovery, 13.0 / 15);
  EXPECT_DOUBLE_EQ(*table.all.base.mean_output_tokens, 10);
  EXPECT_DOUBLE_EQ(*table.all.candidate.mean_output_tokens, 12);
  EXPECT_TRUE(table.categories[1].passes) << "0.8 reaches 0.8";
  EXPECT_TRUE(table.all.passes);
  EXPECT_LT(table.categories[0].interval->low, 0.9);
  EXPECT_GE(table.categories[0].interval->high, 0.9);
}

TEST(Recovery, OneBadCategoryFailsAndIsNamed) {
  std::vector<EvalTask> tasks;
  std::vector<TaskAnswer> base, candidate;
  add(tasks, base, candidate, "read", 90, 90, 90);
  add(tasks, base, candidate, "count", 10, 10, 7);
  const RecoveryTable table = recovery_of(tasks, base, candidate, {});
  EXPECT_GT(*table.all.recovery, 0.95) << "the mean hides it";
  EXPECT_FALSE(table.all.passes);
  const std::string verdict = verdict_of(table, 0.8);
  EXPECT_THAT(verdict, HasSubstr("count recovers 70.0 %"));
  EXPECT_THAT(verdict, Not(HasSubstr("read")));
}

TEST(Recovery, WhatTheBaseCannotIsNotJudged) {
  std::vector<EvalTask> tasks;
  std::vector<TaskAnswer> base, candidate;
  add(tasks, base, candidate, "read", 4, 4, 4);
  add(tasks, base, candidate, "fly", 4, 0, 4);
  const RecoveryTable table = recovery_of(tasks, base, candidate, {});
  EXPECT_FALSE(table.categories[1].recovery);
  EXPECT_FALSE(table.all.passes);
  EXPECT_THAT(verdict_of(table, 0.8), HasSubstr("fly is not judged"));
}

TEST(Recovery, TasksWithoutAnAnswerScoreNothing) {
  const std::vector<EvalTask> tasks = {task("a"), task("a")};
  const std::vector<TaskAnswer> base = {said("right"), said("right")};
  std::vector<TaskAnswer> candidate = base;
  candidate[1] = {.text = "right", .failed = "prompt too long"};
  const RecoveryTable table = recovery_of(tasks, base, candidate, {});
  EXPECT_DOUBLE_EQ(*table.all.recovery, 0.5);
  EXPECT_EQ(table.all.candidate.failed, 1);
}

TEST(Recovery, WordErrorRateIsOverAllWords) {
  const std::vector<EvalTask> tasks = {task("speech", Metric::kWordError, "a"),
                                       task("speech", Metric::kWordError, "a b c d e f g h i")};
  const std::vector<TaskAnswer> base = {said("x"), said("a b c d e f g h i")};
  const RecoveryTable table = recovery_of(tasks, base, base, {});
  EXPECT_DOUBLE_EQ(*table.all.base.word_error_rate, 0.1) << "one of ten words, not the mean of 1 and 0";
  EXPECT_DOUBLE_EQ(table.all.base.score, 0.5);
}

TEST(Bootstrap, IsTheSameEverywhereAndCoversWhatItShould) {
  std::vector<TaskScore> scores;
  for (int i = 0; i < 200; ++i) scores.push_back({1, i % 5 == 0 ? 0.0 : 1.0});
  const auto first = recovery_interval(scores, 2000, 7);
  const auto again = recovery_interval(scores, 2000, 7);
  ASSERT_TRUE(first && again);
  EXPECT_EQ(first->low, again->low);
  EXPECT_EQ(first->high, again->high);
  // A share of 0.8 of 200: standard error 0.0283, so 0.8 ± 0.0554.
  EXPECT_NEAR(first->low, 0.8 - 0.0554, 0.012);
  EXPECT_NEAR(first->high, 0.8 + 0.0554, 0.012);
  EXPECT_FALSE(recovery_interval({}, 100, 1));
  EXPECT_FALSE(recovery_interval(std::vector<TaskScore>{{0, 1}}, 100, 1));
}

TEST(EvalReport, HostileAnswersStayText) {
  EvalOutcome outcome{.base = "b", .candidate = "<b>c</b>"};
  outcome.tasks = {task("<script>alert(1)</script>")};
  outcome.tasks[0].input.id = "\"><script>2</script>";
  outcome.base_answers = {said("right")};
  outcome.candidate_answers = {said("</td><script>alert(document.cookie)</script>\x01\xff")};
  outcome.recovery = recovery_of(outcome.tasks, outcome.base_answers, outcome.candidate_answers, {});
  const ResultFile result = eval_result({.suite_file = "x.jsonl"}, outcome);
  const std::string page = eval_page(outcome, result);
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(document.cookie)"));
  EXPECT_THAT(page, HasSubstr("✗ failed"));
  EXPECT_EQ(as_json(result).at("energy").at("method").as_string(), "none");
}

}  // namespace
}  // namespace jewel

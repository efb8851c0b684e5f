#include "eval/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace jewel {
namespace {

using Texts = std::vector<std::string>;

double points(Metric metric, std::string_view answer, const Texts& wanted, const Texts& choices = {}) {
  return score(metric, answer, wanted, choices);
}

TEST(Metrics, NamesComeBack) {
  for (const char* name : {"exact", "contains", "anls", "relaxed_number", "multiple_choice", "word_error"}) {
    ASSERT_TRUE(metric_of(name)) << name;
    EXPECT_EQ(name_of(*metric_of(name)), name);
  }
  EXPECT_FALSE(metric_of("bleu"));
}

TEST(Exact, WhiteSpaceAtTheEndsApart) {
  EXPECT_EQ(points(Metric::kExact, "  a b\n", {"a b"}), 1);
  EXPECT_EQ(points(Metric::kExact, "A b", {"a b"}), 0);
  EXPECT_EQ(points(Metric::kExact, "x", {"y", "x"}), 1);
}

TEST(Contains, WholeWordsOnly) {
  EXPECT_EQ(points(Metric::kContains, "The word is \"Violin\".", {"violin"}), 1);
  EXPECT_EQ(points(Metric::kContains, "The word is violins.", {"violin"}), 0);
  EXPECT_EQ(points(Metric::kContains, "There are 13.", {"3"}), 0);
  EXPECT_EQ(points(Metric::kContains, "There are 3.", {"3"}), 1);
  EXPECT_EQ(points(Metric::kContains, "It weighs 3.5 kg", {"3"}), 0);
  EXPECT_EQ(points(Metric::kContains, "It weighs 3.5 kg", {"5"}), 0);
  EXPECT_EQ(points(Metric::kContains, "It weighs 3.5 kg", {"3.5"}), 1);
  EXPECT_EQ(points(Metric::kContains, "on  the\nleft side", {"the left"}), 1);
  EXPECT_EQ(points(Metric::kContains, "größer", {"gr"}), 0) << "letters beyond ASCII are letters";
  EXPECT_EQ(points(Metric::kContains, "anything", {""}), 0);
}

// Values by hand from the definition: 1 - edits / longer length, cut at a distance of 0.5.
TEST(Anls, KnownValues) {
  EXPECT_DOUBLE_EQ(anls("hello", "hello"), 1);
  EXPECT_DOUBLE_EQ(anls(" HELLO ", "hello"), 1);
  EXPECT_DOUBLE_EQ(anls("hallo", "hello"), 0.8);
  EXPECT_DOUBLE_EQ(anls("kitten", "sitting"), 1 - 3.0 / 7);
  EXPECT_DOUBLE_EQ(anls("ab", "cb"), 0) << "a distance of exactly 0.5 is over the threshold";
  EXPECT_DOUBLE_EQ(anls("", "abc"), 0);
  EXPECT_DOUBLE_EQ(anls("", ""), 1);
  EXPECT_DOUBLE_EQ(anls("größe", "grösse"), 1 - 2.0 / 6) << "characters are counted, not bytes";
  EXPECT_DOUBLE_EQ(points(Metric::kAnls, "hallo", {"zzz", "hello"}), 0.8) << "the best counts";
}

TEST(RelaxedNumber, FivePercent) {
  EXPECT_EQ(points(Metric::kRelaxedNumber, "105", {"100"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "94.9", {"100"}), 0);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "105.1", {"100"}), 0);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "-100", {"-104"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "0.01", {"0"}), 0);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "0.0", {"0"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "12%", {"0.12"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "1,234", {"1234"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "Yes", {"yes"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "yes it is", {"yes"}), 0);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "The value is about 1,020.5.", {"1000"}), 1);
  EXPECT_EQ(points(Metric::kRelaxedNumber, "Between 90 and 100", {"100"}), 0) << "two numbers are no answer";
}

TEST(WholeNumber, IsAllOfTheText) {
  EXPECT_EQ(whole_number("3"), 3);
  EXPECT_EQ(whole_number(" -1.5e3 "), -1500);
  EXPECT_EQ(whole_number("$1,234,567.25"), 1234567.25);
  EXPECT_EQ(whole_number("€5"), 5);
  EXPECT_EQ(whole_number("50 %"), 0.5);
  EXPECT_EQ(whole_number("12."), 12);
  for (const char* none : {"", "-", "%", "1,23", "12,3456", "a3", "3a", "nan", "inf", "1 2", "0x10", ",5"})
    EXPECT_FALSE(whole_number(none)) << none;
}

TEST(MultipleChoice, TheLetterThatWasChosen) {
  const Texts animals = {"a cat", "a dog", "a cat and a dog", "neither"};
  EXPECT_EQ(chosen_letter("B", {}), 'B');
  EXPECT_EQ(chosen_letter(" (b). ", {}), 'B');
  EXPECT_EQ(chosen_letter("The answer is (C), because the cat has one.", {}), 'C');
  EXPECT_EQ(chosen_letter("Answer: D", {}), 'D');
  EXPECT_EQ(chosen_letter("First I thought the answer is A. No: the answer is B.", {}), 'B');
  EXPECT_EQ(chosen_letter("B) a dog", {}), 'B');
  EXPECT_EQ(chosen_letter("Option **C**", {}), 'C');
  EXPECT_EQ(chosen_letter("I would choose (D) here", {}), 'D');
  EXPECT_FALSE(chosen_letter("(A) or (B)", {}));
  EXPECT_FALSE(chosen_letter("E", animals)) << "there are four options";
  EXPECT_EQ(chosen_letter("a dog", animals), 'B');
  EXPECT_EQ(chosen_letter("It shows a dog.", animals), 'B');
  EXPECT_EQ(chosen_letter("The answer is a dog.", animals), 'B') << "'a' is an article here";
  EXPECT_EQ(chosen_letter("Neither.", animals), 'D');
  EXPECT_FALSE(chosen_letter("", animals));
  EXPECT_EQ(points(Metric::kMultipleChoice, "It shows a dog.", {"B"}, animals), 1);
  EXPECT_EQ(points(Metric::kMultipleChoice, "no idea", {"B"}), 0);
}

TEST(WordError, KnownValues) {
  const WordErrors one = word_errors("the cat sat on mat", "The cat sat on the mat.");
  EXPECT_EQ(one.edits, 1);
  EXPECT_EQ(one.words, 6);
  EXPECT_EQ(word_errors("", "a b").edits, 2);
  EXPECT_EQ(word_errors("a x b", "a b").edits, 1);
  EXPECT_EQ(word_errors("b a", "a b").edits, 2);
  EXPECT_EQ(word_errors("\"a\", b!", "A b").edits, 0);
  EXPECT_DOUBLE_EQ(points(Metric::kWordError, "a b x d", {"a b c d"}), 0.75);
  EXPECT_DOUBLE_EQ(points(Metric::kWordError, "x y z w v", {"a b"}), 0) << "never below 0";
}

}  // namespace
}  // namespace jewel

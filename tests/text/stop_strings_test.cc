// Stop texts against a search over the whole text, for every way of cutting it into pieces.
#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <optional>
#include <random>

namespace jewel {
namespace {

struct Outcome {
  std::string text;
  std::string stop;  // empty: none

  bool operator==(const Outcome&) const = default;
};

// The rule in plain words: the stop text that is complete first, the longest of those.
Outcome by_search(const std::string& text, const std::vector<std::string>& stops, bool include) {
  size_t best_end = std::string::npos;
  std::string best;
  for (const std::string& stop : stops) {
    const size_t at = text.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < best_end || (end == best_end && stop.size() > best.size())) best_end = end, best = stop;
  }
  if (best.empty()) return {text, ""};
  return {text.substr(0, include ? best_end : best_end - best.size()), best};
}

Outcome in_pieces(const std::vector<std::string>& pieces, const std::vector<std::string>& stops,
                  bool include) {
  StopStrings matcher(stops, include);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    outcome.text += matcher.push(piece);
    if (matcher.found()) {
      outcome.stop = *matcher.found();
      return outcome;
    }
  }
  outcome.text += matcher.flush();
  return outcome;
}

void expect_same_for_all_splits(const std::string& text, const std::vector<std::string>& stops) {
  ASSERT_LE(text.size(), 12u) << "2^n ways to cut";
  for (const bool include : {false, true}) {
    const Outcome wanted = by_search(text, stops, include);
    for (unsigned cuts = 0; cuts < 1u << (text.size() - 1); ++cuts) {
      std::vector<std::string> pieces(1);
      for (size_t i = 0; i < text.size(); ++i) {
        pieces.back() += text[i];
        if ((cuts >> i & 1) != 0) pieces.emplace_back();
      }
      ASSERT_EQ(in_pieces(pieces, stops, include), wanted) << text << " cut by " << cuts;
    }
  }
}

TEST(StopStrings, EveryWayToCut) {
  expect_same_for_all_splits("abcabcabd", {"abcabd"});
  expect_same_for_all_splits("aaaaaaab", {"aaab"});
  expect_same_for_all_splits("one\n\ntwo", {"\n\n"});
  expect_same_for_all_splits("one\n\ntwo", {"\n", "\n\n"});
  expect_same_for_all_splits("xSTOPy", {"TOP", "STOP", "STOPy"});
  expect_same_for_all_splits("nothing", {"things", "nothingx"});
  expect_same_for_all_splits("ende", {"ende"});
}

TEST(StopStrings, RandomTextsOfTwoLetters) {
  std::mt19937 random(7);
  const auto word = [&](size_t longest) {
    std::string text(1 + random() % longest, 'a');
    for (char& c : text) c = random() % 2 == 0 ? 'a' : 'b';
    return text;
  };
  int found = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 4; ++i) stops.push_back(word(6));
    const std::string text = word(11);
    expect_same_for_all_splits(text, stops);
    found += by_search(text, stops, false).stop.empty() ? 0 : 1;
  }
  EXPECT_GT(found, 100);
  EXPECT_LT(found, 290);
}

TEST(StopStrings, HoldsBackNoMoreThanItMust) {
  StopStrings matcher({"STOP"}, false);
  EXPECT_EQ(matcher.push("abc"), "abc");
  EXPECT_EQ(matcher.push("xST"), "x");
  EXPECT_EQ(matcher.push("S"), "ST");  // "STS": only the last S may begin a STOP
  EXPECT_EQ(matcher.push("TO"), "");
  EXPECT_EQ(matcher.push("."), "STO.");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopStrings, TooEarlyDoesNotCount) {
  StopStrings matcher({"ab"}, false);
  EXPECT_EQ(matcher.push("xab", false), "xab");
  EXPECT_FALSE(matcher.found());
  EXPECT_EQ(matcher.push("a", false), "");
  EXPECT_EQ(matcher.push("b"), "");  // complete now, although it began too early
  EXPECT_EQ(matcher.found(), "ab");
}

}  // namespace
}  // namespace jewel

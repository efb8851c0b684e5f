#include "eval/suite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace jewel {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SuiteFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("jewel_suite_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string write(const std::string& text, const std::string& name = "suite.jsonl") {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return (folder_ / name).string();
  }
  std::string error_of(const std::string& text) {
    const auto tasks = read_suite(write(text));
    return tasks.ok() ? "no error" : tasks.error().message;
  }
  fs::path folder_;
};

TEST_F(SuiteFile, ReadsWhatItShows) {
  write("PIXELS", "a.png");
  const auto tasks = read_suite(write(
      R"({"id":"x","category":"c","metric":"anls","answers":["1","2"],"prompt":"Q?","images":["a.png"],"max_tokens":9})"
      "\n\n"
      R"({"answer":"y","skill":"s","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}},{"type":"text","text":"t"}]}]})"
      "\n"));
  ASSERT_TRUE(tasks.ok()) << tasks.error().message;
  ASSERT_EQ(tasks->size(), 2U);
  const EvalTask& first = (*tasks)[0];
  EXPECT_EQ(first.input.id, "x");
  EXPECT_EQ(first.metric, Metric::kAnls);
  EXPECT_EQ(first.answers, (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(first.max_tokens, 9);
  ASSERT_EQ(first.input.images.size(), 1U);
  EXPECT_EQ(*first.input.images[0], "PIXELS");
  EXPECT_EQ(first.input.messages.at(0).at("content").at(0).at("type").as_string(), "image")
      << "pictures come first";
  EXPECT_EQ((*tasks)[1].input.id, "line 3");
  EXPECT_EQ((*tasks)[1].category, "s");
  EXPECT_EQ(*(*tasks)[1].input.images.at(0), "ABC");
}

TEST_F(SuiteFile, MistakesAreNamed) {
  EXPECT_THAT(error_of(""), HasSubstr("no task"));
  EXPECT_THAT(error_of("{"), HasSubstr("line 1"));
  EXPECT_THAT(error_of(R"({"prompt":"a"})"), HasSubstr("answers"));
  EXPECT_THAT(error_of(R"({"answers":["a"]})"), HasSubstr("prompt"));
  EXPECT_THAT(error_of(R"({"prompt":"a","answers":["a"],"metric":"bleu"})"), HasSubstr("relaxed_number"));
  EXPECT_THAT(error_of(R"({"prompt":"a","answers":[1]})"), HasSubstr("expected strings"));
  EXPECT_THAT(error_of(R"({"prompt":"a","answers":"b","images":["none.png"]})"), HasSubstr("none.png"));
  EXPECT_THAT(error_of(R"({"prompt":"a","answers":"b","images":["http://x/y.png"]})"),
              HasSubstr("files or data URLs"));
  EXPECT_THAT(error_of("{\"id\":\"q\",\"prompt\":\"a\",\"answers\":\"b\"}\n{\"id\":\"q\",\"prompt\":\"a\","
                       "\"answers\":\"b\"}"),
              HasSubstr("twice"));
  EXPECT_THAT(error_of(R"({"answers":"b","messages":[{"role":"user","content":[{"type":"image"}]}]})"),
              HasSubstr("more pictures"));
  EXPECT_THAT(error_of(R"({"answers":"b","messages":[{"role":"user","content":[{"type":"input_audio"}]}]})"),
              HasSubstr("input_audio"));
  EXPECT_THAT(error_of(R"({"answers":"b","messages":[3]})"), HasSubstr("messages"));
  EXPECT_FALSE(read_suite("/no/such/file.jsonl").ok());
  EXPECT_FALSE(read_suite(folder_.string()).ok());
}

TEST_F(SuiteFile, PlainTextIsCutAtWhiteSpace) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "word" + std::to_string(i) + (i % 9 == 8 ? "\n" : " ");
  const auto pieces = read_texts(write(text, "a.txt"), 100);
  ASSERT_TRUE(pieces.ok());
  std::string together;
  for (const Conversation& piece : *pieces) {
    EXPECT_LE(piece.raw.size(), 100U);
    together += piece.raw;
  }
  EXPECT_EQ(together, text) << "nothing is lost";
  const auto wide = read_texts(write("ääääääääääääääääääää", "b.txt"), 7);
  ASSERT_TRUE(wide.ok());
  for (const Conversation& piece : *wide) EXPECT_EQ(piece.raw.size() % 2, 0U) << "cut between characters";
  EXPECT_FALSE(read_texts(write("\xff\xfe", "c.txt"), 100).ok());
}

TEST(CallLine, EqualCallsAreEqualTexts) {
  EXPECT_EQ(call_line("f", R"({"b": 1, "a": [1.0, {"d": null, "c": "x"}]})"),
            R"(f({"a":[1.0,{"c":"x","d":null}],"b":1}))");
  EXPECT_EQ(call_line("f", "no json"), "f(no json)");
}

// The suite in the tree is what its tool promises.
TEST(HeldoutSuite, CanBeRead) {
  const auto tasks = read_suite(JEWEL_SOURCE_DIR "/models/heldout/suite.jsonl");
  ASSERT_TRUE(tasks.ok()) << tasks.error().message;
  std::set<std::string> categories;
  for (const EvalTask& task : *tasks) categories.insert(task.category);
  EXPECT_EQ(tasks->size(), 60U);
  EXPECT_EQ(categories.size(), 6U);
}

}  // namespace
}  // namespace jewel

// What a benchmark asks: made-up requests are the same for the same seed and no other, files are asked as
// they are.
#include "bench/request_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <filesystem>
#include <fstream>
#include <set>

namespace jewel {
namespace {

namespace json = boost::json;
using ::testing::HasSubstr;

RequestSet set_of(const std::string& text, const SetOptions& options = {}) {
  auto set = RequestSet::parse(text, options);
  EXPECT_TRUE(set.ok()) << set.error().message;
  return std::move(set).value();
}

std::string text_of(const json::object& body) {
  const json::value& content = body.at("messages").at(0).at("content");
  if (content.is_string()) return std::string(content.get_string());
  return std::string(content.as_array().back().at("text").as_string());
}

// A tokenizer: 1.4 tokens a word, 9 around them.
int tokens_of(const json::object& body) {
  const std::string text = text_of(body);
  return 9 + static_cast<int>(1.4 * static_cast<double>(1 + std::ranges::count(text, ' ')) + 0.5);
}

TEST(MadeUpRequests, SameSeedSameRequestsOnEveryMachine) {
  const RequestSet one = set_of("text:40-80:5-9", {.seed = 7});
  const RequestSet again = set_of("text:40-80:5-9", {.seed = 7});
  const RequestSet other = set_of("text:40-80:5-9", {.seed = 8});
  std::set<std::string> texts;
  for (const int run : {-1, 0, 1}) {
    for (int i = 0; i < 20; ++i) {
      EXPECT_EQ(one.request(run, i), again.request(run, i));
      texts.insert(text_of(one.request(run, i)));
      texts.insert(text_of(other.request(run, i)));
    }
  }
  EXPECT_EQ(texts.size(), 120U) << "no two requests share a text, so no cache helps";
}

TEST(MadeUpRequests, AnswersHaveTheirLength) {
  const RequestSet set = set_of("text:40:5-9");
  std::set<int64_t> lengths;
  for (int i = 0; i < 60; ++i) {
    const json::object body = set.request(0, i);
    EXPECT_TRUE(body.at("ignore_eos").as_bool());
    EXPECT_EQ(body.at("min_tokens"), body.at("max_tokens"));
    lengths.insert(body.at("max_tokens").as_int64());
  }
  EXPECT_THAT(lengths, testing::ElementsAre(5, 6, 7, 8, 9));
}

TEST(MadeUpRequests, PromptsAreAsLongAsTheServerCounts) {
  RequestSet set = set_of("text:100-300:4");
  ASSERT_TRUE(set.calibrate([](const json::object& body) -> Result<int> { return tokens_of(body); }).ok());
  int least = 1000, most = 0;
  for (int i = 0; i < 100; ++i) {
    const int tokens = tokens_of(set.request(0, i));
    least = std::min(least, tokens);
    most = std::max(most, tokens);
  }
  EXPECT_GE(least, 99);
  EXPECT_LE(least, 110);
  EXPECT_GE(most, 290);
  EXPECT_LE(most, 301);
}

TEST(MadeUpRequests, AServerThatCannotCountIsRefused) {
  RequestSet set = set_of("text:100:4");
  const auto same = set.calibrate([](const json::object&) -> Result<int> { return 12; });
  ASSERT_FALSE(same.ok());
  EXPECT_THAT(same.error().message, HasSubstr("12 tokens for 8 words and 12 for 200"));
  EXPECT_FALSE(set.calibrate([](const json::object&) -> Result<int> { return unavailable("gone"); }).ok());
}

TEST(MadeUpRequests, PicturesStandBeforeTheText) {
  const RequestSet set = set_of("image:70:20:4");
  const json::object body = set.request(0, 0);
  const json::array& parts = body.at("messages").at(0).at("content").as_array();
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_TRUE(parts[0].at("image_url").at("url").as_string().starts_with("data:image/jpeg;base64,/9j/"));
  EXPECT_EQ(body.at("mm_processor_kwargs").at("max_soft_tokens").as_int64(), 70);
  EXPECT_EQ(set.request(0, 0), body);
  EXPECT_NE(set.request(0, 1).at("messages").at(0).at("content").at(0), parts[0]);
}

TEST(RequestSets, MistakesAreNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"text:512", "which has 2 parts"},
      {"image:512:128", "which has 3 parts"},
      {"image:100:64:64", "whose budget is '100' (70, 140, 280, 560 or 1120)"},
      {"text:0:128", "whose lengths are no numbers from 1 to 1,000,000"},
      {"text:600-100:128", "whose lengths are no numbers"},
      {"text:10:2000000", "whose lengths are no numbers"},
      {"text:1e3:8", "whose lengths are no numbers"},
      {"video:5:6", "neither a kind of made-up request nor a file"},
      {"missing.jsonl", "missing.jsonl: cannot be opened"},
  };
  for (const auto& [text, message] : cases) {
    const auto set = RequestSet::parse(text, {});
    ASSERT_FALSE(set.ok()) << text;
    EXPECT_THAT(set.error().message, HasSubstr(message));
    EXPECT_EQ(set.error().param, "set");
  }
}

class SetFiles : public ::testing::Test {
 protected:
  SetFiles() { std::filesystem::create_directories(folder_); }
  ~SetFiles() override { std::filesystem::remove_all(folder_); }
  std::string file(const std::string& lines, const std::string& name = "set.jsonl") const {
    std::ofstream(folder_ / name) << lines;
    return (folder_ / name).string();
  }
  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("jewel_set_" + std::to_string(::getpid()));
};

TEST_F(SetFiles, BothFormsOfALine) {
  std::filesystem::copy(JEWEL_SOURCE_DIR "/models/heldout/shapes-00.jpg", folder_ / "cat.jpg");
  const RequestSet set = set_of(file(R"({"prompt": "Hi", "max_tokens": 5, "top_k": 3, "id": "a"})"
                                     "\n\n"
                                     R"({"system": "Be short.", "prompt": "What?", "images": ["cat.jpg"]})"
                                     "\n"
                                     R"({"model": "x", "stream": false, "temperature": 0.5, "messages": )"
                                     R"([{"role": "user", "content": [{"type": "image_url", "image_url": )"
                                     R"({"url": "cat.jpg"}}, {"type": "text", "text": "?"}]}]})"),
                                {.seed = 3, .temperature = 0.25});
  EXPECT_EQ(set.name(), "set.jsonl");
  ASSERT_EQ(set.size(), 3);
  const json::object first = set.request(0, 0);
  EXPECT_EQ(text_of(first), "Hi");
  EXPECT_EQ(first.at("max_tokens").as_int64(), 5);
  EXPECT_EQ(first.at("top_k").as_int64(), 3);
  EXPECT_EQ(first.at("temperature").as_double(), 0.25);
  EXPECT_FALSE(first.contains("id"));
  EXPECT_FALSE(first.contains("ignore_eos")) << "answers of a file end where they end";
  const json::object second = set.request(0, 1);
  EXPECT_EQ(second.at("messages").as_array().size(), 2U);
  EXPECT_EQ(second.at("max_tokens").as_int64(), 256);
  const std::string url = "data:image/jpeg;base64,";
  EXPECT_TRUE(
      second.at("messages").at(1).at("content").at(0).at("image_url").at("url").as_string().starts_with(url));
  const json::object third = set.request(0, 2);
  EXPECT_FALSE(third.contains("model"));
  EXPECT_FALSE(third.contains("stream"));
  EXPECT_EQ(third.at("temperature").as_double(), 0.5);
  EXPECT_TRUE(
      third.at("messages").at(0).at("content").at(0).at("image_url").at("url").as_string().starts_with(url));
}

TEST_F(SetFiles, AreAskedRoundAndRoundWithASaltForEachRun) {
  const std::string path = file("{\"prompt\": \"a\"}\n{\"prompt\": \"b\", \"cache_salt\": \"mine\"}\n");
  const RequestSet cold = set_of(path);
  EXPECT_EQ(text_of(cold.request(0, 2)), "a");
  EXPECT_EQ(cold.request(0, 0), cold.request(0, 2));
  EXPECT_NE(cold.request(0, 0).at("cache_salt"), cold.request(1, 0).at("cache_salt"));
  EXPECT_EQ(cold.request(1, 1).at("cache_salt").as_string(), "mine");
  const RequestSet warm = set_of(path, {.warm_cache = true});
  EXPECT_FALSE(warm.request(0, 0).contains("cache_salt"));
}

TEST_F(SetFiles, MistakesNameFileAndLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "holds no request"},
      {"{\"prompt\": \"a\"}\n{\"prompt\"", "set.jsonl:2"},
      {"\n[]", "set.jsonl:2"},
      {"{\"max_tokens\": 4}", "set.jsonl:1: found neither \"messages\" nor \"prompt\""},
      {"{\"prompt\": 4}", "prompt"},
      {"{\"prompt\": \"a\", \"max_tokens\": 0}", "max_tokens"},
      {"{\"prompt\": \"a\", \"image\": \"none.png\"}", "none.png cannot be opened"},
      {"{\"prompt\": \"a\", \"images\": [7]}", "images: expected texts"},
      {"{\"messages\": \"Hi\"}", "messages: expected a list"},
  };
  for (const auto& [lines, message] : cases) {
    const auto set = RequestSet::parse(file(lines), {});
    ASSERT_FALSE(set.ok()) << lines;
    EXPECT_THAT(set.error().message, HasSubstr(message));
    EXPECT_THAT(set.error().message, HasSubstr("set.jsonl"));
  }
}

}  // namespace
}  // namespace jewel

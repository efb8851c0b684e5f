// The rules of the command line and of the YAML file.
#include "server/settings.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>

namespace jewel {
namespace {

using boost::json::parse;

Settings from_arguments(const std::vector<std::string>& arguments) {
  auto settings = Settings::read(arguments);
  EXPECT_TRUE(settings.ok()) << (settings.ok() ? "" : settings.error().message);
  return settings.ok() ? std::move(settings).value() : Settings();
}

Settings from_yaml(const std::string& text) {
  auto settings = Settings::read_yaml(text, "f.yaml");
  EXPECT_TRUE(settings.ok()) << (settings.ok() ? "" : settings.error().message);
  return settings.ok() ? std::move(settings).value() : Settings();
}

TEST(Settings, UnderscoresAndDashesAreAlike) {
  const Settings settings = from_arguments({"m", "--max_num-seqs", "4", "--max-model_len=32k"});
  EXPECT_EQ(settings.integer("max-num-seqs"), 4);
  EXPECT_EQ(settings.integer("max-model-len"), 32'000);
  EXPECT_EQ(settings.model_argument, "m");
}

TEST(Settings, TokensHaveSuffixes) {
  for (const auto& [text, value] : std::vector<std::pair<std::string, int64_t>>{{"4096", 4096},
                                                                                {"32K", 32'768},
                                                                                {"32k", 32'000},
                                                                                {"1M", 1 << 20},
                                                                                {"auto", -1},
                                                                                {"-1", -1},
                                                                                {"25.6k", 25'600}}) {
    EXPECT_EQ(from_arguments({"--max-model-len=" + text}).integer("max-model-len"), value) << text;
  }
  EXPECT_EQ(from_arguments({"--max-model-len=9999999999G"}).all().at(0).problem.substr(0, 8), "expected");
}

TEST(Settings, FalseIsHonouredEverywhere) {
  EXPECT_EQ(from_yaml("enable_prefix_caching: false").boolean("enable-prefix-caching"), false);
  EXPECT_EQ(from_yaml("no-enable-prefix-caching: true").boolean("enable-prefix-caching"), false);
  EXPECT_EQ(from_yaml("no_enable_prefix_caching: false").boolean("enable-prefix-caching"), true);
  EXPECT_EQ(from_arguments({"--no-enable-prefix-caching"}).boolean("enable-prefix-caching"), false);
  EXPECT_EQ(from_arguments({"--enable-prefix-caching=false"}).boolean("enable-prefix-caching"), false);
  EXPECT_EQ(from_arguments({"--enable-prefix-caching", "m"}).boolean("enable-prefix-caching"), true);
}

TEST(Settings, TheCommandLineWinsOverTheFile) {
  const std::string path = ::testing::TempDir() + "/jewel_settings_test.yaml";
  std::ofstream(path) << "# a comment\nmodel: from-file\nport: 1\nmax_num_seqs: 8\n";
  const Settings settings = from_arguments({"--port", "2", "--config", path});
  EXPECT_EQ(settings.integer("port"), 2);
  EXPECT_EQ(settings.integer("max-num-seqs"), 8);
  EXPECT_EQ(settings.text("model"), "from-file");
  EXPECT_EQ(settings.all().at(1).origin, "jewel_settings_test.yaml:3");
  EXPECT_EQ(from_arguments({"--config=" + path}).integer("port"), 1);
  std::filesystem::remove(path);
}

// A nested map, a JSON string and a dotted flag say the same.
TEST(Settings, JsonInThreeSpellings) {
  const boost::json::value wanted = parse(R"({"image": 1, "audio": 0})");
  EXPECT_EQ(*from_yaml("limit_mm_per_prompt:\n  image: 1\n  audio: 0\n").json("limit-mm-per-prompt"), wanted);
  EXPECT_EQ(*from_yaml("limit_mm_per_prompt: '{\"image\": 1, \"audio\": 0}'").json("limit-mm-per-prompt"),
            wanted);
  EXPECT_EQ(
      *from_arguments({"--limit-mm-per-prompt", R"({"image":1,"audio":0})"}).json("limit-mm-per-prompt"),
      wanted);
  EXPECT_EQ(*from_arguments({"--limit-mm-per-prompt.image", "1", "--limit_mm_per_prompt.audio=0"})
                 .json("limit-mm-per-prompt"),
            wanted);
  EXPECT_EQ(*from_arguments({"--limit-mm-per-prompt.image.count", "5"}).json("limit-mm-per-prompt"),
            parse(R"({"image": {"count": 5}})"));
  EXPECT_EQ(
      *from_yaml("limit-mm-per-prompt.image: 1\nlimit_mm_per_prompt.audio: 0\n").json("limit-mm-per-prompt"),
      wanted);
}

TEST(Settings, ListsAreWordsUntilTheNextFlag) {
  const Settings settings =
      from_arguments({"m", "--served-model-name", "a", "b", "--api-key", "k", "--port", "1"});
  EXPECT_EQ(settings.texts("served-model-name"), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(from_yaml("served_model_name: [a, 7]").texts("served-model-name"),
            (std::vector<std::string>{"a", "7"}));
  EXPECT_EQ(from_yaml("served_model_name: a").texts("served-model-name"), std::vector<std::string>{"a"});
}

TEST(Settings, ShortSpellings) {
  const Settings settings = from_arguments({"m", "-tp", "1", "-q", "fp8", "-O2"});
  EXPECT_EQ(settings.integer("tensor-parallel-size"), 1);
  EXPECT_EQ(settings.text("quantization"), "fp8");
  EXPECT_EQ(settings.text("optimization-level"), "2");
}

TEST(Settings, NullIsTheDefault) {
  EXPECT_FALSE(from_yaml("max_num_seqs: null\n").integer("max-num-seqs"));
}

TEST(Settings, UnknownKeysAreKept) {
  const Settings settings = from_arguments({"m", "--max-num-sequences", "4", "--port", "1"});
  ASSERT_EQ(settings.all().size(), 2u);
  EXPECT_EQ(settings.all()[0].flag, nullptr);
  EXPECT_EQ(settings.all()[0].name, "--max-num-sequences");
  EXPECT_EQ(settings.integer("port"), 1);
}

TEST(Settings, WrongKindsAreNamed) {
  EXPECT_NE(from_yaml("port: eight").all().at(0).problem.find("an integer"), std::string::npos);
  EXPECT_NE(from_yaml("port: [1]").all().at(0).problem.find("found a list"), std::string::npos);
  EXPECT_NE(from_yaml("limit_mm_per_prompt: one").all().at(0).problem.find("found 'one'"), std::string::npos);
  EXPECT_NE(from_yaml("enable_prefix_caching: maybe").all().at(0).problem.find("true or false"),
            std::string::npos);
}

TEST(Settings, BadFilesAreErrors) {
  EXPECT_FALSE(Settings::read_yaml("a: [", "f.yaml").ok());
  EXPECT_FALSE(Settings::read_yaml("- a\n- b\n", "f.yaml").ok());
  EXPECT_FALSE(Settings::read(std::vector<std::string>{"--config", "/nonexistent.yaml"}).ok());
  EXPECT_FALSE(Settings::read(std::vector<std::string>{"--config", "/nonexistent.json"}).ok());
  EXPECT_FALSE(Settings::read(std::vector<std::string>{"--port"}).ok());
  EXPECT_FALSE(Settings::read_yaml("\"port\\nhost\": 1\n", "f.yaml").ok());
  EXPECT_FALSE(Settings::read(std::vector<std::string>{"--po\nrt", "1"}).ok());
  // Aliases that would grow to 10^9 values.
  std::string bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 9; ++i) {
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) bomb += (j ? ",*a" : "*a") + std::to_string(i - 1);
    bomb += "]\n";
  }
  EXPECT_FALSE(Settings::read_yaml(bomb + "limit_mm_per_prompt: *a8\n", "f.yaml").ok());
}

}  // namespace
}  // namespace jewel

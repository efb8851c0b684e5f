// jewel report: the whole command on the demo model, its table, its files, what it leaves behind.
#include "card/card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "cli/run_program.h"

namespace jewel {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";
const std::string kSuite = JEWEL_SOURCE_DIR "/models/heldout/suite.jsonl";

// Everything that the command makes by itself goes into `temporary()`.
class Report : public ::testing::Test {
 protected:
  Report() {
    fs::create_directories(temporary());
    ::setenv("TMPDIR", temporary().c_str(), 1);
  }
  ~Report() override {
    ::unsetenv("TMPDIR");
    fs::remove_all(folder_);
  }
  fs::path temporary() const { return folder_ / "tmp"; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }
  // As short as runs can be.
  std::vector<std::string> command(std::vector<std::string> more) const {
    std::vector<std::string> words = {"report", kDemo, "--set",   "text:32:6", "--requests",   "3",
                                      "--runs", "2",   "--meter", "none",      "--max-tokens", "64"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  const fs::path folder_ = fs::temp_directory_path() / ("jewel_report_" + std::to_string(::getpid()));
};

TEST_F(Report, OneCommandGivesTheTableOfAModelCard) {
  std::ofstream(path("text.txt")) << "There are 3 circles. The triangle is green. The word is \"violin\".\n";
  const ProgramOutput output = run_program(
      command({"--suite", kSuite, "--limit", "1", "--text", path("text.txt"), "--keep", path("fp8"), "--json",
               path("r.json"), "--csv", path("r.csv"), "--html", path("r.html")}));
  ASSERT_EQ(output.exit_code, 0) << output.err << output.out;
  EXPECT_THAT(
      output.out,
      AllOf(HasSubstr("| Size of the weights on disk "), HasSubstr("| Output, text:32:6, 1 at once "),
            HasSubstr("| First token, text:32:6, 1 at once "), HasSubstr("| Quality, 6 tasks "),
            HasSubstr("gate 80.0 % in every category: passed"), HasSubstr("| Perplexity of text.txt "),
            HasSubstr("in the order A B B A"), HasSubstr("- Joules: method: none; ")));
  EXPECT_THAT(output.out, Not(HasSubstr(" J ")));

  const json::object written = json::parse(text_of("r.json")).as_object();
  const auto file = result_from_json(written, "r.json");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->energy_method, "none");
  for (const Figure& figure : file->figures) {
    EXPECT_NE(figure.unit, "J") << figure.name;
    EXPECT_NE(figure.unit, "W") << figure.name;
  }
  const Figure* size = file->find("size of the weights, B / A");
  ASSERT_NE(size, nullptr);
  EXPECT_DOUBLE_EQ(*size->value, static_cast<double>(fs::file_size(folder_ / "fp8/model.safetensors")) /
                                     static_cast<double>(fs::file_size(kDemo + "/model.safetensors")));
  EXPECT_LT(*size->value, 1);
  for (const char* name : {"text:32:6, 1 at once, A: output", "text:32:6, 1 at once: output, B / A",
                           "recovery: all", "KL divergence, mean"})
    EXPECT_NE(file->find(name), nullptr) << name;
  EXPECT_EQ(file->details.at("tasks").as_array().size(), 6U);
  EXPECT_TRUE(file->details.at("passed").as_bool());
  EXPECT_EQ(file->details.at("table").at(0).at("metric").as_string(), "Size of the weights on disk");
  EXPECT_EQ(file->settings.at("source").as_string(), kDemo);
  EXPECT_THAT(text_of("r.csv"), HasSubstr("\"recovery: all\","));
  EXPECT_THAT(text_of("r.html"),
              AllOf(HasSubstr("✓ passed"), HasSubstr("Expected performance"), HasSubstr("Latency"),
                    HasSubstr("Quality by category"), Not(HasSubstr("<script"))));
  EXPECT_THAT(text_of("fp8/README.md"),
              AllOf(HasSubstr("# FP8 weights, made by Jewel"), HasSubstr("| BF16 ")));
  EXPECT_EQ(run_program({"inspect", path("fp8")}).exit_code, 0);
  EXPECT_TRUE(fs::is_empty(temporary()));
}

// A category that the base cannot do is not judged, and what is not judged does not pass.
TEST_F(Report, TheGateSaysNoWithThree) {
  std::ofstream(path("suite.jsonl"))
      << R"({"category": "greetings", "metric": "contains", "answers": ["Hello"], "prompt": "Hello", "max_tokens": 16})"
         "\n"
         R"({"category": "philosophy", "answers": ["42"], "prompt": "Why?", "max_tokens": 4})"
         "\n";
  const ProgramOutput output = run_program(
      command({"--suite", path("suite.jsonl"), "--quiet", "--no-ceilings", "--html", path("r.html")}));
  EXPECT_EQ(output.exit_code, 3) << output.err << output.out;
  EXPECT_EQ(output.err, "");
  EXPECT_THAT(output.out,
              HasSubstr("Gate: failed: the gate is 80.0 % in every category: philosophy is not judged"));
  EXPECT_THAT(text_of("r.html"), AllOf(HasSubstr("✗ failed"), HasSubstr("philosophy is not judged")));
  EXPECT_TRUE(fs::is_empty(temporary())) << "the checkpoint was a temporary one";
}

TEST_F(Report, WithoutASuiteQualityIsNotMeasured) {
  const ProgramOutput output = run_program(command({"--quiet", "--no-ceilings", "--json", "-"}));
  EXPECT_EQ(output.exit_code, 0) << output.err;
  const json::object file = json::parse(output.out).as_object();
  const json::array& table = file.at("details").at("table").as_array();
  const auto quality = std::ranges::find_if(
      table, [](const json::value& row) { return row.at("metric").as_string() == "Quality"; });
  ASSERT_NE(quality, table.end());
  EXPECT_EQ(quality->at("fp8").as_string(), "not measured");
  EXPECT_EQ(quality->at("change").as_string(), "no suite was given");
  EXPECT_FALSE(file.at("settings").as_object().contains("quality"));
}

// Ctrl-C in the middle of an endless measurement.
TEST_F(Report, CtrlCLeavesNothingBehind) {
  const std::vector<std::string> words = {JEWEL_BINARY, "report",     kDemo,     "--quiet",
                                          "--set",      "text:32:64", "--runs",  "100",
                                          "--seconds",  "60",         "--meter", "none"};
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.data()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execv(JEWEL_BINARY, argv.data());
    ::_exit(127);
  }
  // Until the checkpoint is there, and then for a little of the measurement.
  const auto made = [&] {
    for (const auto& entry : fs::directory_iterator(temporary())) {
      if (fs::exists(entry.path() / "fp8" / "config.json")) return true;
    }
    return false;
  };
  for (int i = 0; i < 300 && !made(); ++i) std::this_thread::sleep_for(100ms);
  EXPECT_TRUE(made());
  std::this_thread::sleep_for(1s);
  ::kill(child, SIGINT);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_TRUE(fs::is_empty(temporary()));
}

TEST_F(Report, MistakesShowBeforeAnythingIsMade) {
  std::ofstream(path("bad.jsonl")) << "{\"prompt\": \"Hi\"}\n";
  fs::create_directories(path("there"));
  const std::tuple<std::vector<std::string>, int, const char*> cases[] = {
      {{"report"}, 2, "SRC"},
      {{"report", path("nothing")}, 1, "nothing"},
      {command({"--set", "text:1"}), 1, "expected text:IN:OUT"},
      {command({"--suite", path("bad.jsonl")}), 1, "answers"},
      {command({"--suite", path("none.jsonl")}), 2, "--suite"},
      {command({"--keep", path("there")}), 1, "there"},
      {command({"--html", path("no/folder.html")}), 1, "--html: "},
      {command({"--csv", "-"}), 1, "--csv: only --json can be printed"},
  };
  for (const auto& [arguments, code, message] : cases) {
    const ProgramOutput output = run_program(arguments);
    EXPECT_EQ(output.exit_code, code) << testing::PrintToString(arguments) << output.err;
    EXPECT_THAT(output.err, HasSubstr(message)) << testing::PrintToString(arguments);
    EXPECT_EQ(output.out, "");
    EXPECT_TRUE(fs::is_empty(temporary())) << testing::PrintToString(arguments);
  }
}

}  // namespace
}  // namespace jewel

// The benchmark as a whole: its order, its medians, what it says of failures; the demo model in process, a
// server that speaks as vLLM does, and the command.
#include "bench/bench.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "bench/fake_target.h"
#include "bench/output.h"
#include "bench/stand_in_server.h"
#include "cli/run_program.h"

namespace jewel {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";

RequestSet set_of(const std::string& text) {
  auto set = RequestSet::parse(text, {});
  EXPECT_TRUE(set.ok()) << set.error().message;
  return std::move(set).value();
}

BenchPlan plan_of(const std::string& set, const Load& load, int requests, int runs) {
  BenchPlan plan;
  plan.sets = {set_of(set)};
  plan.loads = {load};
  plan.requests = requests;
  plan.runs = runs;
  plan.ceilings = false;
  return plan;
}

Result<BenchResult> bench(
    std::vector<std::unique_ptr<Target>>& targets, BenchPlan plan,
    const BenchProgress& say = [](const std::string&, int, int) {}) {
  return run_bench(targets, std::move(plan), {.counter = nullptr, .why = "tests have no meter"}, say);
}

TEST(Bench, TwoTargetsTakeTurnsAndAreAskedTheSame) {
  EXPECT_THAT(turn_order(2, 0), ElementsAre(0, 1));
  EXPECT_THAT(turn_order(2, 1), ElementsAre(1, 0));
  EXPECT_THAT(turn_order(2, 2), ElementsAre(0, 1));
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{}, "one"));
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{}, "two"));
  std::vector<std::string> said;
  const auto result = bench(targets, plan_of("text:20:2", {.concurrency = 1}, 3, 4),
                            [&](const std::string& what, int ended, int) {
                              const size_t comma = what.find(", ");
                              if (ended == 0 && comma != std::string::npos)
                                said.push_back(what.substr(comma + 2));
                            });
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_THAT(said,
              ElementsAre("1 at once, A: warm-up", "1 at once, B: warm-up", "1 at once, A: run 1 of 4",
                          "1 at once, B: run 1 of 4", "1 at once, B: run 2 of 4", "1 at once, A: run 2 of 4",
                          "1 at once, A: run 3 of 4", "1 at once, B: run 3 of 4", "1 at once, B: run 4 of 4",
                          "1 at once, A: run 4 of 4"));
  auto a = static_cast<const FakeTarget&>(*targets[0]).asked();
  const auto& b = static_cast<const FakeTarget&>(*targets[1]).asked();
  ASSERT_EQ(b.size(), 2U + 4 * 3);
  a.erase(a.begin(), a.begin() + 2);  // A alone was asked how many tokens a word has
  EXPECT_EQ(a, b);
  EXPECT_NE(b[2], b[5]) << "no run asks what another asked";
  EXPECT_EQ(result->points[0].runs[0].size(), 4U);
}

TEST(Bench, AComparisonIsOfPairsOfRuns) {
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{.first = 8ms, .between = 4ms}));
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{.first = 4ms, .between = 2ms}));
  const auto result = bench(targets, plan_of("text:20:6", {.concurrency = 1}, 3, 3));
  ASSERT_TRUE(result.ok()) << result.error().message;
  const std::vector<Comparison> all = compare(*result);
  const auto gaps = std::ranges::find(all, "text:20:6, 1 at once: between tokens, p50", &Comparison::what);
  ASSERT_NE(gaps, all.end());
  EXPECT_NEAR(gaps->ratio.median, 0.5, 1e-9) << "the fake's own times, 2 ms over 4";
  EXPECT_EQ(gaps->ratio.runs, 3);
  EXPECT_FALSE(gaps->more_is_better);
  const ResultFile file = result_file(*result);
  ASSERT_NE(file.find("text:20:6, 1 at once: output, B / A"), nullptr);
  EXPECT_GT(*file.find("text:20:6, 1 at once: output, B / A")->value, 1);
  EXPECT_THAT(table_text(*result), HasSubstr("B over A"));
  EXPECT_THAT(html_text(*result, file), HasSubstr("B over A"));
}

TEST(Bench, AFigureIsTheMedianOfTheRunsWithTheirSpread) {
  std::vector<RunFigures> runs(3);
  runs[0].output_tokens_per_s = 100;
  runs[1].output_tokens_per_s = 90;
  runs[2].output_tokens_per_s = 104;
  runs[2].joules_per_token = 2;
  const auto output =
      over_runs(runs, [](const RunFigures& run) { return std::optional<double>(run.output_tokens_per_s); });
  ASSERT_TRUE(output);
  EXPECT_EQ(output->median, 100);
  EXPECT_EQ(output->low, 90);
  EXPECT_EQ(output->high, 104);
  const auto joules = over_runs(runs, [](const RunFigures& run) { return run.joules_per_token; });
  EXPECT_EQ(joules->runs, 1) << "only one run measured them";
}

TEST(Bench, FailuresAreCountedAndNamed) {
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{.fail_every = 5}));
  BenchPlan plan = plan_of("text:20:2", {.concurrency = 1}, 10, 2);
  plan.warmup = 1;
  const auto result = bench(targets, std::move(plan));
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->failed(), 4);
  const ResultFile file = result_file(*result);
  EXPECT_THAT(table_text(*result),
              HasSubstr("4 requests failed, the first with: the fake target fails this one"));
  EXPECT_THAT(html_text(*result, file), HasSubstr("4 requests failed"));
  EXPECT_THAT(file.notes, testing::Contains(HasSubstr("4 requests failed")));
}

TEST(Bench, ATargetThatFailsInTheWarmUpCannotBeMeasured) {
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{.fail_every = 4}));  // the second of the warm-up
  const auto result = bench(targets, plan_of("text:20:2", {.concurrency = 1}, 3, 1));
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(result.error().message, HasSubstr("fake, text:20:2: the fake target fails this one"));
}

TEST(Bench, ARunIsAsLongAsAsked) {
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::make_unique<FakeTarget>(FakeAnswers{.first = 10ms, .between = 0ms}));
  BenchPlan plan = plan_of("text:20:2", {.rate = 50}, 0, 1);
  plan.seconds = 0.4;
  const auto result = bench(targets, std::move(plan));
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->points[0].requests, 20) << "0.4 s at 50 a second";
}

// In process: exact lengths, no joules where there is no meter, ceilings of the same run.
TEST(Bench, TheDemoModelInProcess) {
  EngineOptions options;
  options.device = "cpu";
  options.max_num_seqs = 2;
  auto target = make_local_target(kDemo, options);
  ASSERT_TRUE(target.ok()) << target.error().message;
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::move(target).value());
  BenchPlan plan = plan_of("text:48:6", {.concurrency = 2}, 8, 2);
  plan.ceilings = true;
  const auto result = bench(targets, std::move(plan));
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->failed(), 0);
  EXPECT_TRUE(result->rates(0).known());
  const RunFigures& text = result->points[0].runs[0][0];
  EXPECT_EQ(text.wrong_length, 0);
  EXPECT_EQ(text.output_tokens, 6);
  EXPECT_NEAR(text.prompt_tokens, 48, 5);
  EXPECT_EQ(text.cached_tokens.value_or(-1), 0) << "made-up texts share no prefix but the template's";
  EXPECT_TRUE(text.steady);
  EXPECT_GT(text.first_token_s->p50, 0);
  EXPECT_LT(text.first_token_s->p50, text.request_s->p50);
  const ResultFile file = result_file(*result);
  EXPECT_EQ(file.energy_method, "none");
  const Figure* output = file.find("text:48:6, 2 at once: output");
  ASSERT_NE(output, nullptr);
  EXPECT_GT(*output->value, 0);
  EXPECT_GT(output->ceiling.value_or(0), 0);
#if !__has_feature(address_sanitizer)  // there the loops that measure it are slowed more than the model's
  EXPECT_GT(*output->ceiling, *output->value);
#endif
  EXPECT_EQ(output->spread->what, "min to max of 2 runs");
  EXPECT_EQ(file.find("text:48:6, 2 at once: energy of an output token"), nullptr);
  EXPECT_THAT(table_text(*result),
              AllOf(HasSubstr("Joules:  none; tests have no meter."), Not(HasSubstr("J/token"))));
  const std::string page = html_text(*result, file);
  for (const char* part : {"First token", "Between tokens", "Roofline", "Joules were not measured here"})
    EXPECT_THAT(page, HasSubstr(part));
}

TEST(Bench, PicturesTakeTheirBudget) {
  EngineOptions options;
  options.device = "cpu";
  auto target = make_local_target(kDemo, options, "demo");
  ASSERT_TRUE(target.ok()) << target.error().message;
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::move(target).value());
  BenchPlan plan = plan_of("image:70:24:2", {.concurrency = 1}, 2, 1);
  plan.warmup = 1;
  const auto result = bench(targets, std::move(plan));
  ASSERT_TRUE(result.ok()) << result.error().message;
  const RunFigures& image = result->points[0].runs[0][0];
  EXPECT_EQ(image.failed, 0);
  EXPECT_GT(image.image_tokens.value_or(0), 50);
  EXPECT_LE(image.image_tokens.value_or(0), 70);
  EXPECT_NEAR(image.prompt_tokens - *image.image_tokens, 24, 4);
  EXPECT_EQ(result->targets[0].name, "demo");
}

// vLLM's stream: usage in the last event, one token an event.
TEST(Bench, AServerThatSpeaksAsVllmDoes) {
  StandInServer server(like_vllm("gemma", 2ms));
  auto target = make_server_target({.url = server.url()});
  ASSERT_TRUE(target.ok()) << target.error().message;
  std::vector<std::unique_ptr<Target>> targets;
  targets.push_back(std::move(target).value());
  const auto result = bench(targets, plan_of("text:64:5", {.concurrency = 3}, 12, 2));
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(result->failed(), 0);
  for (const RunFigures& run : result->points[0].runs[0]) {
    EXPECT_EQ(run.output_tokens, 5);
    EXPECT_EQ(run.wrong_length, 0);
    EXPECT_EQ(run.without_usage, 0);
    EXPECT_GE(run.first_token_s->min, 0.002);
    EXPECT_GE(run.between_tokens_s->p50, 0.0015);
    EXPECT_FALSE(run.cached_tokens) << "it does not say";
  }
  EXPECT_EQ(server.connections(), 3) << "as many as requests at once";
  const ResultFile file = result_file(*result);
  EXPECT_EQ(file.settings.at("targets").at(0).at("owned_by").as_string(), "vllm");
  EXPECT_EQ(file.find("text:64:5, 3 at once: cached prompt tokens"), nullptr) << "unknown is not 0";
}

class BenchCommand : public ::testing::Test {
 protected:
  BenchCommand() { fs::create_directories(folder_); }
  ~BenchCommand() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string text_of(const std::string& name) const {
    std::ostringstream text;
    text << std::ifstream(folder_ / name).rdbuf();
    return text.str();
  }
  const fs::path folder_ = fs::temp_directory_path() / ("jewel_bench_" + std::to_string(::getpid()));
};

TEST_F(BenchCommand, MeasuresAServerAndWritesEveryForm) {
  StandInServer server(like_vllm("gemma", 1ms));
  const ProgramOutput output =
      run_program({"bench", "--url", server.url(), "--set", "text:32:3", "--concurrency", "1,2", "--requests",
                   "8", "--runs", "2", "--meter", "none", "--json", path("b.json"), "--csv", path("b.csv"),
                   "--html", path("b.html")});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_THAT(output.out, AllOf(HasSubstr("text:32:3"), HasSubstr("2 at once"), HasSubstr("Joules:  none")));
  const auto file = result_from_json(json::parse(text_of("b.json")).as_object(), "b.json");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->energy_method, "none");
  ASSERT_NE(file->find("text:32:3, 2 at once: output"), nullptr);
  EXPECT_EQ(file->details.at("points").at(0).at("runs").as_array().size(), 2U);
  EXPECT_THAT(text_of("b.csv"), HasSubstr("\"text:32:3, 1 at once: output\","));
  EXPECT_THAT(text_of("b.html"),
              AllOf(HasSubstr("<!doctype html>"), HasSubstr("</html>"), Not(HasSubstr("<script"))));
}

TEST_F(BenchCommand, JsonAloneOnStdout) {
  StandInServer server(like_vllm("gemma", 0ms));
  const ProgramOutput output = run_program({"bench", server.url(), "--set", "text:32:2", "--requests", "3",
                                            "--runs", "1", "--meter", "none", "--quiet", "--json", "-"});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_EQ(output.err, "");
  EXPECT_TRUE(json::parse(output.out).as_object().contains("figures"));
}

TEST_F(BenchCommand, RequestsThatFailMakeItFail) {
  std::atomic<int> chats = 0;
  const auto vllm = like_vllm("gemma", 0ms);
  StandInServer server([&](const Heard& heard) -> SaidAll {
    if (heard.line.starts_with("POST") && ++chats > 5)
      return {{{whole_response(500, R"({"error":"out of pages"})")}}};
    return vllm(heard);
  });
  const ProgramOutput output = run_program({"bench", server.url(), "--set", "text:32:2", "--requests", "4",
                                            "--runs", "1", "--meter", "none", "--quiet"});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_THAT(output.out, AllOf(HasSubstr("3 requests failed"), HasSubstr("out of pages")));
}

TEST_F(BenchCommand, MistakesSayWhatToDo) {
  std::ofstream(path("bad.jsonl")) << "{\"prompt\": 3}\n";
  const std::tuple<std::vector<std::string>, int, const char*> cases[] = {
      {{"bench"}, 2, "found no model; give a directory, a model's name, --url of a server, or --simulate"},
      {{"bench", kDemo, "--set", "text:12"}, 1, "expected text:IN:OUT, image:BUDGET:IN:OUT or FILE.jsonl"},
      {{"bench", kDemo, "--set", path("bad.jsonl")}, 1, "bad.jsonl:1"},
      {{"bench", path("nothing")}, 1, "nothing"},
      {{"bench", "--url", "http://127.0.0.1:1/v1"}, 1, "is the server up?"},
      {{"bench", "--url", "ftp://host"}, 1, "ftp"},
      {{"bench", kDemo, "--rate", "0"}, 2, "--rate"},
      {{"bench", kDemo, "--rate", "1", "--concurrency", "1"}, 2, "--concurrency"},
      {{"bench", kDemo, "--runs", "0"}, 2, "--runs"},
      {{"bench", kDemo, "--meter", "guess"}, 2, "--meter"},
      {{"bench", kDemo, "--max-num-seqs", "1,2"}, 2, "one value without --simulate"},
      {{"bench", kDemo, "--simulate"}, 2, "--simulate measures no model"},
      {{"bench", kDemo, "--against", kDemo, "--url", "http://127.0.0.1:1/v1"}, 2, "--url"},
      {{"bench", kDemo, "--json", path("no/folder/x.json"), "--set", "text:8:1", "--requests", "1", "--runs",
        "1", "--no-ceilings"},
       1,
       "--json: "},
  };
  for (const auto& [arguments, code, message] : cases) {
    const ProgramOutput output = run_program(arguments);
    EXPECT_EQ(output.exit_code, code) << testing::PrintToString(arguments) << output.err;
    EXPECT_THAT(output.err, HasSubstr(message)) << testing::PrintToString(arguments);
    EXPECT_EQ(output.out, "") << testing::PrintToString(arguments);
  }
}

TEST_F(BenchCommand, HelpFitsTheTerminalAndNamesItsPage) {
  const ProgramOutput help = run_program({"bench", "--help"});
  EXPECT_EQ(help.exit_code, 0);
  for (const char* word : {"--set", "--against", "--rate", "--meter", "--html", "docs/bench.md"})
    EXPECT_THAT(help.out, HasSubstr(word));
}

}  // namespace
}  // namespace jewel

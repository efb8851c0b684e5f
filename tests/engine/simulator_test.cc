#include "engine/simulator/simulator.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace jewel {
namespace {

using ::testing::HasSubstr;

std::string temporary_file(const std::string& text) {
  const std::string path =
      (std::filesystem::path(::testing::TempDir()) /
       fmt::format("trace_{}.jsonl", ::testing::UnitTest::GetInstance()->current_test_info()->name()))
          .string();
  std::ofstream(path) << text;
  return path;
}

std::string trace_error(const std::string& text) {
  const auto trace = read_trace(temporary_file(text));
  return trace.ok() ? "(no error)" : trace.error().message;
}

CostModel cost(std::string_view text) {
  auto model = parse_cost_model(text);
  EXPECT_TRUE(model.ok());
  return *model;
}

TEST(CostModelTest, IsASum) {
  const CostModel model =
      cost("fixed_ms=1,row_us=10,token_us=2,image_ms=5,context_ns=3,copy_gb_s=20,host_us=40");
  EXPECT_NEAR(
      model.step_s({.decode_rows = 4, .prefill_tokens = 100, .images = 2, .decode_context_tokens = 1000}),
      1e-3 + 40e-6 + 200e-6 + 10e-3 + 3e-6, 1e-12);
  EXPECT_DOUBLE_EQ(model.copy_bytes_per_s, 20e9);
  EXPECT_DOUBLE_EQ(model.host_s, 40e-6);
}

TEST(CostModelTest, PresetsCanBeChanged) {
  const CostModel plain = cost("h200"), changed = cost("h200,row_us=1");
  EXPECT_DOUBLE_EQ(changed.fixed_s, plain.fixed_s);
  EXPECT_DOUBLE_EQ(changed.decode_row_s, 1e-6);
  EXPECT_EQ(changed.name, "h200 (changed)");
}

TEST(CostModelTest, SaysWhatIsWrong) {
  EXPECT_THAT(parse_cost_model("h100").error().message, HasSubstr("found 'h100', expected one of h200"));
  EXPECT_THAT(parse_cost_model("rows=3").error().message,
              HasSubstr("found 'rows', expected one of fixed_ms"));
  EXPECT_THAT(parse_cost_model("row_us=fast").error().message, HasSubstr("row_us: found 'fast'"));
  EXPECT_THAT(parse_cost_model("row_us=-1").error().message, HasSubstr("from 0"));
  EXPECT_FALSE(parse_cost_model("row_us=1,h200").ok());
}

TEST(TraceTest, RoundTrip) {
  const std::string text =
      R"({"arrival_s": 0.25, "id": "a", "max_tokens": 3, "salt": "s", "priority": -2, "prompt": [{"shared": "x", "tokens": 20}, {"image": "cat", "tokens": 9}, {"tokens": 4}, {"ids": [5, 6]}]})"
      "\n\n"
      R"({"arrival_s": 1, "after": "a", "max_tokens": 2, "prompt": [{"history": "a"}, {"tokens": 1}]})";
  const auto trace = read_trace(temporary_file(text));
  ASSERT_TRUE(trace.ok()) << trace.error().message;
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].prompt[1].name, "cat");
  EXPECT_EQ(trace->requests[0].prompt[3].tokens, 2);
  EXPECT_EQ(trace->requests[1].after, "a");

  const std::string copy = ::testing::TempDir() + "copy.jsonl", again = ::testing::TempDir() + "again.jsonl";
  ASSERT_TRUE(write_trace(*trace, copy).ok());
  ASSERT_TRUE(write_trace(*read_trace(copy), again).ok());
  std::ifstream one(copy), two(again);
  const std::string first((std::istreambuf_iterator<char>(one)), {});
  EXPECT_EQ(first, std::string((std::istreambuf_iterator<char>(two)), {}));
  EXPECT_THAT(first, HasSubstr("\"image\":\"cat\""));
}

TEST(TraceTest, SaysWhatIsWrong) {
  EXPECT_THAT(read_trace("/nowhere/trace.jsonl").error().message, HasSubstr("cannot be read"));
  EXPECT_THAT(trace_error(""), HasSubstr("holds no request"));
  EXPECT_THAT(trace_error("{\"max_tokens\": 1"), HasSubstr(":1"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "prompt": []})"), HasSubstr("expected an array of parts"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 0, "prompt": [{"tokens": 1}]})"), HasSubstr("max_tokens"));
  EXPECT_THAT(trace_error(R"({"max_token": 1, "prompt": [{"tokens": 1}]})"),
              HasSubstr("found key 'max_token'"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "prompt": [{"token": 1}]})"), HasSubstr("found key 'token'"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "prompt": [{"shared": "a", "image": "b", "tokens": 1}]})"),
              HasSubstr("both 'shared' and 'image'"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "prompt": [{"ids": [-1]}]})"),
              HasSubstr("expected token ids"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "prompt": [{"ids": 7}]})"), HasSubstr("ids"));
  EXPECT_THAT(trace_error(R"({"max_tokens": 1, "after": "x", "prompt": [{"tokens": 1}]})"),
              HasSubstr("expected the id of an earlier line"));
  EXPECT_THAT(trace_error("{\"id\": \"a\", \"max_tokens\": 1, \"prompt\": [{\"tokens\": 1}]}\n"
                          "{\"id\": \"a\", \"max_tokens\": 1, \"prompt\": [{\"tokens\": 1}]}"),
              HasSubstr(":2: id: 'a' has been used before"));
  EXPECT_THAT(trace_error("{\"id\": \"a\", \"max_tokens\": 1, \"prompt\": [{\"tokens\": 1}]}\n"
                          "{\"max_tokens\": 1, \"prompt\": [{\"history\": \"a\"}]}"),
              HasSubstr("needs \"after\": \"a\""));
}

TEST(LengthsTest, AreParsed) {
  EXPECT_DOUBLE_EQ(parse_lengths("--x", "350")->a, 350);
  EXPECT_DOUBLE_EQ(parse_lengths("--x", "uniform:10:20")->b, 20);
  EXPECT_DOUBLE_EQ(parse_lengths("--x", "lognormal:10:0.5")->b, 0.5);
  for (const char* wrong : {"", "a", "uniform", "uniform:1", "uniform:5:1", "exp:1:2", "1x", "-1", "exp:"})
    EXPECT_THAT(parse_lengths("--x", wrong).error().message, HasSubstr("--x: found '")) << wrong;
}

TEST(SyntheticTest, TheSameEverywhere) {
  SyntheticTraffic traffic{.requests = 400, .rate = 10, .image_share = 0.5, .turns = 2};
  traffic.prompt_tokens = *parse_lengths("", "uniform:10:20");
  const auto one = synthetic_trace(traffic), two = synthetic_trace(traffic);
  ASSERT_EQ(one->requests.size(), 400u);
  double tokens = 0, last_s = 0;
  int images = 0;
  for (size_t i = 0; i < 400; ++i) {
    const TraceRequest& request = one->requests[i];
    EXPECT_EQ(request.arrival_s, two->requests[i].arrival_s);
    tokens += request.prompt.back().tokens;
    images += request.prompt.front().kind == TracePart::Kind::kImage ? 1 : 0;
    if (request.after.empty()) last_s = request.arrival_s;
  }
  EXPECT_NEAR(tokens / 400, 15, 0.6);
  EXPECT_NEAR(images, 100, 25);
  EXPECT_NEAR(last_s, 20, 5);  // 200 conversations, 10 a second
  EXPECT_FALSE(synthetic_trace({.requests = 1}).ok());
}

TEST(PercentilesTest, Few) {
  EXPECT_EQ(percentiles({}).n, 0);
  const Percentiles p = percentiles({4, 1, 3, 2});
  EXPECT_EQ(p.p50, 3);
  EXPECT_EQ(p.max, 4);
  EXPECT_EQ(p.mean, 2.5);
}

TEST(SimulatorTest, OneRequestTakesItsSteps) {
  const auto trace =
      read_trace(temporary_file(R"({"arrival_s": 2, "max_tokens": 5, "prompt": [{"tokens": 100}]})"));
  const auto result = simulate(*trace, cost("fixed_ms=10,row_us=1000,token_us=100"), {});
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_NEAR(result->ttft_s.p50, 0.010 + 0.010, 1e-9);
  EXPECT_EQ(result->inter_token_s.n, 4);
  EXPECT_NEAR(result->inter_token_s.p50, 0.011, 1e-9);
  EXPECT_NEAR(result->seconds, 0.020 + 4 * 0.011, 1e-9);
  EXPECT_NEAR(result->output_tokens_per_s_ceiling, 32 / (0.010 + 0.032), 1e-6);
}

TEST(SimulatorTest, TheHostIsBesideTheDevice) {
  const auto trace = read_trace(temporary_file(R"({"max_tokens": 101, "prompt": [{"tokens": 16}]})"));
  const auto hidden = simulate(*trace, cost("fixed_ms=10,host_us=5000"), {.one_ahead = true});
  const auto added = simulate(*trace, cost("fixed_ms=10,host_us=5000"), {.one_ahead = false});
  EXPECT_NEAR(hidden->inter_token_s.p50, 0.010, 1e-9);
  EXPECT_NEAR(added->inter_token_s.p50, 0.015, 1e-9);
}

TEST(SimulatorTest, ChunkedPrefillShortensTheGaps) {
  SyntheticTraffic traffic{.requests = 200, .rate = 20};
  traffic.prompt_tokens = *parse_lengths("", "uniform:500:4000");
  const auto trace = synthetic_trace(traffic);
  const auto large = simulate(*trace, cost("h200"), {.max_num_batched_tokens = 8192});
  const auto small = simulate(*trace, cost("h200"), {.max_num_batched_tokens = 512});
  EXPECT_LT(small->inter_token_s.p99, 0.5 * large->inter_token_s.p99);
  EXPECT_EQ(large->requests, 200);
}

TEST(SimulatorTest, TheCacheSavesWhatIsShared) {
  const auto trace = synthetic_trace({.requests = 300,
                                      .concurrency = 16,
                                      .prompt_tokens = {.a = 40},
                                      .output_tokens = {.a = 20},
                                      .shared_tokens = 800,
                                      .image_share = 1,
                                      .n_images = 1,
                                      .turns = 3});
  const auto with = simulate(*trace, cost("h200"), {.prefix_cache = true});
  const auto without = simulate(*trace, cost("h200"), {.prefix_cache = false});
  EXPECT_GT(with->hit_rate, 0.9);
  EXPECT_EQ(without->hit_rate, 0);
  EXPECT_EQ(with->images_encoded, 1);
  EXPECT_LT(with->ttft_s.p50, without->ttft_s.p50);
}

TEST(SimulatorTest, LittleMemoryPreempts) {
  SyntheticTraffic traffic{.requests = 100, .concurrency = 32};
  traffic.output_tokens = {.a = 400};
  traffic.prompt_tokens = {.a = 200};
  const auto trace = synthetic_trace(traffic);
  const auto tight = simulate(*trace, cost("h200"), {.kv_gib = 0.12});
  ASSERT_TRUE(tight.ok()) << tight.error().message;
  EXPECT_GT(tight->preemptions, 0);
  EXPECT_EQ(tight->requests, 100);
  EXPECT_THAT(simulate(*trace, cost("h200"), {.kv_gib = 0.0001}).error().message, HasSubstr("KV"));
}

TEST(SimulatorTest, AThousandRequestsInSeconds) {
  const auto trace = synthetic_trace({.requests = 1000, .rate = 40, .output_tokens = {.a = 128}});
  const auto one = simulate(*trace, cost("h200"), {}), two = simulate(*trace, cost("h200"), {});
  fmt::print("1,000 requests, {:.0f} s of traffic, {} steps: simulated in {:.2f} s\n", one->seconds,
             one->steps, one->wall_s);
  EXPECT_EQ(one->requests, 1000);
  EXPECT_EQ(one->ttft_s.p99, two->ttft_s.p99);
  EXPECT_EQ(one->steps, two->steps);
  EXPECT_LE(one->busy_share, 1.0 + 1e-9);
  EXPECT_LE(one->output_tokens_per_s, one->output_tokens_per_s_ceiling);
}

}  // namespace
}  // namespace jewel

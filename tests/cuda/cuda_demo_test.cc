// The demo model on the GPU, through the library: what it answers to the held-out prompts is what
// Transformers answers in FP32, but where two tokens are so close that BF16 decides; and it does not depend
// on how many requests run beside it, bitwise.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>
#include <fstream>
#include <iterator>

#include "jewel/engine.h"
#include "needs_device.h"

namespace jewel {
namespace {

namespace json = boost::json;

const std::string kPrompts = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden/prompts/";
const std::string kModel = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";

// A near tie: the reference's token is less likely than the one taken by at most this factor's logarithm. The
// demo model's logits reach 25, and BF16 moves them by about 1 % of that (cuda_golden_test prints how far): a
// pair of them by 0.35 in the mean, so by twice that now and then.
constexpr float kNearTie = 0.7f;

struct Line {
  json::object object;
  std::vector<int32_t> expected;
};

std::vector<Line> read_lines() {
  std::vector<Line> lines;
  std::ifstream file(kPrompts + "prompts.jsonl");
  for (std::string text; std::getline(file, text);) {
    json::object object = json::parse(text).as_object();
    auto expected = json::value_to<std::vector<int32_t>>(object.at("token_ids"));
    lines.push_back({std::move(object), std::move(expected)});
  }
  return lines;
}

int max_tokens() {
  std::ifstream file(kPrompts + "capture.json");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  return json::parse(text).at("max_tokens").to_number<int>();
}

// The engine, or null and the test skipped (failed with JEWEL_REQUIRE_CUDA=1) where there is no device.
std::unique_ptr<Engine> load(std::string& reason, const char* kv_dtype = "auto", int step_tokens = 2048,
                             bool prefix_caching = false, const char* activations = "bf16") {
  EngineOptions options;
  options.device = "cuda";
  options.kv_cache_dtype = kv_dtype;
  options.max_num_batched_tokens = step_tokens;
  options.max_model_len = 1024;
  options.prefix_caching = prefix_caching;
  options.prefill_activations = activations;
  options.kv_cache_gib = 2;
  auto engine = Engine::load(kModel, options);
  if (engine.ok()) return std::move(*engine);
  reason = without_device(engine.error().message);
  return nullptr;
}

struct Answer {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenChance>> top;
  int cached = 0;
};

Stream submit(Engine& engine, const json::object& line, int n_tokens) {
  Request request{.messages_json = json::serialize(line.at("messages")),
                  .tools = json::serialize(line.at("tools")),
                  .thinking = line.at("thinking").as_bool(),
                  .max_tokens = n_tokens,
                  .logprobs = 5};
  request.sampling.temperature = 0;
  for (const auto& name : line.at("images").as_array()) {
    std::ifstream file(kPrompts + std::string(name.as_string()), std::ios::binary);
    request.images.push_back(std::make_shared<const std::string>(std::istreambuf_iterator<char>(file),
                                                                 std::istreambuf_iterator<char>()));
  }
  auto stream = engine.submit(std::move(request));
  if (!stream.ok()) ADD_FAILURE() << stream.error().message;
  return std::move(*stream);
}

Answer read(Stream& stream) {
  Answer answer;
  while (auto update = stream.next()) {
    for (const OutputToken& token : update->tokens) {
      answer.ids.push_back(token.id);
      answer.logprobs.push_back(token.chance ? token.chance->logprob : 0);
      answer.top.push_back(token.top);
    }
    if (!update->finish) continue;
    if (update->finish->error) ADD_FAILURE() << update->finish->error->message;
    answer.cached = update->finish->usage.cached_tokens;
  }
  return answer;
}

std::vector<Answer> answers_together(Engine& engine, const std::vector<Line>& lines, int n_tokens) {
  std::vector<Stream> streams;
  for (const Line& line : lines) streams.push_back(submit(engine, line.object, n_tokens));
  std::vector<Answer> answers;
  for (Stream& stream : streams) answers.push_back(read(stream));
  return answers;
}

size_t first_difference(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  size_t i = 0;
  while (i < a.size() && i < b.size() && a[i] == b[i]) ++i;
  return i;
}

struct Numbers {
  const char* kv;
  const char* activations;  // of prompts
  double equal_share;       // of the answers, at least
};
constexpr Numbers kNumbers[] = {
    // Greedy answers part at a near tie once in some 50 of these prompts, on the CPU in BF16 too.
    {"bfloat16", "bf16", 0.95},
    {"fp8", "bf16", 0.95},
    // Three bits of a prompt's activations: what that costs is printed.
    {"bfloat16", "fp8", 0.8}};

// All prompts at once: many rows a step, prompts beside decoding rows, pictures.
TEST(CudaDemo, AnswersOfTransformersButForNearTies) {
  std::string reason;
  for (const auto& [kv, activations, equal_share] : kNumbers) {
    const auto engine = load(reason, kv, 2048, false, activations);
    if (!engine) GTEST_SKIP() << reason;
    const std::vector<Line> lines = read_lines();
    ASSERT_EQ(lines.size(), 224u);
    const std::vector<Answer> answers = answers_together(*engine, lines, max_tokens());
    int equal = 0, ties = 0;
    float widest = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
      const std::vector<int32_t>& expected = lines[i].expected;
      const Answer& found = answers[i];
      if (found.ids == expected) {
        ++equal;
        continue;
      }
      const size_t at = first_difference(found.ids, expected);
      ASSERT_LT(at, found.ids.size()) << "line " << i + 1 << " ends early";
      ASSERT_LT(at, expected.size()) << "line " << i + 1 << " goes on";
      float gap = 1e9f;
      for (const TokenChance& chance : found.top[at]) {
        if (chance.id == expected[at]) gap = found.logprobs[at] - chance.logprob;
      }
      widest = std::max(widest, gap);
      ties += gap <= kNearTie;
      // With FP8 keys, values or activations it is another model, a little: answers may differ for more than
      // rounding.
      if (kv != std::string_view("fp8") && activations != std::string_view("fp8")) {
        EXPECT_LE(gap, kNearTie) << "line " << i + 1 << ", token " << at << ": " << found.ids[at]
                                 << " instead of " << expected[at];
      }
    }
    fmt::print(
        "KV {}, activations {}: {} of {} answers are Transformers', {} part at a near tie (bound {}, "
        "widest {:.3f})\n",
        kv, activations, equal, lines.size(), ties, kNearTie, widest);
    EXPECT_GE(equal, static_cast<int>(equal_share * static_cast<double>(lines.size())));
  }
}

TEST(CudaDemo, NeighboursChunksAndPrefixesDoNotMatter) {
  std::string reason;
  for (const char* kv : {"bfloat16", "fp8"}) {
    std::vector<Line> lines = read_lines();
    lines.resize(24);
    std::vector<Answer> alone;
    {
      const auto engine = load(reason, kv);
      if (!engine) GTEST_SKIP() << reason;
      for (const Line& line : lines) {
        Stream stream = submit(*engine, line.object, 40);
        alone.push_back(read(stream));
      }
    }
    const auto expect_same = [&](const std::vector<Answer>& answers, const char* how) {
      for (size_t i = 0; i < lines.size(); ++i) {
        EXPECT_EQ(answers[i].ids, alone[i].ids) << how << ", line " << i + 1;
        EXPECT_EQ(answers[i].logprobs, alone[i].logprobs) << how << ", line " << i + 1;
      }
    };
    {
      const auto engine = load(reason, kv);
      expect_same(answers_together(*engine, lines, 40), "together");
    }
    {
      const auto engine = load(reason, kv, 33);
      expect_same(answers_together(*engine, lines, 40), "in steps of 33 tokens");
    }
    const auto engine = load(reason, kv, 2048, true);
    expect_same(answers_together(*engine, lines, 40), "with a prefix cache");
    const std::vector<Answer> again = answers_together(*engine, lines, 40);
    expect_same(again, "from the prefix cache");
    int cached = 0;
    for (const Answer& answer : again) cached += answer.cached;
    EXPECT_GT(cached, 0);
    fmt::print("KV {}: {} answers bitwise equal alone, together, in small steps and after {} cached tokens\n",
               kv, lines.size(), cached);
  }
}

}  // namespace
}  // namespace jewel

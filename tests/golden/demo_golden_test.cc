// The whole way of a request, from a picture file and a chat to token ids, against Transformers: greedy
// output of the demo model in FP32 on held-out prompts must be the reference's, id by id.
// tests/data/golden/prompts holds pictures, prompts and what Transformers answered
// (tools/goldens/capture_prompts.py).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "backend/cpu/cpu_backend.h"
#include "checkpoint/checkpoint.h"
#include "digest.h"
#include "engine/generate.h"
#include "engine/pages.h"
#include "image/prepare.h"
#include "text/prompt.h"

namespace jewel {
namespace {

const std::string kPrompts = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden/prompts/";
const std::string kModel = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";
constexpr int kMaxModelLen = 1024;
constexpr int kStepTokens = 512;

std::vector<uint8_t> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  JEWEL_CHECK(file.good(), "{} cannot be opened", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Model, tokenizer and backend, loaded once for all prompts.
struct Demo {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<PromptBuilder> prompts;
  std::unique_ptr<Backend> backend;
  KvSizes kv;

  static Demo load() {
    Demo demo;
    auto checkpoint = Checkpoint::open(kModel);
    JEWEL_CHECK(checkpoint.ok(), "{}", checkpoint.error().message);
    demo.checkpoint = std::move(checkpoint.value());
    auto prompts = PromptBuilder::load(kModel);
    JEWEL_CHECK(prompts.ok(), "{}", prompts.error().message);
    demo.prompts = std::move(prompts.value());
    CpuOptions options;
    options.dtype = DType::kF32;
    options.kv_dtype = DType::kF32;
    options.max_step_tokens = kStepTokens;
    auto backend = make_cpu_backend(demo.checkpoint->config(), demo.checkpoint->weights(), options);
    JEWEL_CHECK(backend.ok(), "{}", backend.error().message);
    demo.backend = std::move(backend.value());
    demo.kv = SequencePages::needed(kMaxModelLen, kStepTokens, demo.checkpoint->config().text.sliding_window);
    auto allocated = demo.backend->allocate_kv(demo.kv);
    JEWEL_CHECK(allocated.ok(), "{}", allocated.error().message);
    return demo;
  }
};

struct Answered {
  size_t prompt_tokens = 0;
  std::vector<TokenId> token_ids;
};

Answered answer(Demo& demo, const boost::json::object& line, int max_tokens) {
  const ModelConfig& config = demo.checkpoint->config();
  std::vector<FeatureId> features;
  std::vector<int> image_tokens;
  for (const auto& name : line.at("images").as_array()) {
    auto image = prepare_image(read_bytes(kPrompts + std::string(name.as_string())),
                               demo.checkpoint->processor().max_soft_tokens, {}, config.vision.value());
    JEWEL_CHECK(image.ok(), "{}", image.error().message);
    image_tokens.push_back(image.value().size.soft_tokens);
    auto feature = demo.backend->encode_image(image.value().patches);
    JEWEL_CHECK(feature.ok(), "{}", feature.error().message);
    features.push_back(feature.value());
  }
  RenderOptions options;
  options.enable_thinking = line.at("thinking").as_bool();
  auto prompt =
      demo.prompts->chat(line.at("messages").as_array(), line.at("tools").as_array(), options, image_tokens);
  JEWEL_CHECK(prompt.ok(), "{}", prompt.error().message);

  GenerateRequest request;
  request.prompt = prompt.value().ids;
  for (const ImageSpan& span : prompt.value().images) {
    request.images.push_back({.feature = features[static_cast<size_t>(span.image)],
                              .position = span.position,
                              .count = span.count});
  }
  request.sampling.temperature = 0;
  request.stop_token_ids = demo.checkpoint->stop_token_ids();
  request.max_tokens = max_tokens;
  auto result = generate(*demo.backend, config, demo.kv, request, kMaxModelLen,
                         [](const SampledToken&) { return Continue::kYes; });
  JEWEL_CHECK(result.ok(), "{}", result.error().message);
  for (const FeatureId feature : features) demo.backend->release_feature(feature);
  return {.prompt_tokens = request.prompt.size(), .token_ids = std::move(result.value().token_ids)};
}

TEST(DemoGolden, greedy_answers_are_those_of_transformers) {
  auto note = read_json_object(kPrompts + "capture.json");
  ASSERT_TRUE(note.ok()) << note.error().message;
  const int max_tokens = static_cast<int>(note.value().at("max_tokens").as_int64());
  ASSERT_EQ(digest_of_words(read_bytes(kModel + "/model.safetensors")),
            std::string(note.value().at("model_digest").as_string()))
      << "the demo model is not the one that answered; run tools/goldens/capture_prompts.py again";
  // Sanitizer builds, ten times slower, answer the first few only.
  const char* limit = std::getenv("JEWEL_GOLDEN_PROMPTS");
  const auto wanted = limit ? std::strtol(limit, nullptr, 10) : note.value().at("prompts").as_int64();
  Demo demo = Demo::load();
  std::ifstream file(kPrompts + "prompts.jsonl");
  std::string text;
  int prompts = 0;
  int equal = 0;
  while (prompts < wanted && std::getline(file, text)) {
    const boost::json::object line = boost::json::parse(text).as_object();
    const auto expected = boost::json::value_to<std::vector<TokenId>>(line.at("token_ids"));
    const Answered found = answer(demo, line, max_tokens);
    ++prompts;
    equal += found.token_ids == expected;
    EXPECT_EQ(found.prompt_tokens, static_cast<size_t>(line.at("prompt_tokens").as_int64()))
        << "line " << prompts;
    EXPECT_EQ(found.token_ids, expected) << "line " << prompts << ", the reference's smallest margin "
                                         << line.at("margin").to_number<double>();
  }
  EXPECT_EQ(prompts, wanted);
  fmt::print("{} of {} answers equal to Transformers'\n", equal, prompts);
}

}  // namespace
}  // namespace jewel

// The whole way of a request, from a picture file and a chat to token ids, against Transformers: greedy
// output of the demo model in FP32 on held-out prompts must be the reference's, id by id.
// tests/data/golden/prompts holds pictures, prompts and what Transformers answered
// (tools/goldens/capture_prompts.py).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "base/check.h"
#include "digest.h"
#include "jewel/engine.h"
#include "model/config.h"

namespace jewel {
namespace {

const std::string kPrompts = std::string(JEWEL_SOURCE_DIR) + "/tests/data/golden/prompts/";
const std::string kModel = std::string(JEWEL_SOURCE_DIR) + "/models/jewel-demo";
std::vector<uint8_t> read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  JEWEL_CHECK(file.good(), "{} cannot be opened", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::unique_ptr<Engine> load_demo() {
  EngineOptions options;
  options.dtype = "float32";
  options.max_num_batched_tokens = 512;
  options.max_model_len = 1024;
  options.prefix_caching = false;
  auto engine = Engine::load(kModel, options);
  JEWEL_CHECK(engine.ok(), "{}", engine.error().message);
  return std::move(engine.value());
}

struct Answered {
  int prompt_tokens = 0;
  std::vector<TokenId> token_ids;
};

Answered answer(Engine& engine, const boost::json::object& line, int max_tokens) {
  Request request{.messages_json = boost::json::serialize(line.at("messages")),
                  .tools = boost::json::serialize(line.at("tools")),
                  .thinking = line.at("thinking").as_bool(),
                  .max_tokens = max_tokens};
  request.sampling.temperature = 0;
  for (const auto& name : line.at("images").as_array()) {
    const std::vector<uint8_t> bytes = read_bytes(kPrompts + std::string(name.as_string()));
    request.images.push_back(std::make_shared<const std::string>(bytes.begin(), bytes.end()));
  }
  auto stream = engine.submit(std::move(request));
  JEWEL_CHECK(stream.ok(), "{}", stream.error().message);
  Answered answered;
  while (auto update = stream->next()) {
    for (const OutputToken& token : update->tokens) answered.token_ids.push_back(token.id);
    if (!update->finish) continue;
    JEWEL_CHECK(!update->finish->error, "{}", update->finish->error->message);
    answered.prompt_tokens = update->finish->usage.prompt_tokens;
  }
  return answered;
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
  const std::unique_ptr<Engine> engine = load_demo();
  std::ifstream file(kPrompts + "prompts.jsonl");
  std::string text;
  int prompts = 0;
  int equal = 0;
  while (prompts < wanted && std::getline(file, text)) {
    const boost::json::object line = boost::json::parse(text).as_object();
    const auto expected = boost::json::value_to<std::vector<TokenId>>(line.at("token_ids"));
    const Answered found = answer(*engine, line, max_tokens);
    ++prompts;
    equal += found.token_ids == expected;
    EXPECT_EQ(found.prompt_tokens, line.at("prompt_tokens").as_int64()) << "line " << prompts;
    EXPECT_EQ(found.token_ids, expected) << "line " << prompts << ", the reference's smallest margin "
                                         << line.at("margin").to_number<double>();
  }
  EXPECT_EQ(prompts, wanted);
  fmt::print("{} of {} answers equal to Transformers'\n", equal, prompts);
}

}  // namespace
}  // namespace jewel

// What an Engine may be told at load, and what that changes; and the wishes of a request that narrow its
// answer.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "api/answers.h"

namespace jewel {
namespace {

namespace fs = std::filesystem;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;

std::unique_ptr<Engine> engine_with(const std::function<void(EngineOptions&)>& change) {
  EngineOptions options = demo_options();
  change(options);
  auto engine = Engine::load(kDemo, options);
  EXPECT_TRUE(engine.ok()) << engine.error().message;
  return engine.ok() ? std::move(engine.value()) : nullptr;
}

std::string load_error(const std::function<void(EngineOptions&)>& change) {
  EngineOptions options = demo_options();
  change(options);
  const auto engine = Engine::load(kDemo, options);
  EXPECT_FALSE(engine.ok());
  return engine.ok() ? "" : engine.error().message;
}

std::string prompt_text(const Engine& engine, Request request) {
  request.return_prompt_ids = true;
  const auto prompt = engine.prompt_of(request);
  EXPECT_TRUE(prompt.ok()) << prompt.error().message;
  return engine.detokenize(prompt->ids).value();
}

class TempDir {
 public:
  TempDir() : path_(fmt::format("/tmp/jewel_options_test_{}", ::getpid())) { fs::create_directories(path_); }
  ~TempDir() { fs::remove_all(path_); }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path_ / name) << text; }
  void copy(const std::string& name) const {
    fs::copy_file(fs::path(kDemo) / name, path_ / name, fs::copy_options::overwrite_existing);
  }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

TEST(EngineOptions, TemplateAndTokenizerFromElsewhere) {
  const auto inlined = engine_with(
      [](EngineOptions& o) { o.chat_template = "{{ bos_token }}Q: {{ messages[0].content }} A:"; });
  EXPECT_THAT(prompt_text(*inlined, question("two?")), HasSubstr("Q: two? A:"));

  const TempDir dir;
  dir.copy("tokenizer.json");
  dir.copy("tokenizer_config.json");
  dir.write("chat_template.jinja", "{{ bos_token }}Elsewhere: {{ messages[0].content }}");
  const auto other = engine_with([&](EngineOptions& o) { o.tokenizer = dir.path(); });
  EXPECT_THAT(prompt_text(*other, question("two?")), HasSubstr("Elsewhere: two?"));

  EXPECT_THAT(load_error([](EngineOptions& o) { o.chat_template = "{% if %}"; }), HasSubstr("chat_template"));
  EXPECT_THAT(load_error([](EngineOptions& o) { o.tokenizer = "/nonexistent"; }), HasSubstr("/nonexistent"));
}

TEST(EngineOptions, SamplingDefaultsFromElsewhere) {
  EXPECT_EQ(demo_engine().info().default_sampling.top_k, 64);
  const auto none = engine_with([](EngineOptions& o) { o.generation_config = "vllm"; });
  EXPECT_EQ(none->info().default_sampling.top_k, 0);
  EXPECT_EQ(none->info().default_sampling.temperature, 1.0);
  EXPECT_EQ(none->info().stop_token_ids, demo_engine().info().stop_token_ids);

  const TempDir dir;
  dir.write(
      "generation_config.json",
      R"({"do_sample":true,"temperature":0.5,"min_p":0.1,"repetition_penalty":1.2,"max_new_tokens":3})");
  const auto own = engine_with([&](EngineOptions& o) { o.generation_config = dir.path(); });
  const Sampling& sampling = own->info().default_sampling;
  EXPECT_EQ(sampling.temperature, 0.5);
  EXPECT_EQ(sampling.min_p, 0.1);
  EXPECT_EQ(sampling.repetition_penalty, 1.2);
  EXPECT_EQ(own->info().stop_token_ids, demo_engine().info().stop_token_ids);
  // max_new_tokens holds for every answer, as in vLLM.
  EXPECT_EQ(ask(*own, question("Who are you?", 64)).tokens.size(), 3U);
  EXPECT_EQ(ask(*own, question("Who are you?", 0)).tokens.size(), 3U);
  EXPECT_EQ(ask(*own, question("Who are you?", 2)).tokens.size(), 2U);

  EXPECT_THAT(load_error([](EngineOptions& o) { o.generation_config = "/nonexistent"; }),
              HasSubstr("expected auto, vllm or a directory"));
}

TEST(EngineOptions, WhatIsForGpusIsSaidOnACpu) {
  const auto engine = engine_with([](EngineOptions& o) {
    o.lm_head_dtype = "fp8";
    o.ple = "device";
    o.prefill_activations = "fp8";
  });
  for (const char* field : {"lm_head_dtype fp8", "ple device", "prefill_activations fp8"})
    EXPECT_THAT(engine->info().notes, Contains(HasSubstr(field)));
  EXPECT_THAT(load_error([](EngineOptions& o) { o.ple = "disk"; }), HasSubstr("expected auto, device, host"));
  EXPECT_THAT(load_error([](EngineOptions& o) { o.lm_head_dtype = "int4"; }), HasSubstr("auto, fp8"));
}

// The second turn finds the first one's answer in the cache, unless it must not.
TEST(EngineOptions, ExactPrefixKeepsAnswersOutOfTheCache) {
  const auto cached = [](Engine& engine) {
    Request first = question("Who are you?", 64);
    const WholeAnswer said = ask(engine, first);
    Request second{.messages = first.messages, .sampling = first.sampling, .max_tokens = 4};
    second.messages.push_back(text_message("assistant", said.content));
    second.messages.push_back(text_message("user", "And who else? Say it in a few more words, please."));
    const WholeAnswer answer = ask(engine, std::move(second));
    return std::pair(answer.finish.usage.cached_tokens, said.finish.usage.prompt_tokens);
  };
  const auto plain = engine_with([](EngineOptions&) {});
  const auto exact = engine_with([](EngineOptions& o) { o.exact_prefix = true; });
  const auto [with_answer, prompt] = cached(*plain);
  const auto [without, same_prompt] = cached(*exact);
  EXPECT_GT(with_answer, prompt);
  EXPECT_LE(without, same_prompt);
}

TEST(EngineOptions, InfoSaysPagesAndLimits) {
  const ModelInfo& info = demo_engine().info();
  EXPECT_EQ(info.page_tokens, 16);
  EXPECT_GT(info.n_full_pages, 4);
  EXPECT_GT(info.n_sliding_pages, 4);
  EXPECT_EQ(info.max_logprobs, info.vocab_size);
  Request request = question("Who are you?", 1);
  request.logprobs = info.max_logprobs;
  EXPECT_EQ(ask(demo_engine(), request).tokens.at(0).top.size(), static_cast<size_t>(info.vocab_size));
  request.logprobs = info.max_logprobs + 1;
  const auto refused = demo_engine().submit(request);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.error().message, HasSubstr(fmt::format("0 to {}, what cpu", info.max_logprobs)));
}

TEST(Narrowing, BadWordsAreNotSaid) {
  const std::string plain = ask(demo_engine(), question("Who are you?")).content;
  for (const char* word : {"Jewel", "demo model", "tiny"}) {
    ASSERT_THAT(plain, HasSubstr(word));
    Request request = question("Who are you?", 24);
    request.bad_words = {word};
    EXPECT_THAT(ask(demo_engine(), request).content, Not(HasSubstr(word)));
  }
  Request request = question("Who are you?", 24);
  request.bad_words = {"  "};
  EXPECT_FALSE(demo_engine().submit(request).ok());
}

// A phrase is held back in a format, too.
TEST(Narrowing, BadWordsAndAGrammar) {
  Request request = question("Which?", 24);
  request.grammar = {.kind = Grammar::Kind::kChoice, .choices = {"a red circle", "a red square"}};
  const std::string said = ask(demo_engine(), request).content;
  request.bad_words = {said.substr(6)};  // "circle" or "square"
  const std::string other = ask(demo_engine(), request).content;
  EXPECT_NE(other, said);
  EXPECT_THAT(request.grammar.choices, Contains(other));
}

TEST(Narrowing, AllowedIdsAreAllThereIs) {
  Request request = question("Who are you?", 8);
  const auto ids = demo_engine().tokenize("violin", false).value();
  request.allowed_token_ids = ids;
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_EQ(answer.finish.reason, EndReason::kLength);  // no stop token is among them
  for (const int32_t id : answer.ids()) EXPECT_THAT(ids, Contains(id));
  request.allowed_token_ids = std::vector<int32_t>();
  EXPECT_FALSE(demo_engine().submit(request).ok());
  request.allowed_token_ids = std::vector<int32_t>{1 << 20};
  EXPECT_FALSE(demo_engine().submit(request).ok());
}

TEST(Narrowing, LongPromptsAreCut) {
  Request request{.prompt = "one two three four five six"};
  request.return_prompt_ids = true;
  const std::vector<int32_t> all = demo_engine().prompt_of(request)->ids;
  request.truncate_prompt_tokens = 4;
  std::vector<int32_t> kept = demo_engine().prompt_of(request)->ids;
  ASSERT_EQ(kept.size(), 4U);
  EXPECT_EQ(kept.front(), all.front());  // <bos>
  EXPECT_TRUE(std::equal(kept.begin() + 1, kept.end(), all.end() - 3));
  request.truncate_end = true;
  kept = demo_engine().prompt_of(request)->ids;
  EXPECT_EQ(kept, std::vector<int32_t>(all.begin(), all.begin() + 4));
  request.truncate_prompt_tokens = 1000;
  EXPECT_EQ(demo_engine().prompt_of(request)->ids, all);
  request.truncate_prompt_tokens = 0;
  EXPECT_FALSE(demo_engine().prompt_of(request).ok());
  // As many as fit, with room for the answer.
  Request longer{.prompt = std::string(20'000, 'x'), .max_tokens = 8};
  longer.truncate_prompt_tokens = -1;
  EXPECT_EQ(demo_engine().prompt_of(longer)->prompt_tokens, demo_engine().info().max_model_len - 8);
  // An image is not cut through; one that lies in what goes away goes whole.
  Request picture = about_image("models/examples/word.png", "What word is in the picture?");
  const PromptInfo whole = demo_engine().prompt_of(picture).value();
  picture.truncate_prompt_tokens = whole.prompt_tokens - 40;
  const auto cut = demo_engine().prompt_of(picture);
  ASSERT_FALSE(cut.ok());
  EXPECT_THAT(cut.error().message, HasSubstr("image"));
  picture.truncate_prompt_tokens = 8;
  EXPECT_EQ(demo_engine().prompt_of(picture)->image_tokens, 0);
}

TEST(Narrowing, WithoutBos) {
  Request request{.prompt = "one"};
  const int with = demo_engine().prompt_of(request)->prompt_tokens;
  request.add_special_tokens = false;
  EXPECT_EQ(demo_engine().prompt_of(request)->prompt_tokens, with - 1);
}

TEST(Narrowing, RepetitionsEndAnAnswer) {
  Request request = question("Who are you?", 200);
  request.allowed_token_ids = demo_engine().tokenize("a", false).value();
  request.stop_repetition = RepetitionLimit{.min_period = 1, .max_period = 4, .repeats = 5, .min_tokens = 0};
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_EQ(answer.finish.reason, EndReason::kRepetition);
  EXPECT_EQ(answer.tokens.size(), 5U);
  request.stop_repetition->min_period = 3;  // five times three
  EXPECT_EQ(ask(demo_engine(), request).tokens.size(), 15U);
  request.stop_repetition->repeats = 1;
  EXPECT_FALSE(demo_engine().submit(request).ok());
}

TEST(Narrowing, GbnfAndStructuralTags) {
  Request request = question("How many?", 40);
  request.grammar = {.kind = Grammar::Kind::kLark, .text = "root ::= \"(\" root \")\" | [0-9]{3}"};
  EXPECT_THAT(ask(demo_engine(), request).content, testing::MatchesRegex("\\(*[0-9]{3}\\)*"));
  request.grammar.text = "root ::= \"a\nother";
  Stream broken = std::move(demo_engine().submit(request).value());
  const WholeAnswer refused = read_all(broken);
  ASSERT_TRUE(refused.finish.error);
  EXPECT_EQ(refused.finish.error->param, "structured_outputs.grammar");
  EXPECT_THAT(refused.finish.error->message, HasSubstr("line 1"));

  request.grammar = {
      .kind = Grammar::Kind::kStructuralTag,
      .text =
          R"({"format":{"type":"tag","begin":"<n>","content":{"type":"regex","pattern":"[0-9]{2}"},"end":"</n>"}})"};
  EXPECT_THAT(ask(demo_engine(), request).content, testing::MatchesRegex("<n>[0-9]{2}</n>"));
}

}  // namespace
}  // namespace jewel

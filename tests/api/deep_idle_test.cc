// Deep idle with a real model: what is answered after the backend was given up and made again is what would
// have been answered without, bit by bit, and from the same cache.
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "api/answers.h"
#include "base/comes_true.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Engine> idle_engine(double idle_release_s) {
  EngineOptions options = demo_options();
  options.idle_release_s = idle_release_s;
  auto engine = Engine::load(kDemo, options);
  EXPECT_TRUE(engine.ok()) << engine.error().message;
  return engine.ok() ? std::move(engine.value()) : nullptr;
}

bool goes_to_sleep(const Engine& engine) {
  return comes_true([&] { return engine.stats().idle_released; });
}

// With the log-probabilities of all tokens.
WholeAnswer ask_closely(Engine& engine, Request request, const std::string& salt = "") {
  request.logprobs = 3;
  request.cache_salt = salt;
  return ask(engine, std::move(request));
}

void expect_same(const WholeAnswer& a, const WholeAnswer& b) {
  EXPECT_EQ(a.content, b.content);
  ASSERT_EQ(a.ids(), b.ids());
  for (size_t i = 0; i < a.tokens.size(); ++i) {
    ASSERT_TRUE(a.tokens[i].chance && b.tokens[i].chance);
    EXPECT_EQ(a.tokens[i].chance->logprob, b.tokens[i].chance->logprob) << "token " << i;
    ASSERT_EQ(a.tokens[i].top.size(), b.tokens[i].top.size());
    for (size_t k = 0; k < a.tokens[i].top.size(); ++k)
      EXPECT_EQ(a.tokens[i].top[k].logprob, b.tokens[i].top[k].logprob);
  }
}

TEST(DeepIdle, AnswersAsIfItHadNeverSlept) {
  const auto awake = idle_engine(0), sleeper = idle_engine(0.01);
  ASSERT_TRUE(awake && sleeper);
  const Request picture = about_image("models/examples/word.png", "What word is in the picture?");
  const Request text = question("Tell me about the sea, in a few words.");
  for (int round = 0; round < 3; ++round) {
    for (const Request& request : {picture, text}) {
      const WholeAnswer expected = ask_closely(*awake, request);
      ASSERT_TRUE(goes_to_sleep(*sleeper));
      const WholeAnswer found = ask_closely(*sleeper, request);
      expect_same(expected, found);
      // The prefix cache has slept too.
      EXPECT_EQ(found.finish.usage.cached_tokens, expected.finish.usage.cached_tokens);
      if (round > 0) EXPECT_GT(found.finish.usage.cached_tokens, 0);
    }
  }
  const Stats stats = sleeper->stats();
  EXPECT_GE(stats.idle_wakes, 6u);
  EXPECT_EQ(stats.prefix_hits, awake->stats().prefix_hits);
  EXPECT_EQ(stats.idle_wakes_failed, 0u);
  EXPECT_EQ(awake->stats().idle_releases, 0u);
}

TEST(DeepIdle, EncodesPicturesAgain) {
  const auto engine = idle_engine(0.2);
  ASSERT_TRUE(engine);
  const Request picture = about_image("models/examples/word.png", "What word is in the picture?");
  const WholeAnswer first = ask_closely(*engine, picture, "a");
  // Another salt: nothing comes from the prefix cache, so the soft tokens are needed.
  uint64_t hits = engine->stats().image_hits;
  expect_same(first, ask_closely(*engine, picture, "b"));
  if (engine->stats().idle_releases == 0) EXPECT_EQ(engine->stats().image_hits, hits + 1);  // not slow today
  ASSERT_TRUE(goes_to_sleep(*engine));
  hits = engine->stats().image_hits;
  expect_same(first, ask_closely(*engine, picture, "c"));
  EXPECT_EQ(engine->stats().image_hits, hits);
}

// Requests that come at every moment of going and coming back.
TEST(DeepIdle, ManyAtOnce) {
  const auto engine = idle_engine(0.001);
  ASSERT_TRUE(engine);
  const WholeAnswer expected = ask_closely(*engine, question("Who are you?", 6));
  std::vector<std::thread> clients;
  for (int client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (int i = 0; i < 8; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds((client * 7 + i * 5) % 11));
        expect_same(expected, ask_closely(*engine, question("Who are you?", 6)));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(goes_to_sleep(*engine));
  expect_same(expected,
              ask_closely(*engine, question("Who are you?", 6)));  // where nobody before had to wake it
  EXPECT_GE(engine->stats().idle_wakes, 1u);
}

TEST(DeepIdle, IsNeverOnACpuUnlessAsked) {
  const auto engine = idle_engine(kIdleReleaseAuto);
  ASSERT_TRUE(engine);
  EXPECT_EQ(ask(*engine, question("Who are you?", 4)).tokens.size(), 4u);
  EngineOptions options = demo_options();
  options.idle_release_s = -2;
  const auto refused = Engine::load(kDemo, options);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().param, "idle_release_s");
}

TEST(DeepIdle, EndsAsleepOrWithRequestsUnderWay) {
  {
    const auto engine = idle_engine(0.001);
    ASSERT_TRUE(engine && goes_to_sleep(*engine));
    EXPECT_TRUE(engine->drain(1s));
  }
  const auto engine = idle_engine(0.001);
  ASSERT_TRUE(engine && goes_to_sleep(*engine));
  auto stream = engine->submit(question("Who are you?", 200));
  ASSERT_TRUE(stream.ok());
}

}  // namespace
}  // namespace jewel

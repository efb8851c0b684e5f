// Joules of answers, from the engine's own steps to Finish::energy.
#include <gtest/gtest.h>

#include <thread>

#include "energy/metered_demo.h"

namespace jewel {
namespace {

void expect_sane(const Energy& energy) {
  EXPECT_NEAR(energy.joules, energy.image_joules + energy.prefill_joules + energy.decode_joules, 1e-6);
  EXPECT_LE(energy.reasoning_joules, energy.decode_joules + 1e-6);
  EXPECT_GE(energy.idle_share_joules, 0);
  EXPECT_EQ(energy.method, "nvml");
}

TEST(EnergyOfAnswers, RequestsAndIdleAreTheCounter) {
  const MeteredDemo demo = metered_demo();
  Engine& engine = *demo.engine;
  EXPECT_EQ(engine.info().energy_method, "nvml");
  EXPECT_EQ(engine.info().energy_device, "scripted GPU");
  double asked = 0, of_prompts = 0;
  int answers = 0;
  for (int round = 0; round < 6; ++round) {
    std::vector<Stream> streams;
    for (int i = 0; i < 1 + 2 * (round % 3); ++i) {
      Request request = question("Count for me, please", 20 + 60 * i);
      request.ignore_eos = true;
      request.parse_output = false;
      auto stream = engine.submit(std::move(request));
      ASSERT_TRUE(stream.ok());
      streams.push_back(std::move(*stream));
    }
    for (Stream& stream : streams) {
      const WholeAnswer answer = read_all(stream);
      ASSERT_TRUE(answer.finish.energy.has_value());
      expect_sane(*answer.finish.energy);
      // Later prompts are a token beside the cache's: fitted prices, none below zero, may have nothing for
      // it.
      EXPECT_GE(answer.finish.energy->prefill_joules, 0);
      EXPECT_GT(answer.finish.energy->decode_joules, 0);
      EXPECT_EQ(answer.finish.energy->image_joules, 0);
      of_prompts += answer.finish.energy->prefill_joules;
      asked += answer.finish.energy->joules;
      ++answers;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
  }
  EXPECT_GT(of_prompts, 0);
  const EnergyStats stats = settled(engine);
  EXPECT_NEAR(asked + stats.idle_joules, stats.counter_joules, 0.02 * stats.counter_joules)
      << answers << " answers, residual " << stats.residual_joules << " J";
  EXPECT_NEAR(stats.counter_joules, demo.script->joules, 0.02 * stats.counter_joules + 2 * 100 * 0.05)
      << "but for what was drawn since the last reading";
  EXPECT_GT(stats.watts, 0);
  EXPECT_GT(stats.tick_s, 0);
}

TEST(EnergyOfAnswers, PicturesHaveTheirOwn) {
  const MeteredDemo demo = metered_demo();
  const WholeAnswer answer =
      ask(*demo.engine, about_image("models/examples/word.png", "What word is in the picture?"));
  ASSERT_TRUE(answer.finish.energy.has_value());
  expect_sane(*answer.finish.energy);
  EXPECT_GT(answer.finish.energy->image_joules, 0);
  const WholeAnswer again =
      ask(*demo.engine, about_image("models/examples/word.png", "What word is in the picture?"));
  ASSERT_TRUE(again.finish.energy.has_value());
  EXPECT_EQ(again.finish.energy->image_joules, 0) << "it was not encoded again";
}

TEST(EnergyOfAnswers, ReasoningIsAPartOfDecode) {
  const MeteredDemo demo = metered_demo();
  Request request = question("What is 2 + 2?", 200);
  request.thinking = true;
  const WholeAnswer answer = ask(*demo.engine, request);
  ASSERT_TRUE(answer.finish.energy.has_value());
  expect_sane(*answer.finish.energy);
  ASSERT_GT(answer.finish.usage.reasoning_tokens, 0);
  EXPECT_GT(answer.finish.energy->reasoning_joules, 0);
  EXPECT_LT(answer.finish.energy->reasoning_joules, answer.finish.energy->decode_joules);
  const WholeAnswer plain = ask(*demo.engine, question("Who are you?"));
  ASSERT_TRUE(plain.finish.energy.has_value());
  EXPECT_EQ(plain.finish.energy->reasoning_joules, 0);
}

TEST(EnergyOfAnswers, RestIsSharedBesideTheJoules) {
  const MeteredDemo demo = metered_demo();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const WholeAnswer answer = ask(*demo.engine, question("Who are you?"));
  ASSERT_TRUE(answer.finish.energy.has_value());
  EXPECT_GT(answer.finish.energy->idle_share_joules, 10) << "most of 100 W × 0.3 s";
}

TEST(EnergyOfAnswers, CancelledOnesAreChargedToo) {
  const MeteredDemo demo = metered_demo();
  ask(*demo.engine, question("Who are you?"));
  Request request = question("Tell me something", 1500);
  request.ignore_eos = true;
  request.parse_output = false;
  auto stream = demo.engine->submit(std::move(request));
  ASSERT_TRUE(stream.ok());
  WholeAnswer answer;
  while (answer.tokens.size() < 30) answer.add(stream->next().value());
  stream->cancel();
  while (auto update = stream->next()) answer.add(std::move(*update));
  EXPECT_EQ(answer.finish.reason, EndReason::kCancelled);
  ASSERT_TRUE(answer.finish.energy.has_value());
  EXPECT_GT(answer.finish.energy->joules, 0);
}

TEST(EnergyOfAnswers, WithoutAMeterThereIsNone) {
  const MeteredDemo demo = demo_without_meter();
  EXPECT_EQ(demo.engine->info().energy_method, "none");
  EXPECT_EQ(demo.engine->info().why_no_energy, "--meter none");
  EXPECT_FALSE(ask(*demo.engine, question("Who are you?")).finish.energy.has_value());
  EXPECT_FALSE(demo.engine->stats().energy.has_value());
}

TEST(EnergyOfAnswers, ACounterThatFailsGivesNoFigure) {
  const MeteredDemo demo = metered_demo();
  demo.script->fails = true;
  std::this_thread::sleep_for(std::chrono::milliseconds(3200));  // what it knew is stale
  EXPECT_FALSE(ask(*demo.engine, question("Who are you?")).finish.energy.has_value());
}

TEST(EnergyOfAnswers, AnEngineThatGoesFirstAnswersAll) {
  MeteredDemo demo = metered_demo();
  demo.script->stands_still = true;
  std::vector<Stream> streams;
  for (int i = 0; i < 6; ++i) {
    auto stream = demo.engine->submit(question("Who are you?"));
    ASSERT_TRUE(stream.ok());
    streams.push_back(std::move(*stream));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  demo.engine.reset();
  for (Stream& stream : streams) {
    bool ended = false;
    while (auto update = stream.next()) ended = update->finish.has_value();
    EXPECT_TRUE(ended);
  }
}

TEST(EnergyOptions, AMeterThatIsAskedForMustBeThere) {
  EngineOptions options = demo_options();
  options.meter = "nvml";
  auto engine = Engine::load(kDemo, options);
  if (!engine.ok()) {
    EXPECT_EQ(engine.error().param, "meter");
  } else {
    EXPECT_EQ((*engine)->info().energy_method, "nvml");
  }
  options.meter = "watts";
  auto wrong = Engine::load(kDemo, options);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.error().param, "meter");
}

}  // namespace
}  // namespace jewel

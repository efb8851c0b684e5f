// Readers of every temper: fast, slow, gone, many; and an engine that goes before they do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "answers.h"
#include "base/comes_true.h"

namespace jewel {
namespace {

using namespace std::chrono_literals;

Request endless(int max_tokens = 1500) {
  Request request = question("Tell me something", max_tokens);
  request.ignore_eos = true;
  request.parse_output = false;
  return request;
}

// Waits until nothing is under way; a leak of requests would fail here.
void expect_idle(Engine& engine) {
  Stats stats;
  EXPECT_TRUE(comes_true(
      [&] {
        stats = engine.stats();
        return stats.running == 0 && stats.waiting == 0 && stats.under_way == 0 && stats.kv_usage == 0;
      },
      60s))
      << stats.under_way << " under way, " << stats.running << " running, " << stats.waiting
      << " waiting, KV " << stats.kv_usage;
}

TEST(Streams, PiecesAreTheWhole) {
  auto stream = demo_engine().submit(question("Who are you?"));
  ASSERT_TRUE(stream.ok());
  WholeAnswer answer = read_all(*stream);
  EXPECT_GT(answer.updates, 3) << "it streams";
  EXPECT_FALSE(stream->next().has_value()) << "nothing behind the end, however often one asks";
  EXPECT_FALSE(stream->next().has_value());
}

TEST(Streams, CallbacksSayTheSame) {
  std::mutex mutex;
  std::condition_variable done;
  WholeAnswer answer;
  bool finished = false;
  auto ticket = demo_engine().submit(question("Who are you?"), [&](Update&& update) {
    const std::scoped_lock lock(mutex);
    answer.add(std::move(update));
    finished = answer.finish.usage.completion_tokens > 0;
    done.notify_one();
  });
  ASSERT_TRUE(ticket.ok());
  std::unique_lock lock(mutex);
  ASSERT_TRUE(done.wait_for(lock, 30s, [&] { return finished; }));
  EXPECT_EQ(answer.content, ask(demo_engine(), question("Who are you?")).content);
}

TEST(Streams, CancelEndsItAndSaysSo) {
  auto stream = demo_engine().submit(endless());
  ASSERT_TRUE(stream.ok());
  WholeAnswer answer;
  while (answer.tokens.size() < 3) answer.add(stream->next().value());
  stream->cancel();
  while (auto update = stream->next()) answer.add(std::move(*update));
  EXPECT_EQ(answer.finish.reason, EndReason::kCancelled);
  EXPECT_LT(answer.tokens.size(), 1000u);
  expect_idle(demo_engine());
}

TEST(Streams, CancelFromInsideTheCallback) {
  std::mutex mutex;
  std::condition_variable done;
  std::optional<EndReason> reason;
  Ticket ticket;
  std::atomic<bool> have_ticket = false;
  auto submitted = demo_engine().submit(endless(), [&](Update&& update) {
    if (have_ticket) ticket.cancel();
    const std::scoped_lock lock(mutex);
    if (update.finish) reason = update.finish->reason;
    done.notify_one();
  });
  ASSERT_TRUE(submitted.ok());
  ticket = *submitted;
  have_ticket = true;
  std::unique_lock lock(mutex);
  ASSERT_TRUE(done.wait_for(lock, 30s, [&] { return reason.has_value(); }));
  EXPECT_EQ(*reason, EndReason::kCancelled);
}

TEST(Streams, DroppedStreamsAreCancelled) {
  for (int i = 0; i < 50; ++i) {
    auto stream = demo_engine().submit(endless());
    ASSERT_TRUE(stream.ok());
    if (i % 2 == 0) stream->next_for(std::chrono::milliseconds(i % 7));
  }
  expect_idle(demo_engine());
  EXPECT_GE(demo_engine().stats().cancelled, 50u);
}

TEST(Streams, ASlowReaderGetsEverythingInFewUpdates) {
  auto stream = demo_engine().submit(endless(300));
  ASSERT_TRUE(stream.ok());
  expect_idle(demo_engine());
  const WholeAnswer late = read_all(*stream);
  EXPECT_EQ(late.tokens.size(), 300u);
  EXPECT_LE(late.updates, 2);
  EXPECT_EQ(late.content, ask(demo_engine(), endless(300)).content);
}

TEST(Streams, AReaderThatNeverReadsIsStoppedAtTheLimit) {
  EngineOptions options = demo_options();
  options.max_unread_bytes = 4000;
  auto engine = Engine::load(kDemo, options);
  ASSERT_TRUE(engine.ok());
  auto silent = (*engine)->submit(endless());
  auto reader = (*engine)->submit(endless(400));
  ASSERT_TRUE(silent.ok() && reader.ok());
  EXPECT_EQ(read_all(*reader).tokens.size(), 400u) << "whoever reads is not touched";
  expect_idle(**engine);
  const WholeAnswer answer = read_all(*silent);
  EXPECT_EQ(answer.finish.reason, EndReason::kError);
  EXPECT_THAT(answer.finish.error->message, testing::HasSubstr("unread"));
  EXPECT_LT(answer.tokens.size(), 400u);
}

TEST(Streams, Deadlines) {
  Request request = endless();
  request.deadline = std::chrono::steady_clock::now() + 30ms;
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_EQ(answer.finish.reason, EndReason::kDeadline);
  EXPECT_TRUE(answer.finish.error.has_value());
}

TEST(Streams, RepetitionIsNoticedWhenAsked) {
  Request request = endless(1500);
  request.sampling.logit_bias[demo_engine().tokenize("a", false).value().at(0)] = 100;
  request.stop_repetition.emplace();
  const WholeAnswer answer = ask(demo_engine(), request);
  EXPECT_EQ(answer.finish.reason, EndReason::kRepetition);
  EXPECT_LT(answer.tokens.size(), 200u);
}

TEST(Streams, ManyThreads) {
  const std::string expected = ask(demo_engine(), question("Who are you?", 12)).content;
  std::atomic<int> right = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&, i] {
      for (int round = 0; round < 4; ++round) {
        if ((i + round) % 4 == 0) {
          auto stream = demo_engine().submit(endless());
          if (stream.ok()) stream->next();
        } else {
          right += ask(demo_engine(), question("Who are you?", 12)).content == expected ? 1 : 0;
        }
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 48);
  expect_idle(demo_engine());
}

TEST(Streams, TheEngineGoesFirst) {
  auto engine = Engine::load(kDemo, demo_options());
  ASSERT_TRUE(engine.ok());
  std::vector<Stream> streams;
  for (int i = 0; i < 12; ++i) streams.push_back(std::move((*engine)->submit(endless()).value()));
  streams[0].next();
  engine->reset();
  for (Stream& stream : streams) {
    WholeAnswer answer;
    while (auto update = stream.next()) answer.add(std::move(*update));
    EXPECT_EQ(answer.finish.reason, EndReason::kCancelled);
  }
}

TEST(Streams, DrainRefusesNewOnesAndWaitsForTheOthers) {
  auto engine = Engine::load(kDemo, demo_options());
  ASSERT_TRUE(engine.ok());
  auto stream = (*engine)->submit(question("Who are you?"));
  ASSERT_TRUE(stream.ok());
  EXPECT_TRUE((*engine)->drain(30s));
  EXPECT_EQ((*engine)->submit(question("Hi")).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(read_all(*stream).finish.reason, EndReason::kStop);
}

TEST(Streams, TheLineHasAnEnd) {
  EngineOptions options = demo_options();
  options.max_waiting = 2;
  auto engine = Engine::load(kDemo, options);
  ASSERT_TRUE(engine.ok());
  std::vector<Stream> streams;
  std::optional<Error> refused;
  for (int i = 0; i < 20 && !refused; ++i) {
    auto stream = (*engine)->submit(endless());
    if (stream.ok()) {
      streams.push_back(std::move(*stream));
    } else {
      refused = stream.error();
    }
  }
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->code, ErrorCode::kUnavailable);
  EXPECT_EQ(streams.size(), 6u) << "four that run, two that wait";
  for (Stream& stream : streams) {
    stream.cancel();
    WholeAnswer answer;
    while (auto update = stream.next()) answer.add(std::move(*update));
    EXPECT_EQ(answer.finish.reason, EndReason::kCancelled) << "who was accepted is not refused later";
  }
}

}  // namespace
}  // namespace jewel

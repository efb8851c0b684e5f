// A Target that answers after times that a test chooses, on a thread of its own: no model, no server.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bench/target.h"

namespace jewel {

struct FakeAnswers {
  std::chrono::milliseconds first{1};    // until the first token
  std::chrono::milliseconds between{1};  // until each other one
  int tokens = 0;                        // 0: as many as max_tokens says
  int fail_every = 0;                    // every so manieth request fails, the last of each group
};

class FakeTarget final : public Target {
 public:
  explicit FakeTarget(const FakeAnswers& answers, const std::string& name = "fake") : answers_(answers) {
    info_.name = info_.served = info_.where = name;
    info_.in_process = true;
    thread_ = std::thread([this] { loop(); });
  }
  ~FakeTarget() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }
  FakeTarget(const FakeTarget&) = delete;
  FakeTarget& operator=(const FakeTarget&) = delete;

  const TargetInfo& info() const override { return info_; }
  Result<void> add(const boost::json::object& body) override {
    bodies_.push_back(body);
    asked_.push_back(body);
    return {};
  }
  void clear() override { bodies_.clear(); }

  void start(size_t number, OnEnd on_end) override {
    const auto now = Clock::now();
    const std::lock_guard lock(mutex_);
    started_.push_back(number);
    most_under_way_ = std::max(most_under_way_, ++under_way_);
    ChatAnswer answer;
    answer.begun = now;
    const boost::json::object body = number < bodies_.size() ? bodies_[number] : boost::json::object{};
    const int tokens =
        answers_.tokens > 0 ? answers_.tokens : static_cast<int>(body.at("max_tokens").as_int64());
    for (int i = 0; i < tokens; ++i) answer.pieces.push_back(now + answers_.first + i * answers_.between);
    answer.ended = answer.pieces.back();
    answer.usage = ServerUsage{.prompt_tokens = words_of(body), .completion_tokens = tokens};
    const bool fails =
        answers_.fail_every > 0 && started_.size() % static_cast<size_t>(answers_.fail_every) == 0;
    const auto at = answer.ended;
    pending_.emplace(at, Pending{std::move(answer), fails, std::move(on_end)});
    changed_.notify_all();
  }

  // What a test looks at when nothing is under way.
  const std::vector<size_t>& started() const { return started_; }
  int most_under_way() const { return most_under_way_; }
  const std::vector<boost::json::object>& asked() const { return asked_; }  // every body that was added

 private:
  using Clock = ChatAnswer::Clock;
  struct Pending {
    ChatAnswer answer;
    bool fails = false;
    OnEnd on_end;
  };

  // A token a word.
  static int words_of(const boost::json::object& body) {
    if (body.empty()) return 1;
    const boost::json::value& content = body.at("messages").at(0).at("content");
    return content.is_string() ? 1 + static_cast<int>(std::ranges::count(content.get_string(), ' ')) : 1;
  }

  void loop() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      if (pending_.empty()) {
        changed_.wait(lock);
        continue;
      }
      if (const auto at = pending_.begin()->first; at > Clock::now()) {
        changed_.wait_until(lock, at);
        continue;
      }
      Pending next = std::move(pending_.begin()->second);
      pending_.erase(pending_.begin());
      --under_way_;
      lock.unlock();
      if (next.fails) {
        next.on_end(internal("the fake target fails this one"));
      } else {
        next.on_end(std::move(next.answer));
      }
      lock.lock();
    }
  }

  const FakeAnswers answers_;
  TargetInfo info_;
  std::vector<boost::json::object> bodies_, asked_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, Pending> pending_;
  std::vector<size_t> started_;
  int under_way_ = 0;
  int most_under_way_ = 0;
  bool stop_ = false;
  std::thread thread_;  // the last
};

}  // namespace jewel

// GoldenHealth: whether the engine still computes what it computed before. A few short prompts, one with a
// picture, are answered greedily with log-probabilities; every one must be finite and every token the same as
// the first time. Answers do not depend on what else is computed, so a difference means that weights, memory
// or the device are not what they were.
//
// The first answers are taken by take_answers(), or by the first check. One check at a time: who asks while
// one is under way gets its result, and a result is good for a few seconds. Any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "jewel/engine.h"
#include "server/http/message.h"

namespace jewel {

class GoldenHealth {
 public:
  using Submit = std::function<Result<Ticket>(Request, UpdateCallback)>;

  // Of an engine, which outlives it; or of what stands in for one.
  explicit GoldenHealth(Engine& engine);
  GoldenHealth(Submit submit, const ModelInfo& info, std::chrono::milliseconds keep);

  // Begins and returns.
  void take_answers();

  // 200 or 503 with {"status": "ok" | "failed", "age_s", "seconds", "prompts": [{"name", "ok", "problem",
  // "tokens", "ttft_s", "seconds", "logprob_drift"}]}.
  Reply check();

  struct State;  // of prompts under way, which may outlast this

 private:
  const Submit submit_;
  const ModelInfo& info_;
  const std::chrono::milliseconds keep_;
  const std::shared_ptr<State> state_;
};

}  // namespace jewel

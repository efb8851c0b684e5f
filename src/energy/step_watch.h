// StepWatch: who is told what the engine computes and when it rests. The engine's thread calls, between
// steps, so an implementation only notes.
#pragma once

#include <cstdint>
#include <span>

namespace jewel {

// What one sequence had in a step.
struct RowWork {
  uint64_t sequence = 0;
  int prefill_tokens = 0;
  int decode_tokens = 0;
  int image_patches = 0;   // encoded for it since its last row
  bool reasoning = false;  // its decode tokens are a thought's
};

class StepWatch {
 public:
  StepWatch() = default;
  virtual ~StepWatch() = default;
  StepWatch(const StepWatch&) = delete;
  StepWatch& operator=(const StepWatch&) = delete;
  // The first step after a rest is about to be planned.
  virtual void work_begins() = 0;
  // A step is done, failed ones too, and none of its tokens has been handed on.
  virtual void step_done(std::span<const RowWork> rows) = 0;
  // Nothing is left to compute.
  virtual void work_ends() = 0;
};

}  // namespace jewel

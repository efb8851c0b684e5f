// An Engine whose backend computes nothing: the demo model's tokenizer and template, answers that are the
// same ordinary words again and again. For tests and benchmarks of the server, where what a model says and
// how fast it is must not matter.
#pragma once

#include <memory>

#include "base/result.h"
#include "jewel/engine.h"

namespace jewel {

struct FakeEngineOptions {
  int max_num_seqs = 256;
  double step_ms = 0;  // that a step takes, whatever is in it
};

Result<std::unique_ptr<Engine>> make_fake_engine(const FakeEngineOptions& options);

}  // namespace jewel

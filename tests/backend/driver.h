// Driver: the smallest engine that can run a backend. Keeps the books of pages (handed out in a scattered
// order, and taken back once a sliding window has passed them), cuts steps from what a test asks for, and
// collects them at once.
#pragma once

#include <memory>
#include <random>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "random_model.h"

namespace jewel {

// What one sequence gives to a step.
struct Part {
  int sequence = 0;
  std::span<const TokenId> tokens;  // empty: the one sampled last
  std::vector<SoftTokenRun> soft_tokens;
  bool sample = false;
  int n_prompt_logprobs = -1;
  std::vector<uint32_t> allowed_tokens;
};

class Driver {
 public:
  // Fills every page with bytes that are NaN in every KV format, so that nothing unwritten can be read
  // unnoticed.
  Driver(const RandomModel& model, const CpuOptions& options, int n_full_pages = 64, int n_sliding_pages = 64,
         uint64_t page_seed = 1);
  // Over any backend of that model.
  Driver(const RandomModel& model, std::unique_ptr<Backend> backend, int n_full_pages = 64,
         int n_sliding_pages = 64, uint64_t page_seed = 1);

  Backend& backend() { return *backend_; }
  int begin(const SamplingParams& params, std::span<const TokenId> prompt = {});
  void end(int sequence);
  StepResult step(std::span<const Part> parts);
  StepResult step(const Part& part) { return step(std::span(&part, 1)); }
  // Moves all pages of a sequence to other pages, through host memory.
  void move_pages(int sequence);

  // Runs `tokens` in chunks of at most `chunk`, and returns for every position the log-probabilities of all
  // ids.
  std::vector<std::vector<float>> all_logprobs(std::span<const TokenId> tokens, int chunk,
                                               std::span<const SoftTokenRun> soft_tokens = {});
  // The same for the last position only, by sampling: rows before it take the fast way.
  std::vector<float> last_logprobs(std::span<const TokenId> tokens, int chunk);

 private:
  struct Sequence {
    SlotId slot = 0;
    int position = 0;
    std::vector<PageId> full_pages, sliding_pages;
  };
  void grow(Sequence& sequence, int end);
  void free_behind_window(Sequence& sequence);

  const RandomModel& model_;
  std::unique_ptr<Backend> backend_;
  std::mt19937_64 random_;
  std::vector<PageId> free_full_, free_sliding_;
  std::vector<Sequence> sequences_;  // by slot
  std::vector<bool> live_;
};

// Log-probabilities in the order of ids, from a list of all of them.
std::vector<float> by_id(std::span<const TokenLogprob> top);

std::vector<CpuIsa> runnable_isas();
const char* isa_name(CpuIsa isa);

}  // namespace jewel

// LocalModel: a model directory made ready to answer in this process, for commands that need no server:
// checkpoint, tokenizer and template, and a backend. One thread uses it.
#pragma once

#include <boost/json/array.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "engine/generate.h"
#include "text/output_parser.h"
#include "text/prompt.h"

namespace jewel {

struct LoadOptions {
  std::string dtype = "auto";           // auto (bf16), bfloat16, float32
  std::string kv_cache_dtype = "auto";  // auto (the checkpoint's scheme, else bf16), bfloat16, fp8, float32
  int n_threads = 0;                    // 0 = every core this process may use
  int max_model_len = 0;                // 0 = the model's
};

// What to answer, in the terms of a chat; or a raw text.
struct ChatInput {
  boost::json::array messages;
  boost::json::array tools;
  bool think = false;
  std::optional<std::string> raw;   // completes this text instead; control tokens in it count
  std::vector<std::string> images;  // files, in the order of the image parts (of <|image|> in raw text)
  int image_tokens = 0;             // soft-token budget of each image, 0 = the checkpoint's
};

struct Answer {
  ParsedOutput output;
  std::vector<TokenId> token_ids;
  std::string finish_reason;  // stop, length, tool_calls
  int prompt_tokens = 0;
  int image_tokens = 0;
  int reasoning_tokens = 0;
  double image_s = 0;  // files to soft tokens
  double ttft_s = 0;   // from the call to the first token, images included
  double prefill_s = 0;
  double decode_s = 0;
};

class LocalModel {
 public:
  // `progress(done, total)` in bytes while weights are read; may be empty.
  static Result<std::unique_ptr<LocalModel>> load(const std::string& directory, const LoadOptions& options,
                                                  const std::function<void(size_t, size_t)>& progress);

  // Sampling as the checkpoint's generation_config.json asks; ids that stand for media are never sampled.
  SamplingParams default_sampling() const;

  // `on_event` sees reasoning, content and tool calls as they come; may be empty.
  Result<Answer> answer(const ChatInput& input, const SamplingParams& sampling, int max_tokens,
                        const std::function<void(const OutputEvent&)>& on_event);

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const PromptBuilder& prompts() const { return prompts_; }
  Backend& backend() { return *backend_; }
  int max_model_len() const { return max_model_len_; }

 private:
  struct EncodedImages;

  explicit LocalModel(PromptBuilder prompts) : prompts_(std::move(prompts)) {}
  Result<void> reserve_kv(int tokens);

  std::unique_ptr<Checkpoint> checkpoint_;
  PromptBuilder prompts_;
  std::unique_ptr<Backend> backend_;
  KvSizes kv_;
  int max_model_len_ = 0;
};

}  // namespace jewel

// Preparer: a Request to what the engine computes. Pictures are decoded, the template rendered, text
// tokenized, grammars compiled, everything that can be wrong is found wrong. Any thread, several at once.
#pragma once

#include <memory>
#include <mutex>

#include "api/check_request.h"
#include "api/engine_parts.h"
#include "api/image_cache.h"
#include "api/live_request.h"
#include "text/grammar.h"

namespace jewel {

struct PreparedRequest {
  SequenceRequest sequence;
  AnswerFormat format;
};

class Preparer {
 public:
  // `parts` must outlive the preparer.
  Preparer(const EngineParts& parts, const EngineOptions& options, int max_model_len);

  // What can be said without looking at pictures or text.
  Result<void> check(const Request& request) const { return check_request(request, limits_); }

  Result<PreparedRequest> prepare(const Request& request);

  // What the first grammar would wait for: about a second for a vocabulary of 262,144.
  void prepare_grammars() { static_cast<void>(grammars().ok()); }

  // The prompt alone, as prepare() makes it.
  Result<PromptInfo> prompt_of(const Request& request);

 private:
  struct Pictures {
    std::vector<ReadyImage> images;
    std::vector<int> soft_tokens;
    double seconds = 0;
  };

  Result<Pictures> read_pictures(const Request& request);
  Result<Prompt> build_prompt(const Request& request, const boost::json::array& tools,
                              const Pictures& pictures) const;
  Result<void> truncate(Prompt& prompt, const Request& request) const;
  Result<void> limit_words(const Request& request, SequenceRequest& sequence) const;
  Result<SamplingParams> sampling_of(const Request& request) const;
  Result<std::unique_ptr<TokenMask>> mask_of(const Request& request, const boost::json::array& tools,
                                             const Prompt& prompt);
  Result<GrammarMatcher> compile(const Request& request, const boost::json::array& tools);
  Result<GrammarCompiler*> grammars();

  const EngineParts& parts_;
  RequestLimits limits_;
  std::unique_ptr<ImageCache> images_;  // when there is a vision tower
  std::mutex grammars_mutex_;
  std::unique_ptr<GrammarCompiler> grammars_;  // made for the first request that needs it
};

}  // namespace jewel

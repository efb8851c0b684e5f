// Subject: a model that is judged, in this process or behind a URL. It answers tasks and says how likely it
// finds texts.
//
// One thread calls; a Subject may run its own. Errors that concern one task (too long a prompt, a picture
// that cannot be read) are that task's Error; any other Error ends the evaluation.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "eval/suite.h"
#include "jewel/engine.h"

namespace jewel {

struct AnswerSettings {
  double temperature = 0;
  std::optional<double> top_p;
  std::optional<int> top_k;
  uint64_t seed = 1;  // every task's; with temperature 0 it changes nothing
  int max_tokens = 1024;
  int concurrency = 8;  // tasks under way at once
};

struct TaskAnswer {
  std::string text;                  // content, and a line for each call; see suite.h
  std::optional<int> output_tokens;  // reasoning included; none: the server did not say
  std::string finish_reason;
  std::optional<double> joules;       // measured by the server or the engine, never estimated here
  std::optional<std::string> failed;  // why this task got no answer
};

// What a model makes of one token of a text, given all before it.
struct TokenOdds {
  int64_t id = 0;
  float logprob = 0;                           // natural logarithm
  int rank = 0;                                // 1 = most likely
  std::vector<std::pair<int64_t, float>> top;  // ids and logprobs of the best, descending
};

struct TextOdds {
  std::vector<TokenOdds> tokens;  // from the text's second token on, pictures' tokens left out
  // In process: log-probabilities of the whole vocabulary, [tokens.size(), vocab]; else empty.
  std::vector<float> full;
  size_t vocab = 0;
};

class Subject {
 public:
  virtual ~Subject() = default;
  virtual std::string describe() const = 0;  // "models/jewel-demo, cpu (avx2, 2 threads), bfloat16"

  // One entry for each task, in their order. `progress` is told how many are done.
  virtual Result<std::vector<TaskAnswer>> answer(std::span<const EvalTask> tasks,
                                                 const AnswerSettings& settings,
                                                 const std::atomic<bool>& cancel,
                                                 const std::function<void(size_t done)>& progress) = 0;

  virtual Result<TextOdds> odds(const Conversation& text) = 0;
};

// How the models of one evaluation are opened.
struct SubjectOptions {
  EngineOptions engine;      // in process
  bool full_logits = false;  // in process: odds() fills `full`
  int n_top = 20;            // of odds(); servers may allow fewer
  std::string api_key;       // servers
  std::string served_model;  // servers; empty: the first that the server lists
};

bool is_server(const std::string& source);  // http://, https://, unix:

// A directory is loaded, a URL is connected to.
Result<std::unique_ptr<Subject>> open_subject(const std::string& source, const SubjectOptions& options);
Result<std::unique_ptr<Subject>> open_directory(const std::string& directory, const SubjectOptions& options);
Result<std::unique_ptr<Subject>> open_server(const std::string& url, const SubjectOptions& options);

}  // namespace jewel

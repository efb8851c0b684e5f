// RequestSet: what a benchmark asks, the same for every server and in process: OpenAI chat bodies.
//
//   text:IN:OUT             a made-up text of IN tokens, an answer of exactly OUT
//   image:BUDGET:IN:OUT     a made-up picture of BUDGET soft tokens before it
//   FILE.jsonl              one request a line: an OpenAI chat body, or {"prompt", "image"/"images",
//                           "max_tokens"} with pictures as files beside the JSONL
//
// IN and OUT are numbers or ranges (100-600, uniform). Made-up requests are drawn from (seed, run, index):
// no two share a text or a picture, so that no cache helps, and every target gets the same ones. Answers have
// their length by max_tokens and ignore_eos. A file's requests are the same in every run; a cache_salt keeps
// each run from finding the prefixes of the last one.
//
// What a token is, only the server knows: words are made up until its own count says that the text is as long
// as asked (calibrate()). Pure data after that; any thread may read.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace jewel {

struct LengthRange {
  int low = 0;
  int high = 0;
};

struct SetOptions {
  uint64_t seed = 0;
  double temperature = 0;
  bool warm_cache = false;  // no cache_salt of ours
};

class RequestSet {
 public:
  // Errors name the text, or file and line.
  static Result<RequestSet> parse(const std::string& text, const SetOptions& options);

  const std::string& name() const { return name_; }
  bool made_up() const { return lines_.empty(); }
  int size() const { return static_cast<int>(lines_.size()); }  // of a file
  int image_budget() const { return image_budget_; }            // 0: no picture; of made-up requests
  LengthRange input_tokens() const { return input_; }
  LengthRange output_tokens() const { return output_; }
  boost::json::object describe() const;

  // Asks for two short answers and learns how many tokens a word and all around it take. `prompt_tokens`
  // gives the server's count for a body. Made-up sets alone.
  using CountTokens = std::function<Result<int>(const boost::json::object& body)>;
  Result<void> calibrate(const CountTokens& prompt_tokens);

  // Request `index` of `run`. A file is read round and round.
  boost::json::object request(int run, int index) const;

 private:
  boost::json::object made_up_request(int run, int index) const;

  std::string name_;
  SetOptions options_;
  int image_budget_ = 0;
  LengthRange input_, output_;
  double tokens_per_word_ = 1.3;
  double tokens_around_ = 12;  // of the template
  std::vector<boost::json::object> lines_;
};

// How many requests a file holds at most, and how long a line is: all of it is in memory.
inline constexpr size_t kMaxSetLines = 100'000;
inline constexpr size_t kMaxSetBytes = size_t{1} << 30;

}  // namespace jewel

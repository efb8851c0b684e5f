// A suite: tasks with their wanted answers, one JSON object a line:
//
//   {"id": "doc-17", "category": "documents", "metric": "anls", "answers": ["12 May"],
//    "prompt": "When was it signed?", "images": ["doc-17.png"], "max_tokens": 64}
//
// Instead of `prompt`, `messages` (OpenAI's, pictures as {"type": "image"} that stand for `images` in their
// order, or as image_url with a data URL), with `tools` and `enable_thinking` where wanted. Images are file
// names relative to the suite's folder, or data URLs. `answers` may be one string; `choices` are the options
// of multiple_choice. `category` (or `skill`) defaults to "all tasks", `metric` to "exact", `id` to the
// line's number.
//
// A model's answer is its content; functions that it calls follow as lines `name(arguments)`, the arguments
// as JSON with sorted keys and no spaces.
//
// Texts for divergence have the same form (`messages` or `prompt`, no answers), or are a plain text file.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "eval/metrics.h"

namespace jewel {

struct Conversation {
  std::string id;
  boost::json::array messages;  // pictures as {"type": "image"}
  boost::json::array tools;
  std::vector<std::shared_ptr<const std::string>> images;  // bytes of their files, in order
  bool think = false;
  std::string raw;  // when there are no messages: completed as it is, <bos> before it
};

struct EvalTask {
  Conversation input;
  std::string category;
  Metric metric = Metric::kExact;
  std::vector<std::string> answers;
  std::vector<std::string> choices;
  int max_tokens = 0;  // 0: the run's
};

// Never empty; ids are unique. Pictures are read here, so a missing one shows before anything is computed.
Result<std::vector<EvalTask>> read_suite(const std::string& file);

// *.jsonl: conversations. Anything else is UTF-8 text, cut into pieces of at most `piece_bytes` at white
// space.
Result<std::vector<Conversation>> read_texts(const std::string& file, size_t piece_bytes);

// JSON with sorted keys and no spaces, so that equal calls are equal texts.
std::string canonical_json(const boost::json::value& value);
// `arguments` is what a model wrote and may be no JSON; then it stays as it is.
std::string call_line(std::string_view name, std::string_view arguments);

}  // namespace jewel

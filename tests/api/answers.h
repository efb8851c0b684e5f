// What the tests of the library share: the demo model, loaded once, and answers as one piece.
#pragma once

#include <string>
#include <vector>

#include "jewel/engine.h"

namespace jewel {

inline const std::string kDemo = JEWEL_SOURCE_DIR "/models/jewel-demo";

// Four sequences at once, prefix cache on.
Engine& demo_engine();
EngineOptions demo_options();

std::string read_file(const std::string& path);  // relative to the tree

struct WholeAnswer {
  std::optional<PromptInfo> prompt;
  std::string content;
  std::string reasoning;
  struct Call {
    std::string name;
    std::string arguments;
    std::string streamed;  // the arguments' pieces, put together
    bool complete = false;
  };
  std::vector<Call> calls;
  std::vector<OutputToken> tokens;
  std::vector<OutputToken> prompt_logprobs;
  Finish finish;
  int updates = 0;

  std::vector<int32_t> ids() const;
  void add(Update&& update);
};

WholeAnswer read_all(Stream& stream);
WholeAnswer ask(Engine& engine, Request request);

// A greedy question.
Request question(const std::string& text, int max_tokens = 64);
Request about_image(const std::string& file, const std::string& text);

}  // namespace jewel

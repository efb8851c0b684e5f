#include "answers.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "base/check.h"

namespace jewel {

EngineOptions demo_options() {
  EngineOptions options;
  options.n_threads = 1;
  options.prefix_cache_gib = 0.05;
  options.max_model_len = 2048;
  return options;
}

// Static, as in programs that load their engine once: it ends inside of exit(), where LeakSanitizer sees
// whether its threads were gone before what they use.
Engine& demo_engine() {
  static const std::unique_ptr<Engine> engine = [] {
    auto loaded = Engine::load(kDemo, demo_options());
    JEWEL_CHECK(loaded.ok(), "{}", loaded.error().message);
    return std::move(loaded.value());
  }();
  return *engine;
}

std::string read_file(const std::string& path) {
  std::ifstream file(std::string(JEWEL_SOURCE_DIR "/") + path, std::ios::binary);
  JEWEL_CHECK(file.good(), "{} cannot be opened", path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::vector<int32_t> WholeAnswer::ids() const {
  std::vector<int32_t> ids;
  for (const OutputToken& token : tokens) ids.push_back(token.id);
  return ids;
}

void WholeAnswer::add(Update&& update) {
  ++updates;
  if (update.prompt) prompt = std::move(update.prompt);
  for (const OutputPiece& piece : update.pieces) {
    switch (piece.kind) {
      case OutputPiece::Kind::kReasoning:
        reasoning += piece.text;
        break;
      case OutputPiece::Kind::kContent:
        content += piece.text;
        break;
      case OutputPiece::Kind::kCallStart:
        EXPECT_EQ(piece.call, static_cast<int>(calls.size()));
        calls.push_back({.name = piece.text});
        break;
      case OutputPiece::Kind::kCallArguments:
        calls.at(static_cast<size_t>(piece.call)).streamed += piece.text;
        break;
      case OutputPiece::Kind::kCallEnd:
        calls.at(static_cast<size_t>(piece.call)).arguments = piece.text;
        calls.at(static_cast<size_t>(piece.call)).complete = piece.complete;
        break;
    }
  }
  for (OutputToken& token : update.prompt_logprobs) prompt_logprobs.push_back(std::move(token));
  for (OutputToken& token : update.tokens) tokens.push_back(std::move(token));
  if (update.finish) finish = std::move(*update.finish);
}

WholeAnswer read_all(Stream& stream) {
  WholeAnswer answer;
  while (auto update = stream.next()) {
    const bool never_began = update->finish && answer.updates == 0 && update->tokens.empty();
    EXPECT_EQ(answer.updates == 0, update->prompt.has_value() || never_began);
    answer.add(std::move(*update));
  }
  return answer;
}

WholeAnswer ask(Engine& engine, Request request) {
  auto stream = engine.submit(std::move(request));
  if (!stream.ok()) {
    ADD_FAILURE() << stream.error().message;
    return {};
  }
  return read_all(*stream);
}

Request question(const std::string& text, int max_tokens) {
  Request request{.messages = {text_message("user", text)}, .max_tokens = max_tokens};
  request.sampling.temperature = 0;
  return request;
}

Request about_image(const std::string& file, const std::string& text) {
  Request request = question(text);
  request.messages = {image_message({read_file(file)}, text)};
  return request;
}

}  // namespace jewel

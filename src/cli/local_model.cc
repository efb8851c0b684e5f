#include "cli/local_model.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <charconv>
#include <fstream>

#include "image/decode.h"

namespace jewel {
namespace {

Result<std::string> read_image_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream) return not_found(fmt::format("{}: cannot be opened", path), "image");
  const auto size = static_cast<int64_t>(stream.tellg());
  const auto limit = static_cast<int64_t>(ImageLimits{}.max_bytes);
  if (size < 0) return invalid(fmt::format("{}: is not a regular file", path), "image");
  if (size > limit)
    return too_large(fmt::format("{}: found {} bytes, the limit is {}", path, size, limit), "image");
  std::string bytes(static_cast<size_t>(size), '\0');
  stream.seekg(0);
  if (!stream.read(bytes.data(), size)) return invalid(fmt::format("{}: could not be read", path), "image");
  return bytes;
}

// The engine knows pictures by their number, the person by their file.
Error with_file_name(Error error, const std::vector<std::string>& files) {
  constexpr std::string_view kOpen = "images[";
  if (!error.param.starts_with(kOpen)) return error;
  size_t index = files.size();
  std::from_chars(error.param.data() + kOpen.size(), error.param.data() + error.param.size(), index);
  if (index >= files.size()) return error;
  if (error.message.starts_with(error.param)) error.message.erase(0, error.param.size());
  error.message.insert(0, files[index]);
  return error;
}

void take(const OutputPiece& piece, Answer& answer) {
  switch (piece.kind) {
    case OutputPiece::Kind::kReasoning:
      answer.reasoning += piece.text;
      break;
    case OutputPiece::Kind::kContent:
      answer.content += piece.text;
      break;
    case OutputPiece::Kind::kCallStart:
      answer.tool_calls.push_back({piece.text, "", false});
      break;
    case OutputPiece::Kind::kCallArguments:
      break;  // the end has them as a whole
    case OutputPiece::Kind::kCallEnd:
      answer.tool_calls.back().arguments = piece.text;
      answer.tool_calls.back().complete = piece.complete;
      break;
  }
}

}  // namespace

EngineOptions one_by_one() {
  EngineOptions options;
  options.max_num_seqs = 1;
  options.prefix_caching = false;
  options.n_workers = 1;
  options.max_images = 1 << 20;  // a person's own machine, a person's own pictures
  return options;
}

Result<Request> request_of(const ChatInput& input, const Sampling& sampling, int max_tokens) {
  Request request{.sampling = sampling, .max_tokens = max_tokens};
  for (const std::string& path : input.images) {
    JEWEL_ASSIGN(std::string bytes, read_image_file(path));
    request.images.push_back(std::make_shared<const std::string>(std::move(bytes)));
  }
  if (input.image_tokens > 0) request.max_soft_tokens = input.image_tokens;
  if (input.raw) {
    request.prompt = input.raw;
    return request;
  }
  request.messages_json = boost::json::serialize(input.messages);
  if (!input.tools.empty()) request.tools = boost::json::serialize(input.tools);
  if (input.think) request.thinking = true;
  return request;
}

Result<Answer> answer(Engine& engine, const ChatInput& input, const Sampling& sampling, int max_tokens,
                      const std::function<void(const OutputPiece&)>& on_piece) {
  JEWEL_ASSIGN(Request request, request_of(input, sampling, max_tokens));
  JEWEL_ASSIGN(Stream stream, engine.submit(std::move(request)));
  Answer answer;
  while (auto update = stream.next()) {
    for (const OutputPiece& piece : update->pieces) {
      take(piece, answer);
      if (on_piece) on_piece(piece);
    }
    for (const OutputToken& token : update->tokens) answer.token_ids.push_back(token.id);
    if (update->finish) answer.finish = std::move(*update->finish);
  }
  if (answer.finish.error) return with_file_name(std::move(*answer.finish.error), input.images);
  return answer;
}

}  // namespace jewel

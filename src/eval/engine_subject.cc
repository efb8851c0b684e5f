// A Subject in this process: an Engine over a checkpoint directory.

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <deque>

#include "api/engine_parts.h"
#include "eval/subject.h"

namespace jewel {
namespace {

// Rows of logits of one request, as the engine's thread computes them. Written there while that request runs,
// read by the caller after its end.
struct LogitRows {
  std::vector<float> values;
  size_t columns = 0;
};

// In place: logits to log-probabilities.
void log_softmax(std::span<float> row) {
  const float most = *std::ranges::max_element(row);
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value - most));
  const float shift = most + static_cast<float>(std::log(sum));
  for (float& value : row) value -= shift;
}

bool of_one_task(const Error& error) {
  return error.code == ErrorCode::kInvalid || error.code == ErrorCode::kTooLarge ||
         error.code == ErrorCode::kUnsupported;
}

class EngineSubject : public Subject {
 public:
  EngineSubject(std::unique_ptr<Engine> engine, std::shared_ptr<LogitRows> rows, int n_top)
      : engine_(std::move(engine)), rows_(std::move(rows)), n_top_(n_top) {}

  std::string describe() const override {
    const ModelInfo& info = engine_->info();
    return fmt::format("{}, in process on {}, {}, KV {}", info.directory, info.backend, info.dtype,
                       info.kv_cache_dtype);
  }

  Result<std::vector<TaskAnswer>> answer(std::span<const EvalTask> tasks, const AnswerSettings& settings,
                                         const std::atomic<bool>& cancel,
                                         const std::function<void(size_t)>& progress) override {
    std::vector<TaskAnswer> answers(tasks.size());
    std::deque<std::pair<size_t, Stream>> under_way;
    size_t next = 0, done = 0;
    while (done < tasks.size()) {
      if (cancel) return Error{ErrorCode::kCancelled, "interrupted", {}};
      while (next < tasks.size() && under_way.size() < static_cast<size_t>(settings.concurrency)) {
        auto stream = engine_->submit(request_of(tasks[next], settings));
        if (stream.ok()) {
          under_way.emplace_back(next, std::move(stream).value());
        } else if (of_one_task(stream.error())) {
          answers[next].failed = stream.error().message;
          progress(++done);
        } else {
          return named(std::move(stream).error(), tasks[next]);
        }
        ++next;
      }
      if (under_way.empty()) continue;
      const size_t i = under_way.front().first;
      JEWEL_TRY(read(under_way.front().second, tasks[i], cancel, answers[i]));
      under_way.pop_front();
      progress(++done);
    }
    return answers;
  }

  Result<TextOdds> odds(const Conversation& text) override {
    if (!image_token_) {
      JEWEL_ASSIGN(const std::vector<int32_t> ids, engine_->tokenize("<|image|>", true));
      image_token_ = ids.size() == 1 ? ids.front() : -1;
    }
    Request request = request_of(text);
    request.sampling.temperature = 0;
    request.max_tokens = 1;
    request.prompt_logprobs = n_top_;
    request.add_generation_prompt = false;
    rows_->values.clear();
    std::vector<OutputToken> tokens;
    JEWEL_ASSIGN(Stream stream, engine_->submit(std::move(request)));
    while (auto update = stream.next()) {
      std::ranges::move(update->prompt_logprobs, std::back_inserter(tokens));
      if (update->finish && update->finish->error) return std::move(*update->finish->error);
    }
    return described(tokens);
  }

 private:
  static Error named(Error error, const EvalTask& task) {
    error.message = fmt::format("task {}: {}", task.input.id, error.message);
    return error;
  }

  static Request request_of(const Conversation& input) {
    Request request;
    request.images = input.images;
    if (input.messages.empty()) {
      request.prompt = input.raw;
      return request;
    }
    request.messages_json = boost::json::serialize(input.messages);
    if (!input.tools.empty()) request.tools = boost::json::serialize(input.tools);
    if (input.think) request.thinking = true;
    return request;
  }

  static Request request_of(const EvalTask& task, const AnswerSettings& settings) {
    Request request = request_of(task.input);
    request.max_tokens = task.max_tokens > 0 ? task.max_tokens : settings.max_tokens;
    request.sampling.temperature = settings.temperature;
    request.sampling.top_p = settings.top_p;
    request.sampling.top_k = settings.top_k;
    request.sampling.seed = settings.seed;
    return request;
  }

  static Result<void> read(Stream& stream, const EvalTask& task, const std::atomic<bool>& cancel,
                           TaskAnswer& answer) {
    std::string call;
    while (auto update = stream.next_for(std::chrono::milliseconds(200))) {
      if (cancel) return Error{ErrorCode::kCancelled, "interrupted", {}};
      for (const OutputPiece& piece : update->pieces) {
        if (piece.kind == OutputPiece::Kind::kContent) answer.text += piece.text;
        if (piece.kind == OutputPiece::Kind::kCallStart) call = piece.text;
        if (piece.kind == OutputPiece::Kind::kCallEnd) {
          if (!answer.text.empty() && answer.text.back() != '\n') answer.text += '\n';
          answer.text += call_line(call, piece.text);
        }
      }
      if (!update->finish) continue;
      answer.output_tokens = update->finish->usage.completion_tokens;
      answer.finish_reason = name_of(update->finish->reason);
      if (update->finish->energy) answer.joules = update->finish->energy->joules;
      if (update->finish->error) {
        if (!of_one_task(*update->finish->error)) return named(std::move(*update->finish->error), task);
        answer.failed = update->finish->error->message;
      }
    }
    return {};
  }

  // Rows of logits are those of the prompt's tokens, one chunk, row i telling of token i + 1. That they are,
  // the log-probabilities of the same request say; if not, there are none.
  TextOdds described(const std::vector<OutputToken>& tokens) {
    TextOdds odds;
    const size_t columns = rows_->columns;
    bool full = columns > 0 && rows_->values.size() >= tokens.size() * columns;
    for (size_t i = 1; i < tokens.size(); ++i) {
      const OutputToken& token = tokens[i];
      if (!token.chance || token.id == image_token_) continue;
      TokenOdds& out =
          odds.tokens.emplace_back(TokenOdds{token.id, token.chance->logprob, token.chance->rank, {}});
      for (const TokenChance& chance : token.top) out.top.emplace_back(chance.id, chance.logprob);
      if (!full) continue;
      const std::span<float> row(&rows_->values[(i - 1) * columns], columns);
      log_softmax(row);
      full = token.id >= 0 && static_cast<size_t>(token.id) < columns &&
             std::fabs(row[static_cast<size_t>(token.id)] - out.logprob) <=
                 1e-3F * std::max(1.0F, std::fabs(out.logprob));
      odds.full.insert(odds.full.end(), row.begin(), row.end());
    }
    odds.vocab = full ? columns : 0;
    if (!full) odds.full.clear();
    return odds;
  }

  std::unique_ptr<Engine> engine_;
  std::shared_ptr<LogitRows> rows_;
  int n_top_;
  std::optional<int32_t> image_token_;
};

}  // namespace

Result<std::unique_ptr<Subject>> open_directory(const std::string& directory, const SubjectOptions& options) {
  auto rows = std::make_shared<LogitRows>();
  JEWEL_ASSIGN(EngineParts parts, open_parts(directory, options.engine));
  if (options.full_logits) {
    parts.backend->observe_stages(
        [rows](Stage stage, int, std::span<const float> values, int n, int columns) {
          if (stage != Stage::kLogits || n < 2) return;  // one row is the sampled token's
          rows->columns = static_cast<size_t>(columns);
          rows->values.insert(rows->values.end(), values.begin(), values.end());
        });
  }
  JEWEL_ASSIGN(auto engine, make_engine(std::move(parts), options.engine));
  return std::unique_ptr<Subject>(
      std::make_unique<EngineSubject>(std::move(engine), std::move(rows), options.n_top));
}

bool is_server(const std::string& source) {
  return source.starts_with("http://") || source.starts_with("https://") || source.starts_with("unix:");
}

Result<std::unique_ptr<Subject>> open_subject(const std::string& source, const SubjectOptions& options) {
  return is_server(source) ? open_server(source, options) : open_directory(source, options);
}

}  // namespace jewel

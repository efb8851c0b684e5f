#include "cli/quality.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxAnswerTokens = 256;

struct Task {
  std::string category;
  std::string answer;
  ChatInput input;
};

Result<std::vector<Task>> read_tasks(const std::string& file) {
  std::vector<Task> tasks;
  JEWEL_TRY(for_each_json_line(file, [&](const json::object& line, const std::string& where) -> Result<void> {
    JsonReader reader(line, where);
    Task task;
    task.category = reader.optional_string("skill", reader.optional_string("category", "all tasks"));
    task.answer = reader.optional_string("answer", "");
    if (!reader.failed() && task.answer.empty()) reader.fail("answer", "missing, expected the wanted output");
    if (reader.failed()) return reader.error();
    JEWEL_ASSIGN(task.input, parse_conversation(line, where, directory_of(file)));
    tasks.push_back(std::move(task));
    return {};
  }));
  if (tasks.empty()) return invalid(fmt::format("{}: holds no task", file), "quality");
  return tasks;
}

// One entry per task: whether the model's greedy output is the wanted one.
Result<std::vector<bool>> answers_right(const std::string& model_directory, const std::vector<Task>& tasks,
                                        const std::atomic<bool>& cancel) {
  JEWEL_ASSIGN(const auto engine, Engine::load(model_directory, one_by_one()));
  const Sampling greedy{.temperature = 0};
  std::vector<bool> right;
  for (const Task& task : tasks) {
    if (cancel) return Error{ErrorCode::kCancelled, "interrupted; nothing was left behind", {}};
    JEWEL_ASSIGN(const Answer output, answer(*engine, task.input, greedy, kMaxAnswerTokens, {}));
    std::span<const int32_t> ids = output.token_ids;
    if (output.finish.reason != EndReason::kLength)
      ids = ids.first(ids.size() - 1);  // without the stop token
    JEWEL_ASSIGN(const std::string text, engine->detokenize(ids));
    right.push_back(text == task.answer);
  }
  return right;
}

}  // namespace

std::string directory_of(const std::string& file) {
  const std::string parent = std::filesystem::path(file).parent_path().string();
  return parent.empty() ? "." : parent;
}

Result<void> for_each_json_line(
    const std::string& file,
    const std::function<Result<void>(const json::object&, const std::string&)>& body) {
  std::ifstream lines(file);
  if (!lines) return not_found(fmt::format("{}: cannot be opened", file));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{} line {}", file, number);
    JEWEL_ASSIGN(const json::object object, parse_json_object(line, where));
    JEWEL_TRY(body(object, where));
  }
  return {};
}

Result<ChatInput> parse_conversation(const json::object& line, const std::string& where,
                                     const std::string& directory) {
  JsonReader reader(line, where);
  ChatInput input;
  if (const json::array* messages = reader.optional_array("messages"); messages != nullptr)
    input.messages = *messages;
  if (const json::array* tools = reader.optional_array("tools"); tools != nullptr) input.tools = *tools;
  input.think = reader.optional_bool("enable_thinking", false);
  if (const json::array* images = reader.optional_array("images"); images != nullptr) {
    for (const json::value& image : *images) {
      if (!image.is_string())
        return invalid(fmt::format("{}: images: found {}, expected file names", where, describe(image)),
                       "images");
      const std::string name(image.get_string());
      // An absolute name stays as it is.
      input.images.push_back((std::filesystem::path(directory) / name).string());
    }
  }
  if (reader.failed()) return reader.error();
  if (input.messages.empty())
    return invalid(fmt::format("{}: messages: missing or empty", where), "messages");
  return input;
}

Result<QualityTable> compare_answers(const std::string& source, const std::string& result,
                                     const std::string& file, const std::atomic<bool>& cancel) {
  JEWEL_ASSIGN(const std::vector<Task> tasks, read_tasks(file));
  JEWEL_ASSIGN(const std::vector<bool> before, answers_right(source, tasks, cancel));
  JEWEL_ASSIGN(const std::vector<bool> after, answers_right(result, tasks, cancel));
  QualityTable table;
  table.all.category = "all";
  for (size_t i = 0; i < tasks.size(); ++i) {
    auto row = std::ranges::find(table.rows, tasks[i].category, &QualityRow::category);
    if (row == table.rows.end()) row = table.rows.insert(row, {.category = tasks[i].category});
    for (QualityRow* sum : {&*row, &table.all}) {
      ++sum->n;
      sum->right_source += before[i] ? 1 : 0;
      sum->right_result += after[i] ? 1 : 0;
    }
  }
  return table;
}

}  // namespace jewel

#include "eval/suite.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>

#include "image/decode.h"
#include "model/json_reader.h"
#include "model/json_text.h"
#include "server/openai/base64.h"
#include "text/utf8.h"

namespace jewel {

namespace json = boost::json;
namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;

Result<std::string> read_bytes(const std::string& path, size_t limit, const std::string& where) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return not_found(fmt::format("{}: {} cannot be opened", where, path));
  std::string bytes;
  std::vector<char> block(size_t{1} << 16);
  while (stream.read(block.data(), static_cast<std::streamsize>(block.size())) || stream.gcount() > 0) {
    bytes.append(block.data(), static_cast<size_t>(stream.gcount()));
    if (bytes.size() > limit)
      return too_large(fmt::format("{}: {} is larger than {} bytes", where, path, limit));
  }
  if (stream.bad() || fs::is_directory(path))
    return invalid(fmt::format("{}: {} could not be read", where, path));
  return bytes;
}

using Image = std::shared_ptr<const std::string>;

Result<Image> read_image(std::string_view name, const std::string& folder, const std::string& where) {
  if (name.starts_with("data:")) {
    JEWEL_ASSIGN(std::string bytes, decode_data_url(name, where));
    return Image(std::make_shared<const std::string>(std::move(bytes)));
  }
  if (name.find("://") != std::string_view::npos)
    return unsupported(
        fmt::format("{}: found {}; a suite's pictures are files or data URLs, so that a run can be repeated",
                    where, name));
  JEWEL_ASSIGN(std::string bytes,
               read_bytes((fs::path(folder) / fs::path(name)).string(), ImageLimits{}.max_bytes, where));
  return Image(std::make_shared<const std::string>(std::move(bytes)));
}

// Pictures of the messages become {"type": "image"}; those with a URL bring their bytes along.
Result<json::array> with_plain_images(const json::array& messages, const std::string& folder,
                                      const std::string& where, const std::vector<Image>& listed,
                                      std::vector<Image>& images) {
  json::array out = messages;
  size_t next = 0;
  for (json::value& message : out) {
    if (!message.is_object())
      return invalid(fmt::format("{}: messages: found {}, expected an object", where, describe(message)));
    json::value* content = message.get_object().if_contains("content");
    if (content == nullptr || !content->is_array()) continue;
    for (json::value& part : content->get_array()) {
      if (!part.is_object())
        return invalid(fmt::format("{}: content: found {}, expected an object", where, describe(part)));
      const json::object& fields = part.get_object();
      const json::value* type = fields.if_contains("type");
      if (type == nullptr || !type->is_string())
        return invalid(fmt::format("{}: a content part has no type", where));
      if (type->get_string() == "text") continue;
      if (type->get_string() == "image_url") {
        const json::value* holder = fields.if_contains("image_url");
        const json::value* url =
            holder != nullptr && holder->is_object() ? holder->get_object().if_contains("url") : nullptr;
        if (url == nullptr || !url->is_string())
          return invalid(fmt::format("{}: image_url: expected {{\"url\": \"data:…\"}}", where));
        JEWEL_ASSIGN(Image image, read_image(std::string_view(url->get_string()), folder, where));
        images.push_back(std::move(image));
      } else if (type->get_string() == "image") {
        if (next >= listed.size())
          return invalid(fmt::format("{}: the messages show more pictures than `images` names ({})", where,
                                     listed.size()));
        images.push_back(listed[next++]);
      } else {
        return unsupported(fmt::format("{}: content of type {}; text, image and image_url are known", where,
                                       describe(*type)));
      }
      part = json::object{{"type", "image"}};
    }
  }
  if (next != listed.size())
    return invalid(fmt::format(
        "{}: `images` names {} pictures, the messages show {}; put {{\"type\": \"image\"}} where they belong",
        where, listed.size(), next));
  return out;
}

Result<Conversation> parse_conversation_line(const json::object& line, const std::string& folder,
                                             const std::string& where) {
  JsonReader reader(line, where);
  Conversation out;
  out.id = reader.optional_string("id", "");
  out.think = reader.optional_bool("enable_thinking", false);
  const std::string prompt = reader.optional_string("prompt", "");
  const json::array* messages = reader.optional_array("messages");
  const json::array* names = reader.optional_array("images");
  if (const json::array* tools = reader.optional_array("tools")) out.tools = *tools;
  if (!reader.failed() && prompt.empty() == (messages == nullptr || messages->empty()))
    reader.fail("prompt", "expected either `prompt` or `messages`");
  if (reader.failed()) return reader.error();
  std::vector<Image> listed;
  if (names != nullptr) {
    for (const json::value& name : *names) {
      if (!name.is_string())
        return invalid(
            fmt::format("{}: images: found {}, expected file names or data URLs", where, describe(name)));
      JEWEL_ASSIGN(Image image, read_image(std::string_view(name.get_string()), folder, where));
      listed.push_back(std::move(image));
    }
  }
  if (messages != nullptr && !messages->empty()) {
    JEWEL_ASSIGN(out.messages, with_plain_images(*messages, folder, where, listed, out.images));
    return out;
  }
  // Pictures first: the order that the model was trained on.
  json::array content;
  for (size_t i = 0; i < listed.size(); ++i) content.push_back(json::object{{"type", "image"}});
  out.images = std::move(listed);
  if (content.empty()) {
    out.messages.push_back(json::object{{"role", "user"}, {"content", prompt}});
  } else {
    content.push_back(json::object{{"type", "text"}, {"text", prompt}});
    out.messages.push_back(json::object{{"role", "user"}, {"content", std::move(content)}});
  }
  return out;
}

Result<std::vector<std::string>> strings_at(const json::object& line, std::string_view key,
                                            const std::string& where) {
  std::vector<std::string> out;
  const json::value* value = line.if_contains(key);
  if (value == nullptr || value->is_null()) return out;
  if (value->is_string()) return std::vector<std::string>{std::string(value->get_string())};
  if (!value->is_array())
    return invalid(fmt::format("{}: {}: found {}, expected strings", where, key, describe(*value)));
  for (const json::value& one : value->get_array()) {
    if (!one.is_string())
      return invalid(fmt::format("{}: {}: found {}, expected strings", where, key, describe(one)));
    out.emplace_back(one.get_string());
  }
  return out;
}

Result<EvalTask> parse_task(const json::object& line, const std::string& folder, const std::string& where) {
  EvalTask task;
  JEWEL_ASSIGN(task.input, parse_conversation_line(line, folder, where));
  JEWEL_ASSIGN(task.answers, strings_at(line, "answers", where));
  JEWEL_ASSIGN(task.choices, strings_at(line, "choices", where));
  if (task.answers.empty()) {
    JEWEL_ASSIGN(task.answers, strings_at(line, "answer", where));
  }
  JsonReader reader(line, where);
  task.category = reader.optional_string("category", reader.optional_string("skill", "all tasks"));
  const std::string metric = reader.optional_string("metric", "exact");
  task.max_tokens = static_cast<int>(reader.optional_int("max_tokens", 0, 0, 1 << 20));
  if (!reader.failed() && task.answers.empty())
    reader.fail("answers", "missing, expected one wanted answer or more");
  if (!reader.failed() && task.choices.size() > 26)
    reader.fail("choices", "more than 26, and the alphabet ends there");
  if (reader.failed()) return reader.error();
  const auto known = metric_of(metric);
  if (!known)
    return invalid(fmt::format("{}: metric: found \"{}\", expected one of {}", where, metric, kMetricNames),
                   "metric");
  task.metric = *known;
  return task;
}

Result<void> for_each_line(
    const std::string& file,
    const std::function<Result<void>(const json::object&, const std::string&, int)>& body) {
  std::ifstream lines(file);
  if (!lines || fs::is_directory(file)) return not_found(fmt::format("{}: cannot be opened", file));
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{} line {}", file, number);
    JEWEL_ASSIGN(const json::object object, parse_json_object(line, where));
    JEWEL_TRY(body(object, where, number));
  }
  return {};
}

std::string folder_of(const std::string& file) {
  const std::string parent = fs::path(file).parent_path().string();
  return parent.empty() ? "." : parent;
}

std::vector<Conversation> pieces_of(std::string_view text, size_t piece_bytes) {
  std::vector<Conversation> pieces;
  while (!text.empty()) {
    size_t end = std::min(piece_bytes, text.size());
    if (end < text.size()) {
      const size_t gap = text.substr(0, end).find_last_of(" \n");
      if (gap != std::string_view::npos && gap > 0) {
        end = gap;
      } else {  // a word without end: cut between characters
        while (end > 1 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
      }
    }
    Conversation piece{.id = fmt::format("piece {}", pieces.size() + 1),
                       .raw = std::string(text.substr(0, end))};
    if (piece.raw.find_first_not_of(" \t\r\n") != std::string::npos) pieces.push_back(std::move(piece));
    text.remove_prefix(end);
  }
  return pieces;
}

json::value sorted(const json::value& value) {
  if (value.is_array()) {
    json::array out;
    for (const json::value& one : value.get_array()) out.push_back(sorted(one));
    return out;
  }
  if (!value.is_object()) return value;
  std::vector<std::string_view> keys;
  for (const auto& pair : value.get_object()) keys.emplace_back(pair.key());
  std::ranges::sort(keys);
  json::object out;
  for (const std::string_view key : keys) out[key] = sorted(value.get_object().at(key));
  return out;
}

}  // namespace

Result<std::vector<EvalTask>> read_suite(const std::string& file) {
  std::vector<EvalTask> tasks;
  std::set<std::string> ids;
  const std::string folder = folder_of(file);
  JEWEL_TRY(for_each_line(
      file, [&](const json::object& line, const std::string& where, int number) -> Result<void> {
        JEWEL_ASSIGN(EvalTask task, parse_task(line, folder, where));
        if (task.input.id.empty()) task.input.id = fmt::format("line {}", number);
        if (!ids.insert(task.input.id).second)
          return invalid(fmt::format("{}: id: \"{}\" stands there twice", where, task.input.id), "id");
        tasks.push_back(std::move(task));
        return {};
      }));
  if (tasks.empty()) return invalid(fmt::format("{}: holds no task", file), "suite");
  return tasks;
}

Result<std::vector<Conversation>> read_texts(const std::string& file, size_t piece_bytes) {
  std::vector<Conversation> texts;
  if (file.ends_with(".jsonl")) {
    const std::string folder = folder_of(file);
    JEWEL_TRY(for_each_line(
        file, [&](const json::object& line, const std::string& where, int number) -> Result<void> {
          JEWEL_ASSIGN(Conversation text, parse_conversation_line(line, folder, where));
          if (text.id.empty()) text.id = fmt::format("line {}", number);
          texts.push_back(std::move(text));
          return {};
        }));
  } else {
    JEWEL_ASSIGN(const std::string text, read_bytes(file, kMaxTextBytes, file));
    if (!is_utf8(text)) return invalid(fmt::format("{}: is no UTF-8 text", file), "text");
    texts = pieces_of(text, piece_bytes);
  }
  if (texts.empty()) return invalid(fmt::format("{}: holds no text", file), "text");
  return texts;
}

std::string canonical_json(const json::value& value) {
  return json_line(sorted(value));
}

std::string call_line(std::string_view name, std::string_view arguments) {
  boost::system::error_code trouble;
  const json::value parsed = json::parse(arguments, trouble);
  return fmt::format("{}({})", name, trouble ? std::string(arguments) : canonical_json(parsed));
}

}  // namespace jewel

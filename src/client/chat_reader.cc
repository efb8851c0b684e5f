#include "client/chat_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

namespace jewel {

namespace json = boost::json;

namespace {

// nullptr when absent or null.
const json::value* find(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

const json::object* find_object(const json::object& object, std::string_view key) {
  const json::value* value = find(object, key);
  return value == nullptr ? nullptr : value->if_object();
}

std::string_view find_text(const json::object& object, std::string_view key) {
  const json::value* value = find(object, key);
  if (value == nullptr || !value->is_string()) return {};
  return value->get_string();
}

std::optional<int> find_count(const json::object& object, std::string_view key) {
  const json::value* value = find(object, key);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  boost::system::error_code error;
  const int count = value->to_number<int>(error);
  if (error || count < 0) return std::nullopt;
  return count;
}

double find_joules(const json::object& object, std::string_view key) {
  const json::value* value = find(object, key);
  if (value == nullptr || !value->is_number()) return 0;
  boost::system::error_code error;
  const double joules = value->to_number<double>(error);
  return error ? 0 : joules;
}

std::optional<ServerEnergy> read_energy(const json::object& usage) {
  const json::object* energy = find_object(usage, "energy");
  if (energy == nullptr || find(*energy, "joules") == nullptr) return std::nullopt;
  return ServerEnergy{.method = std::string(find_text(*energy, "method")),
                      .joules = find_joules(*energy, "joules"),
                      .image_joules = find_joules(*energy, "image_joules"),
                      .prefill_joules = find_joules(*energy, "prefill_joules"),
                      .decode_joules = find_joules(*energy, "decode_joules"),
                      .reasoning_joules = find_joules(*energy, "reasoning_joules"),
                      .idle_share_joules = find_joules(*energy, "idle_share_joules")};
}

// What an "error" holds, in words.
std::string message_of(const json::value& error) {
  if (error.is_string()) return std::string(error.get_string());
  if (const json::object* object = error.if_object()) {
    const std::string_view message = find_text(*object, "message");
    if (!message.empty()) return std::string(message);
  }
  return beginning_of(json::serialize(error));
}

}  // namespace

std::string beginning_of(std::string_view text, size_t most) {
  size_t length = std::min(text.size(), most);
  // Not through the middle of a character.
  while (length < text.size() && length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80)
    --length;
  std::string line(text.substr(0, length));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; },
      ' ');
  if (length < text.size()) line += "…";
  return line;
}

std::string server_message(std::string_view body) {
  boost::system::error_code error;
  const json::value parsed = json::parse(body, error);
  const json::object* object = error ? nullptr : parsed.if_object();
  if (object != nullptr) {
    for (const std::string_view key : {"error", "message", "detail"}) {
      if (const json::value* found = find(*object, key)) return beginning_of(message_of(*found), 1000);
    }
  }
  return body.empty() ? "nothing" : beginning_of(body);
}

std::optional<ServerUsage> read_usage(const json::value& value) {
  const json::object* usage = value.if_object();
  if (usage == nullptr) return std::nullopt;
  const auto prompt = find_count(*usage, "prompt_tokens");
  const auto completion = find_count(*usage, "completion_tokens");
  if (!prompt || !completion) return std::nullopt;
  ServerUsage read{.prompt_tokens = *prompt, .completion_tokens = *completion};
  if (const json::object* details = find_object(*usage, "prompt_tokens_details")) {
    read.cached_tokens = find_count(*details, "cached_tokens");
    read.image_tokens = find_count(*details, "image_tokens");
  }
  if (const json::object* details = find_object(*usage, "completion_tokens_details"))
    read.reasoning_tokens = find_count(*details, "reasoning_tokens");
  read.energy = read_energy(*usage);
  return read;
}

Result<void> ChatReader::event(std::string_view name, std::string_view data,
                               ChatAnswer::Clock::time_point at) {
  if (data == "[DONE]") {
    done_ = true;
    return {};
  }
  if (done_) return {};  // some gateways add words of their own
  boost::system::error_code error;
  const json::value parsed = json::parse(data, error);
  if (error || !parsed.is_object()) {
    if (name == "error") return internal(fmt::format("the server reports: {}", beginning_of(data)));
    return invalid(fmt::format("the stream has an event that is not a JSON object: {}", beginning_of(data)));
  }
  if (name == "error") return internal(fmt::format("the server reports: {}", server_message(data)));
  return read(parsed.get_object(), at);
}

Result<void> ChatReader::whole(std::string_view body, ChatAnswer::Clock::time_point at) {
  boost::system::error_code error;
  const json::value parsed = json::parse(body, error);
  if (error || !parsed.is_object())
    return invalid(fmt::format("expected a chat answer, found {}", beginning_of(body)));
  JEWEL_TRY(read(parsed.get_object(), at));
  done_ = true;
  return {};
}

Result<void> ChatReader::read(const json::object& chunk, ChatAnswer::Clock::time_point at) {
  if (const json::value* error = find(chunk, "error"))
    return internal(fmt::format("the server reports: {}", message_of(*error)));
  const json::value* choices = find(chunk, "choices");
  if (choices != nullptr && !choices->is_array())
    return invalid("expected a list of choices, found something else");
  if (const json::value* usage = find(chunk, "usage")) {
    if (auto counts = read_usage(*usage)) answer_.usage = std::move(counts);
  }
  if (answer_.model.empty()) answer_.model = find_text(chunk, "model");
  if (choices == nullptr) return {};  // an event of some other kind: progress, metrics
  seen_ = true;
  for (const json::value& entry : choices->get_array()) {
    const json::object* choice = entry.if_object();
    if (choice == nullptr || find_count(*choice, "index").value_or(0) != 0) continue;
    const json::object* delta = find_object(*choice, "delta");
    if (delta == nullptr) delta = find_object(*choice, "message");
    if (delta != nullptr && add_delta(*delta)) answer_.pieces.push_back(at);
    const std::string_view reason = find_text(*choice, "finish_reason");
    if (!reason.empty()) answer_.finish_reason = reason;
  }
  return {};
}

bool ChatReader::add_delta(const json::object& delta) {
  const std::string_view content = find_text(delta, "content");
  std::string_view reasoning = find_text(delta, "reasoning");
  if (reasoning.empty()) reasoning = find_text(delta, "reasoning_content");
  answer_.content += content;
  answer_.reasoning += reasoning;
  const json::value* calls = find(delta, "tool_calls");
  const bool called = calls != nullptr && add_tool_calls(*calls);
  return !content.empty() || !reasoning.empty() || called;
}

bool ChatReader::add_tool_calls(const json::value& calls) {
  if (!calls.is_array()) return false;
  constexpr int kMostCalls = 1024;
  bool added = false;
  for (const json::value& entry : calls.get_array()) {
    const json::object* call = entry.if_object();
    if (call == nullptr) continue;
    const int index = find_count(*call, "index").value_or(static_cast<int>(answer_.tool_calls.size()));
    if (index >= kMostCalls) continue;
    if (static_cast<size_t>(index) >= answer_.tool_calls.size())
      answer_.tool_calls.resize(static_cast<size_t>(index) + 1);
    ServerToolCall& known = answer_.tool_calls[static_cast<size_t>(index)];
    known.id += find_text(*call, "id");
    if (const json::object* function = find_object(*call, "function")) {
      known.name += find_text(*function, "name");
      known.arguments += find_text(*function, "arguments");
    }
    added = true;
  }
  return added;
}

Result<ChatAnswer> ChatReader::finish(ChatAnswer::Clock::time_point at) {
  if (!done_ && answer_.finish_reason.empty()) {
    if (!seen_)
      return unavailable("the stream ended before it said anything; expected chat.completion.chunk events");
    return unavailable(
        fmt::format("the stream ended after {} pieces without a finish_reason and without [DONE]",
                    answer_.pieces.size()));
  }
  answer_.ended = at;
  return std::move(answer_);
}

}  // namespace jewel

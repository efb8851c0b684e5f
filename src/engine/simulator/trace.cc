#include "engine/simulator/trace.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <unordered_set>

#include "model/json_reader.h"
#include "model/json_text.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxTokens = 1'000'000;  // of a part, and of an answer
constexpr size_t kMaxRequests = 10'000'000;
constexpr size_t kMaxLineBytes = size_t{64} << 20;

Result<TracePart> parse_part(const json::value& value, const std::string& where) {
  if (!value.is_object())
    return invalid(fmt::format("{}: prompt: found {}, expected an object", where, describe(value)));
  const json::object& object = value.get_object();
  JsonReader reader(object, where, "prompt");
  TracePart part;
  std::string name_key;
  for (const auto& [key, kind] : {std::pair{"shared", TracePart::Kind::kShared},
                                  {"image", TracePart::Kind::kImage},
                                  {"ids", TracePart::Kind::kIds},
                                  {"history", TracePart::Kind::kHistory}}) {
    if (!reader.present(key)) continue;
    if (!name_key.empty())
      return invalid(
          fmt::format("{}: prompt: a part has both '{}' and '{}'; make two parts", where, name_key, key));
    name_key = key;
    part.kind = kind;
  }
  for (const auto& [key, unused] : object) {
    if (key != name_key && key != "tokens")
      return invalid(fmt::format("{}: prompt: found key '{}', expected tokens, shared, image, ids or history",
                                 where, std::string_view(key)));
  }
  if (part.kind == TracePart::Kind::kIds) {
    const json::array* ids = reader.optional_array("ids");
    if (ids == nullptr) return reader.error();
    for (const json::value& id : *ids) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > (1 << 24))
        return invalid(fmt::format("{}: prompt.ids: found {}, expected token ids", where, describe(id)));
      part.ids.push_back(static_cast<TokenId>(id.get_int64()));
    }
    part.tokens = static_cast<int>(part.ids.size());
  } else {
    if (!name_key.empty()) part.name = reader.optional_string(name_key, "");
    if (part.kind != TracePart::Kind::kHistory)
      part.tokens = static_cast<int>(reader.required_int("tokens", 1, kMaxTokens));
  }
  if (reader.failed()) return reader.error();
  return part;
}

Result<TraceRequest> parse_line(const std::string& line, const std::string& where,
                                const std::unordered_set<std::string>& ids) {
  JEWEL_ASSIGN(const json::object object, parse_json_object(line, where));
  for (const auto& [key, unused] : object) {
    const bool known = key == "arrival_s" || key == "id" || key == "after" || key == "prompt" ||
                       key == "max_tokens" || key == "priority" || key == "salt";
    if (!known)
      return invalid(fmt::format(
          "{}: found key '{}', expected arrival_s, id, after, prompt, max_tokens, priority or salt", where,
          std::string_view(key)));
  }
  JsonReader reader(object, where);
  TraceRequest request;
  request.arrival_s = reader.optional_number("arrival_s", 0, 0, 1e9);
  request.id = reader.optional_string("id", "");
  request.after = reader.optional_string("after", "");
  request.max_tokens = static_cast<int>(reader.required_int("max_tokens", 1, kMaxTokens));
  request.priority = static_cast<int>(reader.optional_int("priority", 0, -1'000'000, 1'000'000));
  request.salt = reader.optional_string("salt", "");
  const json::array* parts = reader.optional_array("prompt");
  if (!reader.failed() && (parts == nullptr || parts->empty()))
    reader.fail("prompt", "missing, expected an array of parts");
  if (reader.failed()) return reader.error();
  for (const json::value& value : *parts) {
    JEWEL_ASSIGN(TracePart part, parse_part(value, where));
    request.prompt.push_back(std::move(part));
  }
  const auto earlier = [&](const char* key, const std::string& id) -> Result<void> {
    if (ids.contains(id)) return {};
    return invalid(fmt::format("{}: {}: found '{}', expected the id of an earlier line", where, key, id));
  };
  if (!request.after.empty()) JEWEL_TRY(earlier("after", request.after));
  for (const TracePart& part : request.prompt) {
    if (part.kind != TracePart::Kind::kHistory) continue;
    JEWEL_TRY(earlier("history", part.name));
    // Its answer has to be there when this one comes.
    if (request.after != part.name)
      return invalid(fmt::format("{}: history: needs \"after\": \"{}\" as well", where, part.name));
  }
  return request;
}

json::object to_json(const TracePart& part) {
  switch (part.kind) {
    case TracePart::Kind::kOwn:
      return {{"tokens", part.tokens}};
    case TracePart::Kind::kShared:
      return {{"shared", part.name}, {"tokens", part.tokens}};
    case TracePart::Kind::kImage:
      return {{"image", part.name}, {"tokens", part.tokens}};
    case TracePart::Kind::kIds:
      return {{"ids", json::value_from(part.ids)}};
    case TracePart::Kind::kHistory:
      return {{"history", part.name}};
  }
  return {};
}

}  // namespace

Result<Trace> read_trace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return not_found(fmt::format("{}: cannot be read", path));
  Trace trace{.name = path};
  std::unordered_set<std::string> ids;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = fmt::format("{}:{}", path, number);
    if (line.size() > kMaxLineBytes || trace.requests.size() >= kMaxRequests)
      return too_large(fmt::format("{}: more than {} requests, or a line of more than {} bytes", where,
                                   kMaxRequests, kMaxLineBytes));
    JEWEL_ASSIGN(TraceRequest request, parse_line(line, where, ids));
    if (!request.id.empty() && !ids.insert(request.id).second)
      return invalid(fmt::format("{}: id: '{}' has been used before", where, request.id));
    trace.requests.push_back(std::move(request));
  }
  if (trace.requests.empty()) return invalid(fmt::format("{}: holds no request", path));
  return trace;
}

Result<void> write_trace(const Trace& trace, const std::string& path) {
  std::ofstream file(path);
  for (const TraceRequest& request : trace.requests) {
    json::object line = {{"arrival_s", request.arrival_s}};
    if (!request.id.empty()) line["id"] = request.id;
    if (!request.after.empty()) line["after"] = request.after;
    if (request.priority != 0) line["priority"] = request.priority;
    if (!request.salt.empty()) line["salt"] = request.salt;
    line["max_tokens"] = request.max_tokens;
    json::array& parts = line["prompt"].emplace_array();
    for (const TracePart& part : request.prompt) parts.push_back(to_json(part));
    file << json_line(line) << '\n';
  }
  file.close();
  if (!file) return unavailable(fmt::format("{}: cannot be written", path));
  return {};
}

}  // namespace jewel

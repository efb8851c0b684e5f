#include "server/settings.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <charconv>
#include <cmath>
#include <limits>

#include "model/json_reader.h"
#include "model/json_text.h"
#include "text/text_file.h"

namespace jewel {
namespace {

// Reports have a line for each setting, and a name stands in it.
bool is_word(std::string_view name) {
  return std::ranges::none_of(name, [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
}

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr int kMaxYamlNodes = 20'000;  // aliases can make a small file large
constexpr int kMaxYamlDepth = 64;

std::optional<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_number(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

// "32k" is 32,000 and "32K" is 32,768; "auto" is -1.
std::optional<int64_t> parse_tokens(std::string_view text) {
  if (text == "auto") return -1;
  int64_t unit = 1;
  switch (text.empty() ? '\0' : text.back()) {
    case 'k':
      unit = 1'000;
      break;
    case 'K':
      unit = 1 << 10;
      break;
    case 'm':
      unit = 1'000'000;
      break;
    case 'M':
      unit = 1 << 20;
      break;
    case 'g':
      unit = 1'000'000'000;
      break;
    case 'G':
      unit = 1 << 30;
      break;
    default:
      break;
  }
  if (unit != 1) text.remove_suffix(1);
  const int64_t most = std::numeric_limits<int64_t>::max() / unit;
  if (const auto whole = parse_integer(text); whole && *whole >= -most && *whole <= most)
    return *whole * unit;
  if (unit == 1) return std::nullopt;
  const auto part = parse_number(text);  // 25.6k
  if (!part || std::abs(*part) * static_cast<double>(unit) > 9e18) return std::nullopt;
  return static_cast<int64_t>(*part * static_cast<double>(unit));
}

std::optional<bool> parse_boolean(std::string_view text) {
  if (text == "true" || text == "True" || text == "yes" || text == "on" || text == "1") return true;
  if (text == "false" || text == "False" || text == "no" || text == "off" || text == "0") return false;
  return std::nullopt;
}

std::string_view expectation(FlagKind kind) {
  switch (kind) {
    case FlagKind::kBool:
      return "true or false";
    case FlagKind::kInt:
      return "an integer";
    case FlagKind::kTokens:
      return "an integer, possibly with k, K, m, M, g or G, or auto";
    case FlagKind::kNumber:
      return "a number";
    case FlagKind::kText:
      return "one word";
    case FlagKind::kTexts:
      return "a list of words";
    case FlagKind::kJson:
      return "JSON";
  }
  return "";
}

template <typename T>
void assign(Setting& setting, const std::optional<T>& parsed, std::string_view found) {
  if (parsed) {
    setting.value = *parsed;
  } else {
    setting.problem = fmt::format("expected {}, found '{}'", expectation(setting.flag->kind), found);
  }
}

boost::json::value parse_json_or_text(const std::string& text) {
  boost::system::error_code error;
  boost::json::parse_options options;
  options.max_depth = kMaxYamlDepth;
  boost::json::value value = boost::json::parse(text, error, {}, options);
  return error ? boost::json::value(text) : value;
}

// A scalar of YAML as the core schema types it.
boost::json::value scalar_value(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return boost::json::value(text);  // quoted
  if (const auto whole = parse_integer(text)) return *whole;
  if (const auto number = parse_number(text)) return *number;
  if (text == "true" || text == "True") return true;
  if (text == "false" || text == "False") return false;
  return parse_json_or_text(text);
}

Result<boost::json::value> json_from_yaml(const YAML::Node& node, int depth, int& budget) {
  if (--budget < 0 || depth > kMaxYamlDepth)
    return too_large(fmt::format("more than {} values or {} levels", kMaxYamlNodes, kMaxYamlDepth));
  if (!node.IsDefined() || node.IsNull()) return boost::json::value();
  if (node.IsScalar()) return scalar_value(node);
  if (node.IsSequence()) {
    boost::json::array array;
    for (const YAML::Node& item : node) {
      JEWEL_ASSIGN(boost::json::value value, json_from_yaml(item, depth + 1, budget));
      array.push_back(std::move(value));
    }
    return boost::json::value(std::move(array));
  }
  boost::json::object object;
  for (const auto& entry : node) {
    const YAML::Node& key = entry.first;
    if (!key.IsScalar()) return invalid("a key that is not a word");
    JEWEL_ASSIGN(boost::json::value value, json_from_yaml(entry.second, depth + 1, budget));
    object[key.Scalar()] = std::move(value);
  }
  return boost::json::value(std::move(object));
}

// Words of a list; numbers are words too.
void assign_texts(Setting& setting, const YAML::Node& node) {
  boost::json::array words;
  for (const YAML::Node& item : node) {
    if (!item.IsScalar()) {
      setting.problem = "expected a list of words, found a list of something else";
      return;
    }
    words.emplace_back(item.Scalar());
  }
  setting.value = std::move(words);
}

Result<void> assign_yaml(Setting& setting, const YAML::Node& node, int& budget) {
  const Flag& flag = *setting.flag;
  if (node.IsNull()) return {};
  if (flag.kind == FlagKind::kJson) {
    if (node.IsScalar()) {
      setting.value = parse_json_or_text(node.Scalar());  // quoted or not
    } else {
      JEWEL_ASSIGN(setting.value, json_from_yaml(node, 0, budget));
    }
    if (setting.value.is_string() && node.IsScalar()) {
      setting.problem = fmt::format("expected a map, a list or JSON, found '{}'", node.Scalar());
    }
    return {};
  }
  if (flag.kind == FlagKind::kTexts && node.IsSequence()) {
    assign_texts(setting, node);
  } else if (node.IsScalar()) {
    Setting converted = convert_setting(flag, std::vector{node.Scalar()});
    setting.value = std::move(converted.value);
    setting.problem = std::move(converted.problem);
  } else {
    setting.problem =
        fmt::format("expected {}, found a {}", expectation(flag.kind), node.IsMap() ? "map" : "list");
  }
  return {};
}

// "no-x" for a boolean x.
const Flag* negated_flag(std::string_view name) {
  if (!name.starts_with("no-") && !name.starts_with("no_")) return nullptr;
  const Flag* flag = find_flag(name.substr(3));
  return flag && flag->kind == FlagKind::kBool ? flag : nullptr;
}

const Flag* short_flag(std::string_view argument) {
  for (const Flag& flag : serve_flags()) {
    if (!flag.also.empty() && argument.starts_with(flag.also) &&
        (argument.size() == flag.also.size() || flag.also == "-O")) {
      return &flag;
    }
  }
  return nullptr;
}

bool looks_like_flag(std::string_view word) {
  return word.size() >= 2 && word[0] == '-' && !parse_number(word);
}

// A dotted path below a JSON flag: "image.count" of {"image": {"count": …}}.
boost::json::value nest(std::string_view path, boost::json::value value) {
  const size_t dot = path.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? path : path.substr(dot + 1);
  boost::json::object object;
  object[last] = std::move(value);
  return dot == std::string_view::npos ? boost::json::value(std::move(object))
                                       : nest(path.substr(0, dot), std::move(object));
}

void merge(boost::json::value& into, boost::json::value from) {
  if (!into.is_object() || !from.is_object()) {
    into = std::move(from);
    return;
  }
  for (auto& [key, value] : from.get_object()) merge(into.get_object()[key], std::move(value));
}

// The JSON flag that a dotted name begins with; `path` becomes what stands behind the dot. Else nullptr.
const Flag* dotted_flag(std::string_view name, std::string& path) {
  const size_t dot = name.find('.');
  const Flag* parent = dot == std::string_view::npos ? nullptr : find_flag(name.substr(0, dot));
  if (parent == nullptr || parent->kind != FlagKind::kJson) return nullptr;
  if (std::ranges::count(name, '.') > kMaxYamlDepth) return nullptr;
  path = name.substr(dot + 1);
  return parent;
}

// A dotted setting joins the last of its flag; false when it is the first.
bool join_earlier(std::vector<Setting>& settings, const Flag* flag, boost::json::value& value) {
  const auto earlier =
      std::find_if(settings.rbegin(), settings.rend(), [&](const Setting& s) { return s.flag == flag; });
  if (earlier == settings.rend()) return false;
  merge(earlier->value, std::move(value));
  return true;
}

}  // namespace

Setting convert_setting(const Flag& flag, std::span<const std::string> words) {
  Setting setting{.flag = &flag};
  const std::string& word = words.front();
  switch (flag.kind) {
    case FlagKind::kBool:
      assign(setting, parse_boolean(word), word);
      break;
    case FlagKind::kInt:
      assign(setting, parse_integer(word), word);
      break;
    case FlagKind::kTokens:
      assign(setting, parse_tokens(word), word);
      break;
    case FlagKind::kNumber:
      assign(setting, parse_number(word), word);
      break;
    case FlagKind::kText:
      setting.value = word;
      break;
    case FlagKind::kTexts:
      setting.value = boost::json::array(words.begin(), words.end());
      break;
    case FlagKind::kJson:
      setting.value = parse_json_or_text(word);
      if (setting.value.is_string() && !word.starts_with('"')) {
        setting.problem = fmt::format("expected JSON, found '{}'", word);
      }
      break;
  }
  return setting;
}

Result<Settings> Settings::read(std::span<const std::string> arguments) {
  Settings settings;
  JEWEL_TRY(settings.read_arguments(arguments));
  return settings;
}

Result<Settings> Settings::read_yaml(const std::string& text, const std::string& file) {
  Settings settings;
  JEWEL_TRY(settings.add_yaml(text, file));
  return settings;
}

Result<void> Settings::read_file(const std::string& path) {
  if (!path.ends_with(".yaml") && !path.ends_with(".yml")) {
    return invalid(fmt::format("--config: found '{}', expected a file that ends in .yaml or .yml", path));
  }
  JEWEL_ASSIGN(const std::string text, read_text_file(path, kMaxFileBytes));
  return add_yaml(text, path.substr(path.find_last_of('/') + 1));
}

Result<void> Settings::add_yaml(const std::string& text, const std::string& file) {
  YAML::Node root;
  try {
    root = YAML::Load(text);
  } catch (const YAML::Exception& error) {
    return invalid(fmt::format("{}:{}: {}", file, error.mark.line + 1, error.msg));
  }
  if (!root.IsDefined() || root.IsNull()) return {};
  if (!root.IsMap()) return invalid(fmt::format("{}: expected keys and values at the top level", file));
  int budget = kMaxYamlNodes;
  try {
    for (const auto& entry : root) {
      const YAML::Node& key = entry.first;
      const YAML::Node& node = entry.second;
      if (!key.IsScalar() || !is_word(key.Scalar()))
        return invalid(fmt::format("{}:{}: a key that is not a word", file, key.Mark().line + 1));
      Setting setting{.flag = find_flag(key.Scalar()),
                      .name = key.Scalar(),
                      .origin = fmt::format("{}:{}", file, key.Mark().line + 1)};
      std::string path;
      if (const Flag* parent = setting.flag ? nullptr : dotted_flag(key.Scalar(), path)) {
        setting.flag = parent;
        auto value = json_from_yaml(node, 0, budget);
        if (!value.ok())
          return invalid(fmt::format("{}: {}: {}", setting.origin, setting.name, value.error().message));
        setting.value = nest(path, *std::move(value));
        if (join_earlier(all_, parent, setting.value)) continue;
      } else if (const Flag* negated = setting.flag ? nullptr : negated_flag(key.Scalar())) {
        setting.flag = negated;
        JEWEL_TRY(assign_yaml(setting, node, budget));
        if (setting.value.is_bool()) setting.value = !setting.value.get_bool();
      } else if (setting.flag) {
        if (auto assigned = assign_yaml(setting, node, budget); !assigned.ok()) {
          return invalid(fmt::format("{}: {}: {}", setting.origin, setting.name, assigned.error().message));
        }
      }
      all_.push_back(std::move(setting));
    }
  } catch (const YAML::Exception& error) {
    return invalid(fmt::format("{}:{}: {}", file, error.mark.line + 1, error.msg));
  }
  return {};
}

Result<void> Settings::read_arguments(std::span<const std::string> arguments) {
  std::vector<Setting> given;
  std::optional<std::string> config;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "-h" || argument == "--help") {
      help = true;
      continue;
    }
    if (argument == "--check-config" || argument == "--check_config") {
      check_config = true;
      continue;
    }
    if (!looks_like_flag(argument)) {
      (model_argument ? extra_arguments.emplace_back() : model_argument.emplace()) = argument;
      continue;
    }

    std::string name = argument.substr(argument.starts_with("--") ? 2 : 1);
    std::vector<std::string> words;
    if (const size_t equals = name.find('='); equals != std::string::npos) {
      words.push_back(name.substr(equals + 1));
      name.resize(equals);
    }
    const auto next_word = [&]() -> bool {
      if (i + 1 >= arguments.size() || looks_like_flag(arguments[i + 1])) return false;
      words.push_back(arguments[++i]);
      return true;
    };
    if (name == "config") {
      if (words.empty() && !next_word()) return invalid("--config: expected a file");
      if (config) return invalid("--config: found twice, expected one file");
      config = words.front();
      continue;
    }

    if (!is_word(name)) return invalid("a flag with control characters in its name");
    std::string path;  // below a JSON flag
    const Flag* flag = argument.starts_with("--") ? find_flag(name) : short_flag(argument);
    if (!flag) flag = dotted_flag(name, path);
    bool negated = false;
    if (!flag) negated = (flag = negated_flag(name)) != nullptr;

    Setting setting{.flag = flag, .name = argument.substr(0, argument.find('=')), .origin = "command line"};
    if (!flag) {
      while (next_word()) {
      }  // its values, whatever they are
    } else if (flag->kind == FlagKind::kBool) {
      const std::optional<bool> value = words.empty() ? true : parse_boolean(words.front());
      if (value)
        setting.value = *value != negated;
      else
        setting.problem = fmt::format("expected true or false, found '{}'", words.front());
    } else if (flag->also == "-O" && !argument.starts_with("--") && argument.size() > 2) {
      setting.value = argument.substr(2);
    } else {
      if (words.empty() && !next_word()) {
        return invalid(fmt::format("{}: expected {} after it", argument, expectation(flag->kind)));
      }
      if (flag->kind == FlagKind::kTexts) {
        while (next_word()) {
        }
      }
      Setting converted = path.empty() ? convert_setting(*flag, words)
                                       : Setting{.value = nest(path, parse_json_or_text(words.front()))};
      setting.value = std::move(converted.value);
      setting.problem = std::move(converted.problem);
      if (!path.empty() && join_earlier(given, flag, setting.value)) continue;
    }
    given.push_back(std::move(setting));
  }
  if (config) JEWEL_TRY(read_file(*config));
  std::ranges::move(given, std::back_inserter(all_));
  return {};
}

const Setting* Settings::find(std::string_view flag) const {
  const Flag* wanted = find_flag(flag);
  JEWEL_CHECK(wanted, "no flag is called '{}'", flag);
  for (auto it = all_.rbegin(); it != all_.rend(); ++it) {
    if (it->flag == wanted) return it->value.is_null() ? nullptr : &*it;
  }
  return nullptr;
}

std::optional<bool> Settings::boolean(std::string_view flag) const {
  const Setting* setting = find(flag);
  return setting ? std::optional(setting->value.as_bool()) : std::nullopt;
}

std::optional<int64_t> Settings::integer(std::string_view flag) const {
  const Setting* setting = find(flag);
  return setting ? std::optional(setting->value.as_int64()) : std::nullopt;
}

std::optional<double> Settings::number(std::string_view flag) const {
  const Setting* setting = find(flag);
  return setting ? std::optional(setting->value.as_double()) : std::nullopt;
}

std::optional<std::string> Settings::text(std::string_view flag) const {
  const Setting* setting = find(flag);
  return setting ? std::optional(std::string(setting->value.as_string())) : std::nullopt;
}

std::vector<std::string> Settings::texts(std::string_view flag) const {
  std::vector<std::string> out;
  if (const Setting* setting = find(flag)) {
    for (const boost::json::value& word : setting->value.as_array()) out.emplace_back(word.as_string());
  }
  return out;
}

const boost::json::value* Settings::json(std::string_view flag) const {
  const Setting* setting = find(flag);
  return setting ? &setting->value : nullptr;
}

}  // namespace jewel

#include "base/log.h"

#include <fmt/format.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <iterator>
#include <memory>

namespace jewel {
namespace {

// The length of the UTF-8 sequence at text[at]; 0: there is none. (text/utf8.h lies above this folder.)
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0U;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) return 0;
  }
  const unsigned second = byte(1);
  const bool overlong = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
  const bool no_character = (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f);
  return overlong || no_character ? 0 : length;
}

void append_json(std::string& out, std::string_view text) {
  out += '"';
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
    } else if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c < 0x20 || c == 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", c);
    } else {
      out += text.substr(i, length);
    }
    i += length == 0 ? 1 : length;
  }
  out += '"';
}

std::string one_line(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (byte < 0x20 || byte == 0x7f)
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", byte);
    else
      out += c;
  }
  return out;
}

std::string utc(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", 1900 + parts.tm_year, 1 + parts.tm_mon,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, ms % 1000);
}

std::string_view name_of(spdlog::level::level_enum level) {
  const auto name = spdlog::level::to_string_view(level);
  return {name.data(), name.size()};
}

constexpr std::string_view kEvents = "events";  // a logger whose messages are members of the object already

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string_view payload(message.payload.data(), message.payload.size());
    std::string line =
        fmt::format(R"({{"time":"{}","level":"{}",)", utc(message.time), name_of(message.level));
    if (std::string_view(message.logger_name.data(), message.logger_name.size()) == kEvents) {
      line += payload;
    } else {
      line += R"("message":)";
      append_json(line, payload);
    }
    line += "}\n";
    out.append(line.data(), line.data() + line.size());
  }
  std::unique_ptr<formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

class TextFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string_view level = name_of(message.level);
    message.color_range_start = out.size();
    out.append(level.data(), level.data() + level.size());
    message.color_range_end = out.size();
    const std::string rest = ": " + one_line({message.payload.data(), message.payload.size()}) + "\n";
    out.append(rest.data(), rest.data() + rest.size());
  }
  std::unique_ptr<formatter> clone() const override { return std::make_unique<TextFormatter>(); }
};

const spdlog::sink_ptr& sink() {
  static const spdlog::sink_ptr made = [] {
    spdlog::sink_ptr it = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    it->set_formatter(std::make_unique<TextFormatter>());
    return it;
  }();
  return made;
}

std::atomic<bool> json_lines{false};

void append_value(std::string& out, const LogField& field, bool json) {
  if (const auto* text = std::get_if<std::string>(&field.value)) {
    if (json)
      append_json(out, *text);
    else
      out += *text;
  } else if (const auto* number = std::get_if<double>(&field.value)) {
    out += std::isfinite(*number) ? fmt::format("{}", *number) : "null";
  } else if (const auto* flag = std::get_if<bool>(&field.value)) {
    out += *flag ? "true" : "false";
  } else {
    out += fmt::format("{}", std::get<int64_t>(field.value));
  }
}

}  // namespace

spdlog::logger& log() {
  static const auto logger = std::make_shared<spdlog::logger>("jewel", sink());
  return *logger;
}

bool set_log_level(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off") return false;
  log().set_level(parsed);
  return true;
}

void set_log_json(bool json) {
  json_lines = json;
  if (json)
    sink()->set_formatter(std::make_unique<JsonFormatter>());
  else
    sink()->set_formatter(std::make_unique<TextFormatter>());
}

bool log_is_json() {
  return json_lines;
}

void log_event(std::string_view message, std::initializer_list<LogField> fields) {
  static const auto events = std::make_shared<spdlog::logger>(std::string(kEvents), sink());
  if (!log().should_log(spdlog::level::info)) return;
  const bool json = json_lines;
  std::string line;
  if (json) {
    line = R"("message":)";
    append_json(line, message);
  } else {
    line = message;
  }
  for (const LogField& field : fields) {
    if (json) {
      line += ',';
      append_json(line, field.name);
      line += ':';
    } else {
      line += ' ';
      line += field.name;
      line += '=';
    }
    append_value(line, field, json);
  }
  events->info("{}", line);
}

}  // namespace jewel

#include "model/json_reader.h"

#include <fmt/format.h>

#include <boost/json/parser.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>

namespace jewel {

namespace json = boost::json;

std::string describe(const json::value& value) {
  switch (value.kind()) {
    case json::kind::object:
      return "an object";
    case json::kind::array:
      return "an array";
    case json::kind::string: {
      const std::string_view text = value.get_string();
      return fmt::format("the string '{}{}'", text.substr(0, 60), text.size() > 60 ? "…" : "");
    }
    default:
      return json::serialize(value);
  }
}

const json::value* JsonReader::find(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

bool JsonReader::present(std::string_view key) const {
  return find(key) != nullptr;
}

std::string JsonReader::where(std::string_view key) const {
  return path_.empty() ? fmt::format("{}: {}", file_, key) : fmt::format("{}: {}.{}", file_, path_, key);
}

void JsonReader::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void JsonReader::fail(std::string_view key, std::string_view what) {
  fail(invalid(fmt::format("{}: {}", where(key), what), std::string(key)));
}

int64_t JsonReader::int_in_range(std::string_view key, const json::value& value, int64_t min, int64_t max) {
  int64_t number = 0;
  if (value.is_int64()) {
    number = value.get_int64();
  } else if (value.is_double() && std::trunc(value.get_double()) == value.get_double() &&
             std::fabs(value.get_double()) < 9e15) {
    number = static_cast<int64_t>(value.get_double());
  } else {
    fail(key, fmt::format("found {}, expected a whole number", describe(value)));
    return min;
  }
  if (number < min || number > max) {
    fail(key, fmt::format("found {}, expected {} to {}", number, min, max));
    return min;
  }
  return number;
}

int64_t JsonReader::required_int(std::string_view key, int64_t min, int64_t max) {
  const json::value* value = find(key);
  if (value == nullptr) {
    fail(key, "missing, expected a whole number");
    return min;
  }
  return int_in_range(key, *value, min, max);
}

int64_t JsonReader::optional_int(std::string_view key, int64_t fallback, int64_t min, int64_t max) {
  const json::value* value = find(key);
  return value == nullptr ? fallback : int_in_range(key, *value, min, max);
}

double JsonReader::optional_number(std::string_view key, double fallback, double min, double max) {
  const json::value* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) {
    fail(key, fmt::format("found {}, expected a number", describe(*value)));
    return fallback;
  }
  const double number = value->to_number<double>();
  if (!(number >= min && number <= max)) {
    fail(key, fmt::format("found {}, expected {} to {}", number, min, max));
    return fallback;
  }
  return number;
}

bool JsonReader::optional_bool(std::string_view key, bool fallback) {
  const json::value* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_bool()) {
    fail(key, fmt::format("found {}, expected true or false", describe(*value)));
    return fallback;
  }
  return value->get_bool();
}

std::string JsonReader::optional_string(std::string_view key, std::string_view fallback) {
  const json::value* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    fail(key, fmt::format("found {}, expected a string", describe(*value)));
    return std::string(fallback);
  }
  return std::string(value->get_string());
}

const json::object* JsonReader::optional_object(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    fail(key, fmt::format("found {}, expected an object", describe(*value)));
    return nullptr;
  }
  return &value->get_object();
}

const json::array* JsonReader::optional_array(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    fail(key, fmt::format("found {}, expected an array", describe(*value)));
    return nullptr;
  }
  return &value->get_array();
}

Result<json::object> parse_json_object(std::string_view text, const std::string& file) {
  json::parse_options options;
  options.max_depth = 128;
  json::parser parser({}, options);
  boost::system::error_code error;
  const size_t parsed = parser.write_some(text.data(), text.size(), error);
  if (!error && text.find_first_not_of(" \t\r\n", parsed) != std::string_view::npos)
    error = json::error::extra_data;
  if (error)
    return invalid(fmt::format("{}: not valid JSON near byte {} ({})", file, parsed, error.message()));
  json::value value = parser.release();
  if (!value.is_object())
    return invalid(fmt::format("{}: found {}, expected a JSON object", file, describe(value)));
  return std::move(value.get_object());
}

}  // namespace jewel

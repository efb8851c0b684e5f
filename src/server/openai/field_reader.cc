#include "server/openai/field_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <cmath>

#include "model/json_reader.h"

namespace jewel {

namespace json = boost::json;

namespace {
thread_local std::set<std::string>* recorded = nullptr;
}  // namespace

std::optional<int64_t> as_integer(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double()) {
    const double number = value.get_double();
    if (std::abs(number) < 9e15 && number == std::floor(number)) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

std::string FieldReader::at(std::string_view name) const {
  return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name);
}

void FieldReader::record_into(std::set<std::string>* names) {
  recorded = names;
}

void FieldReader::accept(std::string_view name) {
  seen_.emplace_back(name);
  if (recorded != nullptr) recorded->insert(at(name));
}

void FieldReader::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

void FieldReader::fail(std::string_view name, const json::value& found, std::string_view expected) {
  const std::string where = at(name);
  fail(invalid(fmt::format("{}: found {}, expected {}", where, describe(found), expected), where));
}

const json::value* FieldReader::any(std::string_view name) {
  accept(name);
  const json::value* value = object_.if_contains(name);
  return failed() || value == nullptr || value->is_null() ? nullptr : value;
}

std::optional<bool> FieldReader::boolean(std::string_view name) {
  const json::value* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_bool()) return value->get_bool();
  fail(name, *value, "true or false");
  return std::nullopt;
}

std::optional<int64_t> FieldReader::integer(std::string_view name, int64_t min, int64_t max) {
  const json::value* value = any(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = as_integer(*value);
  if (number && *number >= min && *number <= max) return number;
  fail(name, *value,
       max >= std::numeric_limits<int>::max() ? fmt::format("an integer of at least {}", min)
                                              : fmt::format("an integer from {} to {}", min, max));
  return std::nullopt;
}

std::optional<int> FieldReader::count(std::string_view name, int min, int max) {
  const std::optional<int64_t> number = integer(name, min, max);
  return number ? std::optional<int>(static_cast<int>(*number)) : std::nullopt;
}

std::optional<double> FieldReader::number(std::string_view name) {
  const json::value* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->to_number<double>();
    if (std::isfinite(number)) return number;
  }
  fail(name, *value, "a number");
  return std::nullopt;
}

std::optional<std::string> FieldReader::text(std::string_view name) {
  const json::value* value = any(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return std::string(value->get_string());
  fail(name, *value, "a string");
  return std::nullopt;
}

const json::object* FieldReader::object(std::string_view name) {
  const json::value* value = any(name);
  if (value == nullptr || value->is_object()) return value == nullptr ? nullptr : &value->get_object();
  fail(name, *value, "an object");
  return nullptr;
}

const json::array* FieldReader::array(std::string_view name) {
  const json::value* value = any(name);
  if (value == nullptr || value->is_array()) return value == nullptr ? nullptr : &value->get_array();
  fail(name, *value, "a list");
  return nullptr;
}

std::optional<std::vector<int32_t>> FieldReader::ids(std::string_view name) {
  const json::array* list = array(name);
  if (list == nullptr) return std::nullopt;
  std::vector<int32_t> out;
  out.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    const std::optional<int64_t> id = as_integer((*list)[i]);
    if (!id || *id < 0 || *id > std::numeric_limits<int32_t>::max()) {
      fail(fmt::format("{}[{}]", name, i), (*list)[i], "a token id");
      return std::nullopt;
    }
    out.push_back(static_cast<int32_t>(*id));
  }
  return out;
}

std::optional<std::vector<std::string>> FieldReader::texts(std::string_view name) {
  const json::array* list = array(name);
  if (list == nullptr) return std::nullopt;
  std::vector<std::string> out;
  out.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    if (!(*list)[i].is_string()) {
      fail(fmt::format("{}[{}]", name, i), (*list)[i], "a string");
      return std::nullopt;
    }
    out.emplace_back((*list)[i].get_string());
  }
  return out;
}

std::vector<std::string> FieldReader::unknown() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : object_) {
    if (std::ranges::find(seen_, std::string_view(name)) == seen_.end()) names.push_back(at(name));
  }
  names.insert(names.end(), unknown_inside_.begin(), unknown_inside_.end());
  return names;
}

void FieldReader::take_unknown(const FieldReader& inner) {
  for (std::string& name : inner.unknown()) unknown_inside_.push_back(std::move(name));
}

Result<std::string> required_text(FieldReader& fields, std::string_view name) {
  std::optional<std::string> text = fields.text(name);
  if (fields.failed()) return fields.error();
  if (!text) return invalid(fmt::format("{}: missing; expected a string", fields.at(name)), fields.at(name));
  return *std::move(text);
}

Result<const json::object*> object_with_type(const json::value& value, const std::string& at) {
  if (const json::object* object = value.if_object()) return object;
  return invalid(fmt::format("{}: found {}, expected an object with a type", at, describe(value)), at);
}

}  // namespace jewel

#include "checkpoint/pretty_json.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

namespace jewel {

namespace json = boost::json;

namespace {

void append(const json::value& value, size_t indent, std::string& out) {
  const std::string line = "\n" + std::string(indent + 2, ' ');
  const std::string last = "\n" + std::string(indent, ' ');
  if (const json::object* object = value.if_object(); object != nullptr && !object->empty()) {
    out += '{';
    std::string_view comma;
    for (const auto& [key, item] : *object) {
      out += comma;
      out += line + json::serialize(json::string(key)) + ": ";
      append(item, indent + 2, out);
      comma = ",";
    }
    out += last + '}';
  } else if (const json::array* array = value.if_array(); array != nullptr && !array->empty()) {
    out += '[';
    std::string_view comma;
    for (const json::value& item : *array) {
      out += comma;
      out += line;
      append(item, indent + 2, out);
      comma = ",";
    }
    out += last + ']';
  } else if (value.is_double()) {
    const std::string text = fmt::format("{}", value.get_double());
    out += text.find_first_of(".e") == std::string::npos ? text + ".0"
                                                         : text;  // stays a float for whoever reads it
  } else {
    out += json::serialize(value);
  }
}

}  // namespace

std::string pretty_json(const json::value& value) {
  std::string out;
  append(value, 0, out);
  return out + "\n";
}

}  // namespace jewel

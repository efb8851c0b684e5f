#include "model/json_text.h"

#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>

namespace jewel {

namespace json = boost::json;

namespace {

class Writer {
 public:
  explicit Writer(bool pretty) : pretty_(pretty) {}

  void write(const json::value& value) {
    if (const json::object* object = value.if_object(); object != nullptr && !object->empty()) {
      open('{');
      for (const auto& [key, item] : *object) {
        next();
        out += json::serialize(json::string(key));
        out += pretty_ ? ": " : ":";
        write(item);
      }
      close('}');
    } else if (const json::array* array = value.if_array(); array != nullptr && !array->empty()) {
      open('[');
      for (const json::value& item : *array) {
        next();
        write(item);
      }
      close(']');
    } else if (value.is_double() && std::isfinite(value.get_double())) {
      const std::string text = fmt::format("{}", value.get_double());
      out += text;
      if (text.find_first_of(".e") == std::string::npos) out += ".0";  // stays a float for whoever reads it
    } else {
      out += json::serialize(value);
    }
  }

  std::string out;

 private:
  void open(char bracket) {
    out += bracket;
    ++depth_;
    first_ = true;
  }
  void next() {
    if (!first_) out += ',';
    first_ = false;
    new_line();
  }
  void close(char bracket) {
    --depth_;
    new_line();
    out += bracket;
    first_ = false;
  }
  void new_line() {
    if (!pretty_) return;
    out += '\n';
    out.append(2 * depth_, ' ');
  }

  bool pretty_;
  bool first_ = true;
  size_t depth_ = 0;
};

}  // namespace

std::string json_line(const json::value& value) {
  Writer writer(false);
  writer.write(value);
  return std::move(writer.out);
}

std::string pretty_json(const json::value& value) {
  Writer writer(true);
  writer.write(value);
  return std::move(writer.out) + "\n";
}

}  // namespace jewel

// JsonReader: typed reads from a JSON object, with errors that name the file and the key.
//
//   JsonReader text(root, "config.json", "text_config");
//   int hidden = text.required_int("hidden_size", 64, 1 << 20);
//   ...
//   if (text.failed()) return text.error();
//
// The first error is kept and later reads return harmless values, so that a long list of fields reads as one.
// A key that is absent or null takes the default.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace jewel {

class JsonReader {
 public:
  // `path` prefixes keys in messages: "text_config" gives "text_config.hidden_size".
  JsonReader(const boost::json::object& object, std::string file, std::string path = {})
      : object_(object), file_(std::move(file)), path_(std::move(path)) {}

  int64_t required_int(std::string_view key, int64_t min, int64_t max);
  int64_t optional_int(std::string_view key, int64_t fallback, int64_t min, int64_t max);
  double optional_number(std::string_view key, double fallback, double min, double max);
  bool optional_bool(std::string_view key, bool fallback);
  std::string optional_string(std::string_view key, std::string_view fallback);
  const boost::json::object* optional_object(std::string_view key);
  const boost::json::array* optional_array(std::string_view key);
  bool present(std::string_view key) const;

  // "config.json: text_config.hidden_size"
  std::string where(std::string_view key) const;
  void fail(Error error);
  void fail(std::string_view key, std::string_view what);

  bool failed() const { return error_.has_value(); }
  Error error() const { return *error_; }
  const std::string& file() const { return file_; }

 private:
  const boost::json::value* find(std::string_view key) const;  // nullptr when absent or null
  int64_t int_in_range(std::string_view key, const boost::json::value& value, int64_t min, int64_t max);

  const boost::json::object& object_;
  std::string file_;
  std::string path_;
  std::optional<Error> error_;
};

// What a JSON value is, for messages: "a string", "an array", "3.5".
std::string describe(const boost::json::value& value);

// Parses a whole text whose top level is an object; at most 128 levels deep. `file` names the source in
// messages.
Result<boost::json::object> parse_json_object(std::string_view text, const std::string& file);

}  // namespace jewel

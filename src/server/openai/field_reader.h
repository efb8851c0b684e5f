// FieldReader: typed reads from an object of a request. Errors carry the JSON path for OpenAI's `param`:
// "messages[2].content[0].image_url.url". null is as good as absent.
//
// The first error is kept and later reads return nothing, so that a list of fields reads as one. It remembers
// what was asked for: what is left over was unknown to us. One thread; the object outlives the reader.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace jewel {

class FieldReader {
 public:
  // `path` is the object's own: "" for the body, "stream_options" for that one.
  explicit FieldReader(const boost::json::object& object, std::string path = {})
      : object_(object), path_(std::move(path)) {}

  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max);
  std::optional<int> count(std::string_view name, int min, int max = std::numeric_limits<int>::max());
  std::optional<double> number(std::string_view name);
  std::optional<std::string> text(std::string_view name);
  const boost::json::object* object(std::string_view name);
  const boost::json::array* array(std::string_view name);
  const boost::json::value* any(std::string_view name);  // nullptr when absent or null
  // The name is known and has no meaning here.
  void accept(std::string_view name);

  // Of integers, such as token ids, and of strings.
  std::optional<std::vector<int32_t>> ids(std::string_view name);
  std::optional<std::vector<std::string>> texts(std::string_view name);

  std::string at(std::string_view name) const;
  void fail(std::string_view name, const boost::json::value& found, std::string_view expected);
  void fail(Error error);
  bool failed() const { return error_.has_value(); }
  const Error& error() const { return *error_; }

  // Names in the object that nobody asked for.
  std::vector<std::string> unknown() const;

  // From here on, whatever readers on this thread ask for goes into `names`, with its path; nullptr: nowhere.
  // The API's document is held to its readers by this.
  static void record_into(std::set<std::string>* names);
  // Those of an object inside this one count as this one's.
  void take_unknown(const FieldReader& inner);

 private:
  const boost::json::object& object_;
  const std::string path_;
  std::vector<std::string> seen_;
  std::vector<std::string> unknown_inside_;
  std::optional<Error> error_;
};

// An integer, also one written as 3.0; nullopt for anything else.
std::optional<int64_t> as_integer(const boost::json::value& value);

// A text that has to be there.
Result<std::string> required_text(FieldReader& fields, std::string_view name);

// An element of a list of typed objects; `at` is its place.
Result<const boost::json::object*> object_with_type(const boost::json::value& value, const std::string& at);

}  // namespace jewel

#include "text/grammar_tags.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <utility>
#include <vector>

#include "text/grammar.h"
#include "text/grammar_gbnf.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxDepth = 16;
constexpr size_t kMaxTags = 256;
constexpr size_t kMaxJsonDepth = 128;

struct Tag {
  std::string begin;
  std::string content;  // a rule; empty: any text up to the end
  std::vector<std::string> ends;
};

class TagWriter {
 public:
  Result<std::string> legacy(const json::object& root) {
    JEWEL_ASSIGN(const json::array* structures, list(root, "structures", "structures"));
    std::vector<Tag> tags;
    for (size_t i = 0; i < structures->size(); ++i) {
      const std::string where = fmt::format("structures[{}]", i);
      const json::object* object = (*structures)[i].if_object();
      if (object == nullptr) return expected(where, "an object with begin, schema and end");
      const json::value* schema = object->if_contains("schema");
      if (schema == nullptr) return expected(where + ".schema", "a JSON schema");
      Tag tag{.content = "%json " + (schema->is_string() ? std::string(schema->get_string())
                                                         : json::serialize(*schema))};
      JEWEL_ASSIGN(tag.begin, text(*object, "begin", where));
      JEWEL_ASSIGN(tag.ends, end_texts(*object, where));
      tag.content = rule(tag.content);
      tags.push_back(std::move(tag));
    }
    JEWEL_ASSIGN(const std::string body,
                 triggered(root, tags, "", /*at_least_one=*/false, /*stop_after_first=*/false));
    return finish(body);
  }

  Result<std::string> format(const json::value& format_value) {
    JEWEL_ASSIGN(const std::string body, any(format_value, "format", 0));
    return finish(body);
  }

 private:
  static Error expected(const std::string& where, std::string_view what) {
    return invalid(fmt::format("{}: expected {}", where, what));
  }
  static std::string at(const std::string& where, std::string_view name) {
    return where.empty() ? std::string(name) : fmt::format("{}.{}", where, name);
  }

  std::string finish(const std::string& body) { return fmt::format("start: {}\n{}", body, rules_); }

  // A rule of its own; returns its name.
  std::string rule(const std::string& body) {
    const std::string name = fmt::format("x{}", n_++);
    rules_ += fmt::format("{}: {}\n", name, body);
    return name;
  }
  std::string terminal(const std::string& body) {
    const std::string name = fmt::format("X{}", n_++);
    rules_ += fmt::format("{}: {}\n", name, body);
    return name;
  }
  // Any text; free of the words that lazy lexemes beside it look for.
  std::string any_text() {
    if (!std::exchange(has_text_, true)) rules_ += "TEXT: /(?s:.)*/\n";
    return "TEXT";
  }
  // Text that ends where `end` is first found.
  std::string text_until(const std::string& end) {
    const std::string name = fmt::format("x{}", n_++);
    rules_ += fmt::format("{}[lazy]: {} {}\n", name, any_text(), lark_string(end));
    return name;
  }

  static Result<const json::array*> list(const json::object& object, std::string_view name,
                                         const std::string& where) {
    const json::value* value = object.if_contains(name);
    if (value == nullptr || !value->is_array() || value->get_array().empty())
      return expected(where, "a list");
    if (value->get_array().size() > kMaxTags)
      return too_large(fmt::format("{}: found {} entries, at most {} are taken", where,
                                   value->get_array().size(), kMaxTags));
    return &value->get_array();
  }

  static Result<std::string> text(const json::object& object, std::string_view name,
                                  const std::string& where) {
    const json::value* value = object.if_contains(name);
    if (value == nullptr || !value->is_string()) return expected(at(where, name), "a text");
    return std::string(value->get_string());
  }

  static bool flag(const json::object& object, std::string_view name) {
    const json::value* value = object.if_contains(name);
    return value != nullptr && value->is_bool() && value->get_bool();
  }

  // A text, or a list of texts of which any may be.
  static Result<std::vector<std::string>> end_texts(const json::object& object, const std::string& where) {
    const json::value* value = object.if_contains("end");
    std::vector<std::string> ends;
    if (value != nullptr && value->is_array()) {
      for (const json::value& one : value->get_array()) {
        if (!one.is_string()) return expected(at(where, "end"), "a text or a list of texts");
        ends.emplace_back(one.get_string());
      }
    } else {
      JEWEL_ASSIGN(std::string one, text(object, "end", where));
      ends.push_back(std::move(one));
    }
    if (ends.empty()) return expected(at(where, "end"), "at least one text");
    return ends;
  }

  static std::string either(const std::vector<std::string>& parts) {
    std::string out;
    for (const std::string& part : parts) out += (out.empty() ? "" : " | ") + part;
    return parts.size() == 1 ? out : "(" + out + ")";
  }

  // What follows `said` characters of the tag's beginning.
  std::string rest_of(const Tag& tag, size_t said) {
    std::string out;
    if (said < tag.begin.size()) out = lark_string(std::string_view(tag.begin).substr(said)) + " ";
    std::vector<std::string> ends;
    ends.reserve(tag.ends.size());
    if (tag.content.empty()) {
      for (const std::string& end : tag.ends) ends.push_back(end.empty() ? any_text() : text_until(end));
      return out + either(ends);
    }
    out += tag.content;
    for (const std::string& end : tag.ends) ends.push_back(end.empty() ? "\"\"" : lark_string(end));
    return out + " " + either(ends);
  }

  Result<Tag> tag_of(const json::object& object, const std::string& where, int depth) {
    Tag tag;
    JEWEL_ASSIGN(tag.begin, text(object, "begin", where));
    JEWEL_ASSIGN(tag.ends, end_texts(object, where));
    const json::value* content = object.if_contains("content");
    if (content == nullptr || !content->is_object()) return expected(at(where, "content"), "a format");
    const json::value* type = content->get_object().if_contains("type");
    if (type != nullptr && type->is_string() && type->get_string() == "any_text") return tag;
    JEWEL_ASSIGN(tag.content, any(*content, at(where, "content"), depth + 1));
    return tag;
  }

  Result<std::vector<Tag>> tags_of(const json::object& object, const std::string& where, int depth) {
    JEWEL_ASSIGN(const json::array* entries, list(object, "tags", at(where, "tags")));
    std::vector<Tag> tags;
    for (size_t i = 0; i < entries->size(); ++i) {
      const std::string place = fmt::format("{}[{}]", at(where, "tags"), i);
      const json::object* entry = (*entries)[i].if_object();
      if (entry == nullptr) return expected(place, "a tag");
      JEWEL_ASSIGN(Tag tag, tag_of(*entry, place, depth));
      tags.push_back(std::move(tag));
    }
    return tags;
  }

  Result<std::string> triggered(const json::object& object, const std::vector<Tag>& tags,
                                const std::string& where, bool at_least_one, bool stop_after_first) {
    JEWEL_ASSIGN(const json::array* triggers, list(object, "triggers", at(where, "triggers")));
    std::vector<std::string> segments;
    std::vector<bool> reached(tags.size());
    for (size_t i = 0; i < triggers->size(); ++i) {
      const std::string place = fmt::format("{}[{}]", at(where, "triggers"), i);
      const json::string* trigger = (*triggers)[i].if_string();
      if (trigger == nullptr || trigger->empty()) return expected(place, "a text");
      const std::string word(*trigger);
      std::vector<std::string> rests;
      for (size_t k = 0; k < tags.size(); ++k) {
        if (!tags[k].begin.starts_with(word)) continue;
        reached[k] = true;
        rests.push_back(rest_of(tags[k], word.size()));
      }
      if (rests.empty()) return invalid(fmt::format("{}: no tag begins with '{}'", place, word));
      segments.push_back(rule(fmt::format("{} {}", text_until(word), either(rests))));
    }
    for (size_t k = 0; k < tags.size(); ++k) {
      if (!reached[k])
        return invalid(
            fmt::format("{}: the tag '{}' begins with none of them", at(where, "triggers"), tags[k].begin));
    }
    const std::string segment = rule(either(segments));
    std::vector<std::string> whole;
    whole.reserve(tags.size());
    if (at_least_one) {  // the answer begins with a tag
      for (const Tag& tag : tags) whole.push_back(rest_of(tag, 0));
      const std::string first = rule(either(whole));
      return stop_after_first ? first : fmt::format("{} {}* {}", first, segment, any_text());
    }
    return stop_after_first ? rule(fmt::format("{} | {}", segment, any_text()))
                            : rule(fmt::format("{}* {}", segment, any_text()));
  }

  Result<std::string> separated(const json::object& object, const std::string& where, int depth) {
    JEWEL_ASSIGN(const std::vector<Tag> tags, tags_of(object, where, depth));
    JEWEL_ASSIGN(const std::string separator, text(object, "separator", where));
    std::vector<std::string> alternatives;
    alternatives.reserve(tags.size());
    for (const Tag& tag : tags) alternatives.push_back(rest_of(tag, 0));
    const std::string one = rule(either(alternatives));
    const std::string between = separator.empty() ? "" : lark_string(separator) + " ";
    const std::string all =
        flag(object, "stop_after_first") ? one : fmt::format("{} ({}{})*", one, between, one);
    return rule(flag(object, "at_least_one") ? all : fmt::format("({})?", all));
  }

  Result<std::string> several(const json::object& object, const std::string& where, int depth, bool choice) {
    JEWEL_ASSIGN(const json::array* elements, list(object, "elements", at(where, "elements")));
    std::string out;
    for (size_t i = 0; i < elements->size(); ++i) {
      JEWEL_ASSIGN(const std::string part,
                   any((*elements)[i], fmt::format("{}[{}]", at(where, "elements"), i), depth + 1));
      out += (out.empty() ? "" : choice ? " | " : " ") + part;
    }
    return rule(out);
  }

  Result<std::string> any(const json::value& value, const std::string& where, int depth) {
    if (depth > kMaxDepth) return too_large(fmt::format("{}: nested deeper than {}", where, kMaxDepth));
    const json::object* object = value.if_object();
    if (object == nullptr) return expected(where, "an object with a type");
    JEWEL_ASSIGN(const std::string type, text(*object, "type", where));
    if (type == "const_string") {
      JEWEL_ASSIGN(const std::string constant, text(*object, "value", where));
      return lark_string(constant);
    }
    if (type == "json_schema") {
      const json::value* schema = object->if_contains("json_schema");
      if (schema == nullptr || !(schema->is_object() || schema->is_bool()))
        return expected(at(where, "json_schema"), "a JSON schema");
      return rule("%json " + (schema->is_bool() ? "{}" : json::serialize(*schema)));
    }
    if (type == "regex") {
      JEWEL_ASSIGN(const std::string pattern, text(*object, "pattern", where));
      return terminal(fmt::format("/{}/", lark_regex(pattern)));
    }
    if (type == "grammar") {
      JEWEL_ASSIGN(std::string grammar, text(*object, "grammar", where));
      if (is_gbnf(grammar)) {
        auto converted = lark_from_gbnf(grammar);
        if (!converted.ok())
          return invalid(fmt::format("{}: {}", at(where, "grammar"), converted.error().message));
        grammar = *std::move(converted);
      }
      return rule(fmt::format("%lark {{\n{}\n}}", grammar));
    }
    if (type == "any_text") return any_text();
    if (type == "sequence") return several(*object, where, depth, /*choice=*/false);
    if (type == "or") return several(*object, where, depth, /*choice=*/true);
    if (type == "tag") {
      JEWEL_ASSIGN(const Tag tag, tag_of(*object, where, depth));
      return rule(rest_of(tag, 0));
    }
    if (type == "triggered_tags") {
      JEWEL_ASSIGN(const std::vector<Tag> tags, tags_of(*object, where, depth));
      return triggered(*object, tags, where, flag(*object, "at_least_one"),
                       flag(*object, "stop_after_first"));
    }
    if (type == "tags_with_separator") return separated(*object, where, depth);
    return unsupported(
        fmt::format("{}: found '{}', expected const_string, json_schema, regex, grammar, any_text, "
                    "sequence, or, tag, triggered_tags or tags_with_separator",
                    at(where, "type"), type));
  }

  std::string rules_;
  int n_ = 0;
  bool has_text_ = false;
};

}  // namespace

Result<std::string> lark_from_structural_tag(std::string_view text) {
  json::parse_options options;
  options.max_depth = kMaxJsonDepth;
  boost::system::error_code error;
  const json::value root = json::parse(text, error, {}, options);
  if (error) return invalid(fmt::format("not JSON: {}", error.message()));
  if (root.is_object()) {
    const json::object& object = root.get_object();
    if (const json::value* format = object.if_contains("format")) return TagWriter().format(*format);
    if (object.contains("structures")) return TagWriter().legacy(object);
  }
  return invalid(R"(expected "format", or "structures" with "triggers")");
}

}  // namespace jewel

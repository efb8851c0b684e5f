#include "text/grammar_tools.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <map>
#include <utility>
#include <vector>

#include "text/grammar.h"

namespace jewel {

namespace json = boost::json;

namespace {

constexpr int kMaxDepth = 32;       // of schemas inside schemas
constexpr size_t kMaxRules = 8000;  // of the whole grammar
constexpr size_t kMaxTools = 128;
constexpr const char* kComposing[] = {"$ref", "allOf", "anyOf", "oneOf"};

// Well-formed values of any type, and the terminals that typed ones use. Numbers have an end, so that a model
// cannot write digits for ever.
constexpr std::string_view kCommonRules = R"(
any: string | NUMBER | "true" | "false" | "null" | any_list | any_object
any_list: "[" (any ("," any)*)? "]"
any_object: "{" (any_pair ("," any_pair)*)? "}"
any_pair: KEY ":" any
KEY: /[A-Za-z_][A-Za-z0-9_.\-]{0,63}/
INTEGER: /-?(0|[1-9][0-9]{0,17})/
NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/
TEXT: /(.|\n)+/
)";

bool is_bare_key(std::string_view key) {
  return !key.empty() && std::ranges::all_of(key, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '-' || c == '.' || c == '$' || static_cast<unsigned char>(c) >= 0x80;
  });
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  }
  return out;
}

class GrammarWriter {
 public:
  explicit GrammarWriter(const SpecialIds& special) : special_(special), out_(kCommonRules) {
    out_ += fmt::format("string: {} TEXT? {}\n", quote(), quote());
  }

  // The rule of a function's arguments, braces included.
  Result<std::string> arguments(const json::value* parameters, const std::string& where) {
    if (parameters == nullptr || parameters->is_null()) return std::string("any_object");
    root_ = parameters;
    references_.clear();
    const json::object* object = parameters->if_object();
    if (object == nullptr) return invalid(fmt::format("{}: expected a JSON schema", where), where);
    const bool composed =
        std::ranges::any_of(kComposing, [&](const char* keyword) { return object->contains(keyword); });
    return composed ? value(*parameters, where, 0) : object_rule(*object, where, 0);
  }

  std::string token(int32_t id) const { return fmt::format("<[{}]>", id); }
  std::string rule(const std::string& body) {
    ++rules_;
    std::string name = fmt::format("r{}", rules_);
    out_ += fmt::format("{}: {}\n", name, body);
    return name;
  }
  void line(std::string_view text) { out_ += fmt::format("{}\n", text); }
  std::string take() { return std::move(out_); }

 private:
  std::string quote() const { return token(special_.quote); }
  std::string quoted(const std::string& inside) const {
    return fmt::format("{} {} {}", quote(), inside, quote());
  }
  std::string terminal(const std::string& body) {
    ++rules_;
    std::string name = fmt::format("T{}", rules_);
    out_ += fmt::format("{}: {}\n", name, body);
    return name;
  }

  // The name of a rule, or an expression in parentheses, for values of a schema.
  Result<std::string> value(const json::value& schema, const std::string& where, int depth) {
    if (depth > kMaxDepth)
      return too_large(fmt::format("{}: nested deeper than {} schemas", where, kMaxDepth), where);
    if (rules_ > kMaxRules)
      return too_large(fmt::format("{}: the tools need more than {} grammar rules", where, kMaxRules), where);
    if (schema.is_bool() && schema.get_bool()) return std::string("any");
    const json::object* object = schema.if_object();
    if (object == nullptr)
      return invalid(fmt::format("{}: expected a JSON schema, an object or true", where), where);
    JEWEL_ASSIGN(std::string body, without_null(*object, where, depth));
    const json::value* nullable = object->if_contains("nullable");
    if (nullable != nullptr && nullable->is_bool() && nullable->get_bool())
      body = fmt::format("({} | \"null\")", body);
    return body;
  }

  Result<std::string> without_null(const json::object& schema, const std::string& where, int depth) {
    if (const json::value* reference = schema.if_contains("$ref"))
      return referenced(*reference, where, depth);
    if (const json::value* constant = schema.if_contains("const")) return literal(*constant, where, depth);
    if (const json::value* options = schema.if_contains("enum")) {
      const json::array* values = options->if_array();
      if (values == nullptr || values->empty())
        return invalid(fmt::format("{}.enum: expected a list with at least one value", where), where);
      return alternatives(*values, where, depth, &GrammarWriter::literal);
    }
    for (const char* key : {"anyOf", "oneOf"}) {
      if (const json::value* options = schema.if_contains(key)) {
        const json::array* schemas = options->if_array();
        if (schemas == nullptr || schemas->empty())
          return invalid(fmt::format("{}.{}: expected a list with at least one schema", where, key), where);
        return alternatives(*schemas, fmt::format("{}.{}", where, key), depth, &GrammarWriter::value);
      }
    }
    if (const json::value* all = schema.if_contains("allOf")) return merged(schema, *all, where, depth);
    const json::value* type = schema.if_contains("type");
    if (type != nullptr && type->is_array()) {
      std::string body;
      for (const json::value& one : type->get_array()) {
        JEWEL_ASSIGN(const std::string part, typed(schema, one, where, depth));
        body += (body.empty() ? "" : " | ") + part;
      }
      if (body.empty()) return invalid(fmt::format("{}.type: an empty list", where), where);
      return fmt::format("({})", body);
    }
    if (type != nullptr) return typed(schema, *type, where, depth);
    if (schema.contains("properties")) return object_rule(schema, where, depth);
    if (schema.contains("items")) return list_rule(schema, where, depth);
    return std::string("any");
  }

  Result<std::string> alternatives(const json::array& values, const std::string& where, int depth,
                                   Result<std::string> (GrammarWriter::*of)(const json::value&,
                                                                            const std::string&, int)) {
    std::string body;
    for (size_t i = 0; i < values.size(); ++i) {
      JEWEL_ASSIGN(const std::string part,
                   (this->*of)(values[i], fmt::format("{}[{}]", where, i), depth + 1));
      body += (body.empty() ? "" : " | ") + part;
    }
    return rule(body);
  }

  Result<std::string> typed(const json::object& schema, const json::value& type, const std::string& where,
                            int depth) {
    const std::string name = type.is_string() ? lower(std::string_view(type.get_string())) : std::string();
    if (name == "string") return string_rule(schema, where);
    if (name == "integer" || name == "number") return number_rule(schema, name);
    if (name == "boolean") return std::string("(\"true\" | \"false\")");
    if (name == "null") return std::string("\"null\"");
    if (name == "array") return list_rule(schema, where, depth);
    if (name == "object") return object_rule(schema, where, depth);
    return invalid(fmt::format("{}.type: found {}, expected string, integer, number, boolean, null, array or "
                               "object",
                               where, json::serialize(type)),
                   where);
  }

  // A number of the schema; `fallback` when it is not there or no count.
  static int64_t count(const json::object& schema, const char* key, int64_t fallback) {
    const json::value* found = schema.if_contains(key);
    if (found == nullptr || !found->is_number()) return fallback;
    boost::system::error_code not_exact;
    const auto number = found->to_number<int64_t>(not_exact);
    return not_exact || number < 0 ? fallback : number;
  }

  Result<std::string> string_rule(const json::object& schema, const std::string& where) {
    if (const json::value* pattern = schema.if_contains("pattern");
        pattern != nullptr && pattern->is_string()) {
      std::string_view text = pattern->get_string();
      if (text.ends_with('\\')) return invalid(fmt::format("{}.pattern: ends in a backslash", where), where);
      const bool from_start = text.starts_with('^');
      const bool to_end = text.ends_with('$') && !text.ends_with("\\$");
      if (from_start) text.remove_prefix(1);
      if (to_end && !text.empty()) text.remove_suffix(1);
      return quoted(terminal(fmt::format("/{}({}){}/", from_start ? "" : "(.|\\n)*", lark_regex(text),
                                         to_end ? "" : "(.|\\n)*")));
    }
    const int64_t shortest = count(schema, "minLength", 0);
    const int64_t longest = count(schema, "maxLength", -1);
    if (shortest == 0 && longest < 0) return std::string("string");
    if (longest >= 0 && longest < shortest)
      return invalid(fmt::format("{}: maxLength {} is less than minLength {}", where, longest, shortest),
                     where);
    if (longest == 0) return fmt::format("({} {})", quote(), quote());
    const std::string upper = longest < 0 ? "" : std::to_string(longest);
    const std::string text =
        terminal(fmt::format("/(.|\\n){{{},{}}}/", std::max<int64_t>(shortest, 1), upper));
    return fmt::format("({})", quoted(shortest == 0 ? text + "?" : text));
  }

  // Bounds are llguidance's work: a number is written as in JSON.
  static std::string number_rule(const json::object& schema, const std::string& type) {
    json::object bounds{{"type", type}};
    for (const char* key : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}) {
      const json::value* found = schema.if_contains(key);
      if (found != nullptr && found->is_number()) bounds[key] = *found;
    }
    if (bounds.size() == 1) return type == "integer" ? "INTEGER" : "NUMBER";
    bounds["x-guidance"] = json::object{{"whitespace_flexible", false}};
    return fmt::format("%json {}", json::serialize(bounds));
  }

  Result<std::string> list_rule(const json::object& schema, const std::string& where, int depth) {
    std::string item = "any";
    if (const json::value* items = schema.if_contains("items")) {
      JEWEL_ASSIGN(item, value(*items, where + ".items", depth + 1));
    }
    item = rule(item);
    const int64_t least = count(schema, "minItems", 0);
    const int64_t most = count(schema, "maxItems", -1);
    if (most >= 0 && most < least)
      return invalid(fmt::format("{}: maxItems {} is less than minItems {}", where, most, least), where);
    if (most == 0) return std::string("\"[]\"");
    const std::string more = fmt::format("(\",\" {}){{{},{}}}", item, std::max<int64_t>(least - 1, 0),
                                         most < 0 ? "" : std::to_string(most - 1));
    const std::string filled =
        fmt::format("{} {}", item, least <= 1 && most < 0 ? fmt::format("(\",\" {})*", item) : more);
    return rule(fmt::format("\"[\" {} \"]\"", least == 0 ? fmt::format("({})?", filled) : filled));
  }

  Result<std::string> object_rule(const json::object& schema, const std::string& where, int depth) {
    const json::value* found = schema.if_contains("properties");
    const json::object* properties = found != nullptr ? found->if_object() : nullptr;
    if (found != nullptr && properties == nullptr)
      return invalid(fmt::format("{}.properties: expected an object", where), where);
    const json::value* additional = schema.if_contains("additionalProperties");
    const bool closed = additional != nullptr && additional->is_bool() && !additional->get_bool();
    const bool open = !closed && (additional != nullptr || properties == nullptr || properties->empty());
    std::string others;
    if (open) {
      std::string other = "any";
      if (additional != nullptr && additional->is_object()) {
        JEWEL_ASSIGN(other, value(*additional, where + ".additionalProperties", depth + 1));
      }
      others = rule(fmt::format("KEY \":\" {}", other));
    }
    std::vector<std::string> required;
    if (const json::value* names = schema.if_contains("required"); names != nullptr && names->is_array()) {
      for (const json::value& name : names->get_array()) {
        if (name.is_string()) required.emplace_back(name.get_string());
      }
    }
    std::vector<std::string_view> names;
    if (properties != nullptr) {
      for (const auto& property : *properties) names.push_back(property.key());
    }
    std::ranges::sort(names, {}, [](std::string_view name) { return std::pair(lower(name), name); });
    for (const std::string& name : required) {
      if (std::ranges::find(names, std::string_view(name)) == names.end() && !open)
        return invalid(fmt::format("{}.required: '{}' is not among the properties", where, name), where);
    }
    // Two rules for what may follow property i, by whether a comma is due; written from the last to the
    // first.
    std::string fresh = open ? rule(fmt::format("({0} (\",\" {0})*)?", others)) : rule("\"\"");
    std::string due = open ? rule(fmt::format("(\",\" {})*", others)) : rule("\"\"");
    for (size_t i = names.size(); i-- > 0;) {
      const std::string_view name = names[i];
      JEWEL_ASSIGN(const std::string inner,
                   value(properties->at(name), fmt::format("{}.properties.{}", where, name), depth + 1));
      const std::string key = is_bare_key(name) ? lark_string(name) : quoted(lark_string(name));
      const std::string pair = rule(fmt::format("{} \":\" {}", key, inner));
      const bool must = std::ranges::find(required, name) != required.end();
      const std::string first = fmt::format("{} {}", pair, due);
      const std::string next = fmt::format("\",\" {} {}", pair, due);
      fresh = rule(must ? first : fmt::format("{} | {}", first, fresh));
      due = rule(must ? next : fmt::format("{} | {}", next, due));
    }
    return rule(fmt::format("\"{{\" {} \"}}\"", fresh));
  }

  // allOf: objects put together; what else stands there is passed over unless it is all there is.
  Result<std::string> merged(const json::object& schema, const json::value& all, const std::string& where,
                             int depth) {
    const json::array* parts = all.if_array();
    if (parts == nullptr || parts->empty())
      return invalid(fmt::format("{}.allOf: expected a list with at least one schema", where), where);
    if (parts->size() == 1 && !schema.contains("properties"))
      return value(parts->front(), where + ".allOf[0]", depth + 1);
    json::object together = schema;
    together.erase("allOf");
    for (const json::value& part : *parts) {
      const json::object* object = part.if_object();
      if (object == nullptr || object->contains("$ref"))
        return unsupported(fmt::format("{}.allOf: only objects written out can be put together", where),
                           where);
      for (const auto& [key, one] : *object) {
        json::value& target = together[key];
        if (one.is_object() && target.is_object()) {
          for (const auto& [name, inner] : one.get_object()) target.get_object()[name] = inner;
        } else if (one.is_array() && target.is_array()) {
          target.get_array().insert(target.get_array().end(), one.get_array().begin(), one.get_array().end());
        } else {
          target = one;
        }
      }
    }
    return value(together, where, depth + 1);
  }

  Result<std::string> referenced(const json::value& reference, const std::string& where, int depth) {
    if (!reference.is_string() || !reference.get_string().starts_with('#'))
      return unsupported(fmt::format("{}.$ref: found {}, expected a place in the same schema (\"#/$defs/…\")",
                                     where, json::serialize(reference)),
                         where);
    const std::string path(reference.get_string().subview(1));
    if (const auto known = references_.find(path); known != references_.end()) return known->second;
    boost::system::error_code missing;
    const json::value* target = path.empty() ? root_ : root_->find_pointer(path, missing);
    if (missing || target == nullptr)
      return invalid(fmt::format("{}.$ref: '#{}' does not exist in the schema", where, path), where);
    // The name is known before the rule is, so that a schema may contain itself.
    const std::string name = fmt::format("ref{}", references_made_++);
    references_[path] = name;
    JEWEL_ASSIGN(const std::string body, value(*target, where, depth + 1));
    if (body == name) return invalid(fmt::format("{}.$ref: refers to itself", where), where);
    out_ += fmt::format("{}: {}\n", name, body);
    return name;
  }

  Result<std::string> literal(const json::value& constant, const std::string& where, int depth) {
    if (depth > kMaxDepth)
      return too_large(fmt::format("{}: nested deeper than {}", where, kMaxDepth), where);
    if (const json::string* text = constant.if_string())
      return fmt::format("({})", text->empty() ? quote() + " " + quote() : quoted(lark_string(*text)));
    if (const json::array* items = constant.if_array()) {
      std::string body = "\"[\"";
      for (size_t i = 0; i < items->size(); ++i) {
        JEWEL_ASSIGN(const std::string item, literal((*items)[i], where, depth + 1));
        body += (i > 0 ? " \",\" " : " ") + item;
      }
      return fmt::format("({} \"]\")", body);
    }
    if (const json::object* object = constant.if_object()) {
      std::string body = "\"{\"";
      bool first = true;
      for (const auto& [key, inner] : *object) {
        JEWEL_ASSIGN(const std::string item, literal(inner, where, depth + 1));
        const std::string name = is_bare_key(key) ? lark_string(key) : quoted(lark_string(key));
        body += fmt::format("{} {} \":\" {}", std::exchange(first, false) ? "" : " \",\"", name, item);
      }
      return fmt::format("({} \"}}\")", body);
    }
    return lark_string(json::serialize(constant));
  }

  const SpecialIds& special_;
  std::string out_;
  size_t rules_ = 0;
  int references_made_ = 0;
  const json::value* root_ = nullptr;              // the schema that references point into
  std::map<std::string, std::string> references_;  // path to rule, of this root
};

Result<std::string> function_rule(GrammarWriter& writer, const json::value& tool, const std::string& where,
                                  const ToolGrammar& options, bool& wanted) {
  const json::object* object = tool.if_object();
  const json::value* found = object != nullptr ? object->if_contains("function") : nullptr;
  const json::object* function = found != nullptr ? found->if_object() : nullptr;
  const json::value* name = function != nullptr ? function->if_contains("name") : nullptr;
  if (name == nullptr || !name->is_string() || name->get_string().empty()) {
    return invalid(fmt::format("{}.function.name: missing, expected {{\"type\": \"function\", \"function\": "
                               "{{\"name\": …}}}}",
                               where),
                   where + ".function.name");
  }
  wanted = options.only.empty() || options.only == std::string_view(name->get_string());
  if (!wanted) return std::string();
  const json::value* strict = function->if_contains("strict");
  const bool held = !options.strict_only || (strict != nullptr && strict->is_bool() && strict->get_bool());
  JEWEL_ASSIGN(
      const std::string arguments,
      writer.arguments(held ? function->if_contains("parameters") : nullptr, where + ".function.parameters"));
  return writer.rule(fmt::format("{} {}", lark_string("call:" + std::string(name->get_string())), arguments));
}

}  // namespace

Result<std::string> tool_call_grammar(const json::array& tools, const ToolGrammar& options,
                                      const SpecialIds& special) {
  if (special.tool_call_open < 0 || special.tool_call_close < 0 || special.quote < 0)
    return unsupported("this model's vocabulary has no tool calls; leave tools out", "tools");
  if (tools.size() > kMaxTools)
    return too_large(fmt::format("tools: found {}, at most {} are taken", tools.size(), kMaxTools), "tools");
  GrammarWriter writer(special);
  std::string functions;
  for (size_t i = 0; i < tools.size(); ++i) {
    bool wanted = false;
    JEWEL_ASSIGN(const std::string rule,
                 function_rule(writer, tools[i], fmt::format("tools[{}]", i), options, wanted));
    if (wanted) functions += (functions.empty() ? "" : " | ") + rule;
  }
  if (functions.empty()) {
    return invalid(options.only.empty()
                       ? "tools: none is declared, and the answer must be a call"
                       : fmt::format("tool_choice: the function '{}' is not among the tools", options.only),
                   "tool_choice");
  }
  writer.line(fmt::format("function: {}", functions));
  writer.line(fmt::format("call: {} function {}", writer.token(special.tool_call_open),
                          writer.token(special.tool_call_close)));
  writer.line(options.parallel ? "calls: call+" : "calls: call");
  if (options.calls == ToolGrammar::Calls::kMust) {
    writer.line("start: calls");
  } else if (options.content.empty()) {
    writer.line("start: TEXT? calls?");
  } else {
    writer.line("start: calls | content");
    writer.line(fmt::format("content: {}", options.content));
  }
  return writer.take();
}

}  // namespace jewel

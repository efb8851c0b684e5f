#include "text/grammar_gbnf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace jewel {
namespace {

constexpr size_t kMaxBytes = 64 << 10;
constexpr int kMaxDepth = 64;
constexpr uint32_t kMaxRepeat = 10'000;
constexpr uint32_t kLastCharacter = 0x10ffff;

struct Range {
  uint32_t first = 0;
  uint32_t last = 0;
};

struct Node {
  enum class Kind : uint8_t { kLiteral, kClass, kAny, kRule, kSequence, kChoice, kRepeat };
  Kind kind = Kind::kSequence;
  std::vector<Range> characters;  // kLiteral: one after the other; kClass: any of them
  bool negated = false;           // kClass
  size_t rule = 0;                // kRule: its number
  int line = 0;                   // kRule: where it is named
  std::vector<Node> parts;        // kSequence, kChoice; kRepeat: one
  uint32_t min = 0;               // kRepeat
  std::optional<uint32_t> max;    // kRepeat; none: without end
};

struct Rule {
  std::string name;
  std::optional<Node> body;
  int line = 0;  // where it was first named
};

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool is_name(char c) {
  return is_name_start(c) || (c >= '0' && c <= '9') || c == '-' || c == '.';
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<std::vector<Rule>> rules() {
    skip_space();
    while (at_ < text_.size()) {
      const std::string name = rule_ahead();
      if (name.empty()) return wrong("expected a rule, as name ::= …");
      at_ = text_.find("::=", at_) + 3;
      const size_t number = rule(name);
      if (rules_[number].body) return wrong(fmt::format("the rule '{}' is there twice", name));
      JEWEL_ASSIGN(Node body, choice(0));
      rules_[number].body = std::move(body);
      if (at_ < text_.size() && rule_ahead().empty()) return wrong("expected the end of the rule");
    }
    for (const Rule& rule : rules_) {
      if (!rule.body)
        return invalid(fmt::format("line {}: the rule '{}' is not defined", rule.line, rule.name));
    }
    return std::move(rules_);
  }

  std::optional<size_t> find(std::string_view name) const {
    const auto it = numbers_.find(std::string(name));
    return it == numbers_.end() ? std::nullopt : std::optional(it->second);
  }

 private:
  int line() const { return 1 + static_cast<int>(std::ranges::count(text_.substr(0, at_), '\n')); }
  Error wrong(std::string_view what) const {
    const std::string found = at_ < text_.size() ? fmt::format("'{}'", text_[at_]) : "the end";
    return invalid(fmt::format("line {}: found {}; {}", line(), found, what));
  }
  char now() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (at_ < text_.size()) {
      if (now() == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (now() == ' ' || now() == '\t' || now() == '\r' || now() == '\n') {
        ++at_;
      } else {
        return;
      }
    }
  }

  size_t rule(const std::string& name) {
    const auto [it, is_new] = numbers_.try_emplace(name, rules_.size());
    if (is_new) rules_.push_back({.name = name, .body = std::nullopt, .line = line()});
    return it->second;
  }

  std::string name_ahead() const {
    size_t end = at_;
    if (end < text_.size() && is_name_start(text_[end])) {
      while (end < text_.size() && is_name(text_[end])) ++end;
    }
    return std::string(text_.substr(at_, end - at_));
  }

  // The name of the rule that begins here; empty when none does.
  std::string rule_ahead() const {
    std::string name = name_ahead();
    size_t next = at_ + name.size();
    while (next < text_.size() && (text_[next] == ' ' || text_[next] == '\t')) ++next;
    return text_.substr(next).starts_with("::=") ? name : "";
  }

  Result<Node> choice(int depth) {
    if (depth > kMaxDepth) return too_large(fmt::format("line {}: nested deeper than {}", line(), kMaxDepth));
    Node node{.kind = Node::Kind::kChoice};
    while (true) {
      JEWEL_ASSIGN(Node one, sequence(depth));
      node.parts.push_back(std::move(one));
      if (now() != '|') break;
      ++at_;
    }
    return node.parts.size() == 1 ? std::move(node.parts.front()) : std::move(node);
  }

  Result<Node> sequence(int depth) {
    Node node{.kind = Node::Kind::kSequence};
    while (true) {
      skip_space();
      const char c = now();
      if (at_ >= text_.size() || c == '|' || c == ')' || !rule_ahead().empty()) return node;
      JEWEL_ASSIGN(Node one, item(depth));
      JEWEL_ASSIGN(one, repeated(std::move(one)));
      node.parts.push_back(std::move(one));
    }
  }

  Result<Node> item(int depth) {
    if (now() == '"') return literal();
    if (now() == '[') return character_class();
    if (now() == '.') {
      ++at_;
      return Node{.kind = Node::Kind::kAny};
    }
    if (now() == '(') {
      ++at_;
      JEWEL_ASSIGN(Node node, choice(depth + 1));
      if (now() != ')') return wrong("expected )");
      ++at_;
      return node;
    }
    const std::string name = name_ahead();
    if (name.empty()) return wrong(R"(expected a "literal", a [class], a (group), . or the name of a rule)");
    const Node node{.kind = Node::Kind::kRule, .rule = rule(name), .line = line()};
    at_ += name.size();
    return node;
  }

  // What stands behind an item.
  Result<Node> repeated(Node node) {
    while (true) {
      uint32_t min = 0;
      std::optional<uint32_t> max;
      if (now() == '?') {
        max = 1;
        ++at_;
      } else if (now() == '+' || now() == '*') {
        min = now() == '+' ? 1 : 0;
        ++at_;
      } else if (now() == '{') {
        JEWEL_TRY(bounds(min, max));
      } else {
        return node;
      }
      Node outer{.kind = Node::Kind::kRepeat, .min = min, .max = max};
      outer.parts.push_back(std::move(node));
      node = std::move(outer);
    }
  }

  Result<void> bounds(uint32_t& min, std::optional<uint32_t>& max) {
    ++at_;
    const auto from = number();
    if (!from) return wrong("expected a repetition, as {2}, {2,} or {2,5}");
    min = *from;
    max = min;
    if (now() == ',') {
      ++at_;
      max = number();
    }
    if (now() != '}') return wrong("expected a repetition, as {2}, {2,} or {2,5}");
    if (min > kMaxRepeat || max.value_or(0) > kMaxRepeat)
      return too_large(fmt::format("line {}: a repetition above {}", line(), kMaxRepeat));
    if (max && *max < min) return wrong("expected a repetition whose end is not below its beginning");
    ++at_;
    return {};
  }

  std::optional<uint32_t> number() {
    skip_space();
    std::optional<uint32_t> value;
    while (now() >= '0' && now() <= '9') {
      value = std::min(value.value_or(0) * 10 + static_cast<uint32_t>(now() - '0'), kMaxRepeat + 1);
      ++at_;
    }
    skip_space();
    return value;
  }

  Result<Node> literal() {
    Node node{.kind = Node::Kind::kLiteral};
    ++at_;
    while (now() != '"') {
      JEWEL_ASSIGN(const uint32_t c, character("a literal ends with \" on its line"));
      node.characters.push_back({c, c});
    }
    ++at_;
    return node;
  }

  Result<Node> character_class() {
    constexpr std::string_view kEnds = "a class ends with ] on its line";
    Node node{.kind = Node::Kind::kClass};
    ++at_;
    if (now() == '^') {
      node.negated = true;
      ++at_;
    }
    while (now() != ']') {
      Range range;
      JEWEL_ASSIGN(range.first, character(kEnds));
      range.last = range.first;
      if (now() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        ++at_;
        JEWEL_ASSIGN(range.last, character(kEnds));
        if (range.last < range.first) return wrong("a range's end is before its beginning");
      }
      node.characters.push_back(range);
    }
    if (node.characters.empty() && !node.negated) return wrong("an empty class matches nothing");
    ++at_;
    return node;
  }

  // One character of a literal or class, escapes resolved.
  Result<uint32_t> character(std::string_view otherwise) {
    if (at_ >= text_.size() || now() == '\n') return wrong(otherwise);
    if (now() != '\\') return utf8_character();
    ++at_;
    const char c = now();
    ++at_;
    switch (c) {
      case 'n':
        return uint32_t{'\n'};
      case 'r':
        return uint32_t{'\r'};
      case 't':
        return uint32_t{'\t'};
      case 'x':
        return hex(2);
      case 'u':
        return hex(4);
      case 'U':
        return hex(8);
      case '\0':
      case '\n':
        --at_;
        return wrong(otherwise);
      default:
        break;
    }
    if (is_name(c) && c != '-' && c != '.' && c != '_') {
      --at_;
      return wrong(R"(expected one of the escapes \n \r \t \\ \" \[ \] \- \xHH \uHHHH \UHHHHHHHH)");
    }
    return static_cast<uint32_t>(static_cast<unsigned char>(c));
  }

  Result<uint32_t> hex(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i, ++at_) {
      const char c = now();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return wrong(fmt::format("expected {} hexadecimal digits", digits));
      value = value << 4 | static_cast<uint32_t>(digit);
    }
    if (value > kLastCharacter || (value >= 0xd800 && value <= 0xdfff))
      return wrong(fmt::format("U+{:04X} is not a character", value));
    return value;
  }

  Result<uint32_t> utf8_character() {
    const auto lead = static_cast<unsigned char>(now());
    const int more = lead < 0x80 ? 0 : lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    uint32_t value = more == 0 ? lead : lead & (0x3fU >> more);
    ++at_;
    for (int i = 0; i < more; ++i, ++at_) {
      const auto byte = static_cast<unsigned char>(now());
      if ((byte & 0xc0) != 0x80) return wrong("expected UTF-8");
      value = value << 6 | (byte & 0x3fU);
    }
    return value;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::vector<Rule> rules_;
  std::map<std::string, size_t> numbers_;
};

// Which rules the root needs, and whether one of them contains itself. By a stack of our own: chains of rules
// may be long.
struct Reach {
  std::vector<size_t> order;  // what a rule needs comes before it
  bool recursive = false;
};

void add_references(const Node& node, std::vector<size_t>& out) {
  if (node.kind == Node::Kind::kRule) out.push_back(node.rule);
  for (const Node& part : node.parts) add_references(part, out);
}

Reach reach_of(const std::vector<Rule>& rules, size_t root) {
  enum class State : uint8_t { kNew, kOpen, kDone };
  struct Step {
    size_t rule;
    std::vector<size_t> references;
    size_t next = 0;
  };
  Reach reach;
  std::vector<State> states(rules.size(), State::kNew);
  std::vector<Step> stack;
  const auto open = [&](size_t rule) {
    states[rule] = State::kOpen;
    stack.push_back({.rule = rule, .references = {}});
    add_references(*rules[rule].body, stack.back().references);
  };
  open(root);
  while (!stack.empty()) {
    Step& step = stack.back();
    if (step.next == step.references.size()) {
      states[step.rule] = State::kDone;
      reach.order.push_back(step.rule);
      stack.pop_back();
      continue;
    }
    const size_t reference = step.references[step.next++];
    if (states[reference] == State::kOpen) reach.recursive = true;
    if (states[reference] == State::kNew) open(reference);
  }
  return reach;
}

// A character between Lark's slashes.
std::string escaped(uint32_t c) {
  if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
    return std::string(1, static_cast<char>(c));
  return fmt::format("\\x{{{:x}}}", c);
}

// How rules are written: as terminals (one word each) or as rules of single characters.
class Writer {
 public:
  explicit Writer(bool terminals) : terminals_(terminals) {}

  std::string name(size_t rule) const { return fmt::format("{}{}", terminals_ ? "R" : "r", rule); }

  std::string text(const Node& node) const {
    switch (node.kind) {
      case Node::Kind::kLiteral:
        return literal(node);
      case Node::Kind::kClass:
        return character_class(node);
      case Node::Kind::kAny:
        return "/(?s:.)/";
      case Node::Kind::kRule:
        return name(node.rule);
      case Node::Kind::kSequence:
        return joined(node.parts, " ");
      case Node::Kind::kChoice:
        return joined(node.parts, " | ");
      case Node::Kind::kRepeat:
        return text(node.parts.front()) + repetition(node);
    }
    return {};
  }

 private:
  std::string joined(const std::vector<Node>& parts, std::string_view between) const {
    if (parts.empty()) return "\"\"";
    if (parts.size() == 1) return text(parts.front());
    std::string out = "(";
    for (const Node& part : parts) out += (out.size() > 1 ? std::string(between) : "") + text(part);
    return out + ")";
  }

  std::string literal(const Node& node) const {
    if (node.characters.empty()) return "\"\"";
    std::string out;
    for (const Range& c : node.characters) {
      if (!out.empty() && !terminals_) out += "/ /";
      out += escaped(c.first);
    }
    const bool several = node.characters.size() > 1;
    return several ? "(/" + out + "/)" : "/" + out + "/";
  }

  static std::string character_class(const Node& node) {
    if (node.characters.empty()) return "/(?s:.)/";  // [^]
    std::string out = node.negated ? "/[^" : "/[";
    for (const Range& range : node.characters) {
      out += escaped(range.first);
      if (range.last != range.first) out += "-" + escaped(range.last);
    }
    return out + "]/";
  }

  static std::string repetition(const Node& node) {
    if (!node.max) return node.min == 0 ? "*" : node.min == 1 ? "+" : fmt::format("{{{},}}", node.min);
    if (node.min == 0 && *node.max == 1) return "?";
    return fmt::format("{{{},{}}}", node.min, *node.max);
  }

  const bool terminals_;
};

}  // namespace

bool is_gbnf(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    line.remove_prefix(std::min(line.find_first_not_of(" \t\r"), line.size()));
    size_t name = 0;
    if (!line.empty() && is_name_start(line[0])) {
      while (name < line.size() && is_name(line[name])) ++name;
      line.remove_prefix(name);
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
      if (line.starts_with("::=")) return true;
    }
    begin = end + 1;
  }
  return false;
}

Result<std::string> lark_from_gbnf(std::string_view text) {
  if (text.size() > kMaxBytes)
    return too_large(fmt::format("{} bytes long, at most {} are taken", text.size(), kMaxBytes));
  Parser parser(text);
  JEWEL_ASSIGN(const std::vector<Rule> rules, parser.rules());
  const std::optional<size_t> root = parser.find("root");
  if (!root) return invalid("no rule is called root, where a GBNF grammar begins");
  const Reach reach = reach_of(rules, *root);
  const Writer writer(/*terminals=*/!reach.recursive);
  std::string lark = fmt::format("start: {}\n", writer.name(*root));
  for (const size_t rule : reach.order)
    lark += fmt::format("{}: {}\n", writer.name(rule), writer.text(*rules[rule].body));
  return lark;
}

}  // namespace jewel

#include "whole_parse.h"

#include <boost/json.hpp>
#include <regex>

namespace jewel {
namespace {

namespace json = boost::json;

std::string strip(const std::string& s) {
  const size_t begin = s.find_first_not_of(" \t\r\n");
  return begin == std::string::npos ? "" : s.substr(begin, s.find_last_not_of(" \t\r\n") - begin + 1);
}

std::string unquote(const std::string& s) {
  boost::system::error_code ec;
  const json::value value =
      s.size() >= 2 && s.front() == '"' && s.back() == '"' ? json::parse(s, ec) : json::value();
  return !ec && value.is_string() ? std::string(value.as_string()) : s;
}

std::string quote(const std::string& s) {
  return json::serialize(json::value(s));
}

class WholeCall {
 public:
  explicit WholeCall(const std::vector<CallElement>& body) : body_(body) {}

  std::optional<ToolCall> parse() {
    std::string head;
    while (at_ < body_.size() && !is('{') && !is('(')) {
      if (body_[at_].is_mark) return std::nullopt;
      head += body_[at_++].c;
    }
    if (head.size() + 1 > ToolCallReader::kMaxNameBytes + 16 &&
        (at_ < body_.size() ? head.size() + 1 > ToolCallReader::kMaxNameBytes + 17 : true))
      return std::nullopt;
    std::string name = strip(head);
    if (name.starts_with("call:")) name = strip(name.substr(5));
    static const std::regex kName("[A-Za-z0-9_.\x80-\xFF-]{1,256}");
    for (const char c : name)
      if (!(isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.' || (c & 0x80)))
        return std::nullopt;
    if (name.empty() || name.size() > ToolCallReader::kMaxNameBytes) return std::nullopt;
    if (at_ == body_.size()) return ToolCall{name, "{}", false};
    const char closer = is('{') ? '}' : ')';
    ++at_;
    ToolCall call{name, object(closer, 1), true};
    call.complete = closed_;
    return call;
  }

 private:
  bool is(char c) const { return at_ < body_.size() && !body_[at_].is_mark && body_[at_].c == c; }
  bool end() const { return at_ >= body_.size(); }

  std::string object(char closer, size_t depth) {
    std::string out = "{";
    while (true) {
      std::string key;
      bool has_value = false, in_marks = false;
      for (closed_ = false; !end(); ++at_) {
        if (body_[at_].is_mark) {
          in_marks = !in_marks;
        } else if (in_marks) {
          key += body_[at_].c;
        } else if (is(closer)) {
          ++at_;
          closed_ = true;
          return out + "}";
        } else if (is(',')) {
          key.clear();
        } else if (is(':')) {
          ++at_;
          has_value = true;
          break;
        } else {
          key += body_[at_].c;
        }
      }
      if (!has_value) return out + "}";
      out += (out.size() > 1 ? "," : "") + quote(unquote(strip(key))) + ":" +
             value(closer, depth).value_or("null");
      if (!next(closer)) return out + "}";
    }
  }

  std::string list(size_t depth) {
    std::string out = "[";
    while (true) {
      const auto item = value(']', depth);
      if (item) out += (out.size() > 1 ? "," : "") + *item;
      if (!next(']')) return out + "]";
    }
  }

  // Behind a value: over whatever stands there to the comma (true) or past the closer or the end (false).
  bool next(char closer) {
    bool in_marks = false;
    for (closed_ = false; !end(); ++at_) {
      if (body_[at_].is_mark) {
        in_marks = !in_marks;
      } else if (!in_marks && is(',')) {
        ++at_;
        return true;
      } else if (!in_marks && is(closer)) {
        ++at_;
        closed_ = true;
        return false;
      }
    }
    return false;
  }

  // Nothing: a list's end where a value could be.
  std::optional<std::string> value(char closer, size_t depth) {
    while (is(' ') || is('\n') || is('\t') || is('\r')) ++at_;
    if (end()) return closer == ']' ? std::nullopt : std::optional<std::string>("null");
    if (body_[at_].is_mark) {
      std::string text;
      for (++at_; !end() && !body_[at_].is_mark; ++at_) text += body_[at_].c;
      if (!end()) ++at_;
      return quote(text);
    }
    if ((is('{') || is('[')) && depth < ToolCallReader::kMaxDepth) {
      const bool is_object = is('{');
      ++at_;
      return is_object ? object('}', depth + 1) : list(depth + 1);
    }
    std::string text;
    const bool quoted = is('"');
    bool inside = quoted, escaped = false;
    for (; !end(); ++at_) {
      if (body_[at_].is_mark) {
        ++at_;
        break;
      }
      const char c = body_[at_].c;
      if (!inside && (c == ',' || c == closer)) break;
      if (inside && !text.empty()) {
        if (escaped) {
          escaped = false;
        } else if (c == '\\') {
          escaped = true;
        } else if (c == '"') {
          inside = false;
        }
      }
      text += c;
    }
    text = strip(text);
    if (text.empty() && closer == ']' && is(']')) return std::nullopt;
    std::string lower = text;
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    if (text.empty() || lower == "null" || lower == "none" || lower == "nil") return "null";
    if (lower == "true" || lower == "false") return lower;
    static const std::regex kNumber(R"(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?)");
    if (std::regex_match(text, kNumber)) return text;
    return quote(unquote(text));
  }

  const std::vector<CallElement>& body_;
  size_t at_ = 0;
  bool closed_ = false;
};

}  // namespace

std::optional<ToolCall> whole_tool_call(const std::vector<CallElement>& body) {
  return WholeCall(body).parse();
}

ParsedOutput whole_output(const Tokenizer& tokenizer, const SpecialIds& special,
                          const std::vector<int32_t>& ids, bool starts_in_reasoning) {
  // Segments: a control token and the text behind it.
  struct Segment {
    int32_t control;
    std::vector<CallElement> elements;
    std::string text;
  };
  std::vector<Segment> segments = {
      {starts_in_reasoning ? special.channel_open : -1, {}, starts_in_reasoning ? "thought\n" : ""}};
  std::vector<int32_t> run;
  const auto end_run = [&] {
    const std::string text = tokenizer.decode(run).value();
    segments.back().text += text;
    for (const char c : text) segments.back().elements.push_back({false, c});
    run.clear();
  };
  const auto in_call = [&] { return segments.back().control == special.tool_call_open; };
  const auto in_thought = [&] { return segments.back().control == special.channel_open; };
  for (const int32_t id : ids) {
    if (!tokenizer.is_special(id)) {
      run.push_back(id);
      continue;
    }
    end_run();
    if (id == special.turn_close || id == special.tool_response_open || id == special.eos) {
      segments.push_back({special.turn_close, {}, ""});
      break;
    }
    if (id == special.quote && in_call()) segments.back().elements.push_back({true, 0});
    const bool starts = id == special.tool_call_open || (id == special.channel_open && !in_thought()) ||
                        (id == special.channel_close && in_thought()) ||
                        (id == special.tool_call_close && in_call());
    if (starts) segments.push_back({id, {}, ""});
  }
  end_run();
  if (segments.back().control == special.turn_close) segments.back().text.clear();

  ParsedOutput out;
  bool after_call = false;
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const bool last = i + 1 == segments.size();
    std::string text = segment.text;
    if (segment.control == special.channel_open) {
      if (text.starts_with("thought\n")) {
        text.erase(0, 8);
      } else if (text == "thought") {
        text.clear();
      }
      if (!last && text.ends_with('\n')) text.pop_back();
      out.reasoning += text;
      continue;
    }
    std::optional<ToolCall> call;
    if (segment.control == special.tool_call_open) {
      call = whole_tool_call(segment.elements);
      if (call) {
        out.tool_calls.push_back(*call);
        after_call = true;
        continue;
      }
    }
    const bool call_next = !last && segments[i + 1].control == special.tool_call_open &&
                           segment.control != special.tool_call_open;
    if (after_call) text.erase(0, std::min(text.find_first_not_of(" \t\r\n"), text.size()));
    if (call_next) text = text.substr(0, text.find_last_not_of(" \t\r\n") + 1);
    if (!text.empty() || segment.control == special.tool_call_open)
      after_call = after_call && text.empty() && segment.control != special.tool_call_open;
    out.content += text;
  }
  return out;
}

}  // namespace jewel

// JsonOut: writes JSON into one string, a value after the other; commas take care of themselves.
//
//   JsonOut out;
//   out.open('{').field("id", id).key("choices").open('[') … .close(']').close('}');
//
// Numbers are written in their shortest form that reads back as the same value (never 1E0). Strings must be
// UTF-8, as all text of ours is; what is not becomes U+FFFD. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace jewel {

class JsonOut {
 public:
  JsonOut& open(char bracket) {
    comma();
    text_ += bracket;
    first_ = true;
    return *this;
  }
  JsonOut& close(char bracket) {
    text_ += bracket;
    first_ = false;
    return *this;
  }
  JsonOut& key(std::string_view name);

  JsonOut& value(std::string_view text);
  JsonOut& value(const char* text) { return value(std::string_view(text)); }
  JsonOut& value(const std::string& text) { return value(std::string_view(text)); }
  JsonOut& value(bool flag) { return raw(flag ? "true" : "false"); }
  JsonOut& value(double number);  // null where it is not finite
  JsonOut& value(float number);
  JsonOut& value(int number) { return value(static_cast<int64_t>(number)); }
  JsonOut& value(int64_t number);
  JsonOut& value(uint64_t number);
  JsonOut& null() { return raw("null"); }
  // JSON that is already text.
  JsonOut& raw(std::string_view json) {
    comma();
    text_ += json;
    return *this;
  }

  template <typename T>
  JsonOut& field(std::string_view name, const T& what) {
    return key(name).value(what);
  }
  JsonOut& null_field(std::string_view name) { return key(name).null(); }

  const std::string& text() const { return text_; }
  std::string take() { return std::move(text_); }

 private:
  void comma() {
    if (!first_) text_ += ',';
    first_ = false;
  }

  std::string text_;
  bool first_ = true;
};

// A string with its quotes, appended.
void append_json_string(std::string& out, std::string_view text);

}  // namespace jewel

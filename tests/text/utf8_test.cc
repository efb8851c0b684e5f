#include "text/utf8.h"

#include <gtest/gtest.h>

namespace jewel {
namespace {

TEST(Utf8, ReplacesAsPythonDoes) {
  const struct {
    std::string_view bytes, expected;
  } cases[] = {
      {"plain", "plain"},
      {"\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80", "é你😀"},
      {"\x80", "\uFFFD"},
      {"\xC3", "\uFFFD"},
      {"\xC3(", "\uFFFD("},
      {"\xE4\xBD", "\uFFFD"},
      {"\xE4\xBD(", "\uFFFD("},
      {"\xF0\x9F\x98", "\uFFFD"},
      {"\xF0\x9F\x98\xE4\xBD\xA0", "\uFFFD你"},
      {"\xE0\x80\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
      {"\xF5", "\uFFFD"},
      {"\xFF\xFE", "\uFFFD\uFFFD"},
      {std::string_view("\0a", 2), std::string_view("\0a", 2)},
  };
  for (const auto& [bytes, expected] : cases) {
    EXPECT_EQ(replace_invalid_utf8(bytes), expected);
    EXPECT_EQ(is_utf8(bytes), bytes == expected);
  }
}

TEST(Utf8, TrimsAsPythonDoes) {
  const auto trimmed = [](std::string_view text) {
    const Trimmed t = trim_like_python(text);
    return text.substr(t.begin, t.end - t.begin);
  };
  EXPECT_EQ(trimmed(" a b\n"), "a b");
  EXPECT_EQ(trimmed("\u00a0\u3000x\u2003\x1c"), "x");
  EXPECT_EQ(trimmed("\u200bx"), "\u200bx");  // zero width is no space
  EXPECT_EQ(trimmed(" \n"), "");
  EXPECT_EQ(trimmed(""), "");
}

}  // namespace
}  // namespace jewel

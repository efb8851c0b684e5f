#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "checkpoint/tiny_model.h"

namespace jewel {
namespace {

using ::testing::HasSubstr;

Result<std::vector<SafetensorsEntry>> parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "a.safetensors");
}

std::string with_header(std::string header, size_t data_bytes) {
  std::string file;
  for (size_t i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i) & 0xff));
  return file + header + std::string(data_bytes, 'x');
}

TEST(Safetensors, ReadsWhatIsThere) {
  const auto entries = parse(with_header(
      R"({"__metadata__": {"format": "pt"}, "b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]},)"
      R"( "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, "e": {"dtype": "F64", "shape": [0], "data_offsets": [12, 12]}})",
      12));
  ASSERT_TRUE(entries.ok()) << entries.error().message;
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "a");
  EXPECT_EQ((*entries)[1].view.dtype, DType::kF32);
  EXPECT_EQ((*entries)[1].view.bytes, 8u);
  EXPECT_FALSE((*entries)[2].dtype_known);
}

struct Lie {
  std::string_view header;
  size_t data_bytes;
  std::string_view says;
};

TEST(Safetensors, LiesAreNamed) {
  const Lie lies[] = {
      {R"({"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 4]}})", 4,
       "found 4 bytes, expected 6 for BF16 [3]"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}})", 2, "cut short"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 0]}})", 4, "data_offsets"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [-4, 0]}})", 4, "data_offsets"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0]}})", 4, "two numbers"},
      {R"({"a": {"dtype": "BF16", "shape": [-2], "data_offsets": [0, 4]}})", 4, "not a possible size"},
      {R"({"a": {"dtype": "BF16", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}})", 4,
       "not a possible size"},
      {R"({"a": {"dtype": "BF16", "shape": [1,1,1,1,1,1,1,1,2], "data_offsets": [0, 4]}})", 4,
       "9 dimensions"},
      {R"({"a": {"dtype": "BF16", "shape": "2", "data_offsets": [0, 4]}})", 4, "shape"},
      {R"({"a": {"dtype": 16, "shape": [2], "data_offsets": [0, 4]}})", 4, "dtype"},
      {R"({"a": [1]})", 0, "expected an object"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, "b": {"dtype": "BF16", "shape": [2], "data_offsets": [2, 6]}})",
       6, "overlaps tensor 'a' by 2 bytes"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, "b": {"dtype": "BF16", "shape": [1], "data_offsets": [6, 8]}})",
       8, "gap of 2 bytes"},
      {R"({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}})", 9,
       "5 bytes after the last tensor"},
      {R"({"a": )", 0, "not valid JSON"},
      {R"([])", 0, "expected a JSON object"},
  };
  for (const Lie& lie : lies) {
    const auto entries = parse(with_header(std::string(lie.header), lie.data_bytes));
    ASSERT_FALSE(entries.ok()) << lie.header;
    EXPECT_THAT(entries.error().message, HasSubstr(std::string(lie.says))) << lie.header;
    EXPECT_THAT(entries.error().message, HasSubstr("a.safetensors"));
  }
}

TEST(Safetensors, HeaderLengthIsNotBelieved) {
  EXPECT_FALSE(parse("").ok());
  EXPECT_FALSE(parse("1234567").ok());
  EXPECT_FALSE(parse(std::string(8, '\xff')).ok());
  EXPECT_FALSE(parse(std::string("\x10\0\0\0\0\0\0\0{}", 10)).ok());
}

// Cut at every length and with random bytes changed: an error or a parse whose views lie inside the file.
TEST(Safetensors, DamagedFilesNeverReachOutside) {
  const std::string file = safetensors_bytes(
      {{"a", {"BF16", {2, 3}, std::vector<uint8_t>(12)}}, {"b", {"F32", {}, {0, 0, 0, 0}}}});
  ASSERT_TRUE(parse(file).ok());
  for (size_t length = 0; length < file.size(); ++length)
    EXPECT_FALSE(parse(file.substr(0, length)).ok()) << length;
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = file;
    for (int change = 0; change < 1 + round % 3; ++change)
      damaged[random() % damaged.size()] = static_cast<char>(random());
    const auto entries = parse(damaged);
    if (!entries.ok()) continue;
    const auto* begin = reinterpret_cast<const std::byte*>(damaged.data());
    for (const SafetensorsEntry& entry : *entries) {
      EXPECT_GE(entry.view.data, begin);
      EXPECT_LE(entry.view.data + entry.view.bytes, begin + damaged.size());
    }
  }
}

}  // namespace
}  // namespace jewel

#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <ctime>
#include <fstream>
#include <sstream>

#include "random_text.h"
#include "synthetic_tokenizer.h"
#include "text_fixtures.h"

namespace jewel {
namespace {

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text, SpecialTokens special) {
  auto ids = tokenizer.encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.error().message;
  return ids.ok() ? ids.value() : std::vector<int32_t>();
}

// Of this thread, so that whatever else runs on the machine does not count.
double cpu_seconds() {
  timespec t = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

uint64_t ids_hash(const std::vector<int32_t>& ids, uint64_t hash) {
  const auto n = static_cast<uint32_t>(ids.size());
  return fnv1a(ids.data(), ids.size() * 4, fnv1a(&n, 4, hash));
}

// 12,000 texts against hashes that the Python package's ids gave (tools/goldens_text/capture_tokenizer.py).
void compare_with_reference(const Tokenizer& tokenizer, const std::string& json, const char* golden) {
  std::ifstream file(std::string(JEWEL_SOURCE_DIR "/tests/data/text/") + golden);
  uint64_t tokenizer_hash = 0, texts = 0, block = 0;
  file >> std::hex >> tokenizer_hash >> std::dec >> texts >> block;
  ASSERT_GE(texts, 10000u) << golden;
  ASSERT_EQ(tokenizer_hash, fnv1a(json.data(), json.size()))
      << golden
      << " was captured with another tokenizer.json; run tools/goldens_text/capture_tokenizer.py again";
  const auto fragments = read_fragments();
  for (uint64_t first = 0; first < texts; first += block) {
    uint64_t expected[3] = {}, found[3] = {fnv1a("", 0), fnv1a("", 0), fnv1a("", 0)};
    file >> std::hex >> expected[0] >> expected[1] >> expected[2];
    ASSERT_TRUE(file) << golden << " ends early";
    for (uint64_t i = first; i < first + block; ++i) {
      const std::string text = random_text(fragments, i);
      found[0] = fnv1a(text.data(), text.size(), found[0]);
      found[1] = ids_hash(encode(tokenizer, text, SpecialTokens::kParse), found[1]);
      found[2] = ids_hash(encode(tokenizer, text, SpecialTokens::kAsText), found[2]);
    }
    ASSERT_EQ(found[0], expected[0]) << "the texts differ from the reference's, from number " << first;
    ASSERT_EQ(found[1], expected[1]) << "special tokens parsed: texts " << first << " to "
                                     << first + block - 1;
    ASSERT_EQ(found[2], expected[2]) << "special tokens as text: texts " << first << " to "
                                     << first + block - 1;
  }
}

TEST(Tokenizer, EqualsTheReferenceWithTheDemoVocabulary) {
  compare_with_reference(demo_tokenizer(), demo_tokenizer_json(), "tokenizer_demo.txt");
}

class SyntheticTokenizer : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    json_ = new std::string(synthetic_tokenizer_json());
    auto loaded = Tokenizer::from_json(*json_);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = new Tokenizer(std::move(loaded).value());
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    delete json_;
  }
  static std::string* json_;
  static Tokenizer* tokenizer_;
};
std::string* SyntheticTokenizer::json_ = nullptr;
Tokenizer* SyntheticTokenizer::tokenizer_ = nullptr;

TEST_F(SyntheticTokenizer, EqualsTheReference) {
  EXPECT_EQ(tokenizer_->vocab_size(), 262144);
  compare_with_reference(*tokenizer_, *json_, "tokenizer_synthetic.txt");
}

// BPE runs over a whole stretch between special tokens; it must not become slow where nothing cuts it.
TEST_F(SyntheticTokenizer, OneMegabyteWithoutNewlineInTwoSeconds) {
  const auto fragments = read_fragments();
  std::string words, spaces(1 << 20, ' '), letters(1 << 20, 'a'), foreign;
  for (size_t i = 0; words.size() < 1 << 20; ++i) words += fragments[i % 60] + " ";
  while (foreign.size() < 1 << 20)
    append_utf8(foreign, 0x13000 + static_cast<uint32_t>(foreign.size() / 4 % 1000));
  for (const std::string* text : {&words, &spaces, &letters, &foreign}) {
    const double start = cpu_seconds();
    const auto ids = encode(*tokenizer_, *text, SpecialTokens::kParse);
    const double took = cpu_seconds() - start;
    EXPECT_FALSE(ids.empty());
    EXPECT_LT(took, kTimeLimitSeconds) << text->size() << " bytes, " << ids.size() << " ids";
    std::printf("    1 MB of \"%.8s...\": %.2f s, %zu ids\n", text->c_str(), took, ids.size());
  }
}

// A tokenizer of another make takes the library's own path instead of ours, word by word: the same ids.
TEST(Tokenizer, BothPathsAgree) {
  std::string json = demo_tokenizer_json();
  const boost::json::value parsed = boost::json::parse(json);
  boost::json::object other = parsed.as_object();
  other["normalizer"] =
      boost::json::object{{"type", "Sequence"}, {"normalizers", boost::json::array{parsed.at("normalizer")}}};
  const auto general = Tokenizer::from_json(boost::json::serialize(other));
  ASSERT_TRUE(general.ok()) << general.error().message;
  const auto fragments = read_fragments();
  for (uint64_t i = 0; i < 1000; ++i) {
    const std::string text = random_text(fragments, i);
    ASSERT_EQ(encode(*general, text, SpecialTokens::kAsText),
              encode(demo_tokenizer(), text, SpecialTokens::kAsText))
        << i;
  }
}

TEST(Tokenizer, SpecialTokensAreTokensOnlyWhenParsed) {
  const Tokenizer& t = demo_tokenizer();
  const auto turn = t.id_of("<|turn>");
  ASSERT_TRUE(turn.has_value());
  EXPECT_TRUE(t.is_special(*turn));
  EXPECT_EQ(encode(t, "<|turn>", SpecialTokens::kParse), std::vector<int32_t>{*turn});
  const auto as_text = encode(t, "<|turn>", SpecialTokens::kAsText);
  EXPECT_GT(as_text.size(), 1u);
  for (const int32_t id : as_text) EXPECT_FALSE(t.is_special(id));
  EXPECT_EQ(t.decode(as_text).value(), "<|turn>");
}

TEST(Tokenizer, InvalidUtf8IsReadAsPythonReplacesIt) {
  const Tokenizer& t = demo_tokenizer();
  const auto same = [&](std::string_view bytes, std::string_view repaired) {
    EXPECT_EQ(encode(t, bytes, SpecialTokens::kParse), encode(t, repaired, SpecialTokens::kParse))
        << repaired;
  };
  same(
      "a\xFF"
      "b",
      "a\uFFFDb");
  same("\xE4\xBD", "\uFFFD");                  // a cut character is one
  same("\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD");  // a surrogate is three
  same("\xC0\xAF", "\uFFFD\uFFFD");            // an overlong form is two
  same("\xF0\x9F\x98<\xF0\x9F\x98\x80", "\uFFFD<\U0001F600");
  EXPECT_EQ(encode(t, std::string_view("a\0b", 3), SpecialTokens::kParse).size(), 3u);
}

TEST(Tokenizer, LookUps) {
  const Tokenizer& t = demo_tokenizer();
  EXPECT_EQ(t.id_of("<start_of_turn>"), std::nullopt);
  EXPECT_EQ(t.id_of(std::string_view("\xFF", 1)), std::nullopt);
  EXPECT_EQ(t.kind(-1), Tokenizer::Kind::kHole);
  EXPECT_EQ(t.kind(t.vocab_size()), Tokenizer::Kind::kHole);
  EXPECT_EQ(t.token_bytes(t.vocab_size()), "");
  const auto byte = t.id_of("<0xE4>");
  ASSERT_TRUE(byte.has_value());
  EXPECT_EQ(t.kind(*byte), Tokenizer::Kind::kByte);
  EXPECT_EQ(t.token_bytes(*byte), "\xE4");
  EXPECT_EQ(t.token_bytes(*t.id_of("\u2581")), " ");
  EXPECT_TRUE(encode(t, "", SpecialTokens::kParse).empty());
}

TEST(Tokenizer, BadFilesAreErrors) {
  const auto missing = Tokenizer::load("/nowhere/tokenizer.json");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find("/nowhere/tokenizer.json"), std::string::npos);
  for (const std::string& json : {std::string(), std::string("{"), std::string("[]"),
                                  std::string("{\"model\":3}"), demo_tokenizer_json().substr(0, 1000)})
    EXPECT_FALSE(Tokenizer::from_json(json).ok()) << json.substr(0, 20);
  std::string other_decoder = demo_tokenizer_json();
  const size_t at = other_decoder.find("\"Fuse\"");
  ASSERT_NE(at, std::string::npos);
  other_decoder.replace(at, 6, "\"ByteLevel\"");
  EXPECT_FALSE(Tokenizer::from_json(other_decoder).ok());
}

}  // namespace
}  // namespace jewel

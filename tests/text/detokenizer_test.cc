#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include "random_text.h"
#include "text/utf8.h"
#include "text_fixtures.h"

namespace jewel {
namespace {

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = detokenizer.push(id);
    EXPECT_TRUE(is_utf8(piece));
    text += piece;
  }
  return text + detokenizer.flush();
}

// Ids as no model would choose them: byte tokens in valid, cut and wrong order, special tokens, ids without a
// token.
TEST(Detokenizer, StreamEqualsTheReferencesWhole) {
  const Tokenizer& t = demo_tokenizer();
  const int32_t first_byte = *t.id_of("<0x00>");
  const auto fragments = read_fragments();
  TestRandom random(7);
  for (int round = 0; round < 5000; ++round) {
    std::vector<int32_t> ids;
    for (uint64_t n = random.below(24); n > 0; --n) {
      switch (random.below(5)) {
        case 0:
          ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(t.vocab_size()) + 3)) - 1);
          break;
        case 1:
          ids.push_back(first_byte + static_cast<int32_t>(random.below(256)));
          break;
        case 2:
        case 3: {  // a character in bytes, sometimes cut
          std::string bytes;
          append_utf8(bytes, 0x80 + static_cast<uint32_t>(random.below(0xD000)));
          if (random.below(4) == 0) bytes.pop_back();
          for (const char b : bytes) ids.push_back(first_byte + static_cast<uint8_t>(b));
          break;
        }
        default: {
          const auto some =
              t.encode(fragments[random.below(fragments.size())], SpecialTokens::kParse).value();
          ids.insert(ids.end(), some.begin(), some.end());
        }
      }
    }
    ASSERT_EQ(stream(t, ids), t.decode(ids).value()) << "round " << round;
  }
}

TEST(Detokenizer, TextSurvivesTheRoundTrip) {
  const Tokenizer& t = demo_tokenizer();
  const auto fragments = read_fragments();
  for (uint64_t i = 1; i < 2000; ++i) {
    std::string text = replace_invalid_utf8(random_text(fragments, i));
    if (text.find("\u2581") != std::string::npos || text.find("<0x") != std::string::npos)
      continue;  // read as a space, as bytes
    EXPECT_EQ(stream(t, t.encode(text, SpecialTokens::kAsText).value()), text) << i;
  }
}

TEST(Detokenizer, NeverHalfACharacter) {
  const Tokenizer& t = demo_tokenizer();
  const int32_t b = *t.id_of("<0x00>");
  const int32_t letter = *t.id_of("a");
  Detokenizer d(t);
  EXPECT_EQ(d.push(b + 0xE4), "");
  EXPECT_EQ(d.push(b + 0xBD), "");
  EXPECT_EQ(d.push(b + 0xA0), "");  // whole, but the run may go on and be wrong
  EXPECT_EQ(d.push(letter),
            "\u4F60"
            "a");
  EXPECT_EQ(d.push(b + 0xE4), "");
  EXPECT_EQ(d.push(letter),
            "\uFFFD"
            "a");
  EXPECT_EQ(d.push(b + 0x41), "");
  EXPECT_EQ(d.push(b + 0xFF), "");
  EXPECT_EQ(d.flush(), "\uFFFD\uFFFD");
  EXPECT_EQ(d.flush(), "");
}

}  // namespace
}  // namespace jewel

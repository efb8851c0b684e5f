#include "synthetic_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "random_text.h"

namespace jewel {
namespace {

constexpr int kVocabSize = 262144;
constexpr std::string_view kSpace = "\xE2\x96\x81";

const std::map<int, std::string>& special_tokens() {
  static const std::map<int, std::string> kTokens = {
      {0, "<pad>"},
      {1, "<eos>"},
      {2, "<bos>"},
      {3, "<unk>"},
      {4, "<mask>"},
      {46, "<|tool>"},
      {47, "<tool|>"},
      {48, "<|tool_call>"},
      {49, "<tool_call|>"},
      {50, "<|tool_response>"},
      {51, "<tool_response|>"},
      {52, "<|\"|>"},
      {98, "<|think|>"},
      {100, "<|channel>"},
      {101, "<channel|>"},
      {105, "<|turn>"},
      {106, "<turn|>"},
      {255999, "<|image>"},
      {256000, "<|audio>"},
      {258880, "<|image|>"},
      {258881, "<|audio|>"},
      {258882, "<image|>"},
      {258883, "<audio|>"},
      {258884, "<|video|>"},
  };
  return kTokens;
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

class Recipe {
 public:
  std::string json() {
    for (const auto& [id, text] : special_tokens()) taken_[text] = id;
    next_ = 238;
    for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte));
    characters();
    runs("\n", 107, 31);
    runs(kSpace, 138, 31);
    words();
    fill_holes();
    return write();
  }

 private:
  int next_free() {
    while (next_ < kVocabSize && special_tokens().contains(next_)) ++next_;
    return next_;
  }

  void fill_holes() {
    std::vector<bool> used(kVocabSize, false);
    for (const auto& [text, id] : taken_) used[static_cast<size_t>(id)] = true;
    for (int id = 0; id < kVocabSize; ++id) {
      if (!used[static_cast<size_t>(id)]) vocab_.emplace_back(fmt::format("<unused{}>", id), id);
    }
  }

  bool add(const std::string& text) {
    if (next_free() >= kVocabSize || !taken_.emplace(text, next_).second) return false;
    vocab_.emplace_back(text, next_++);
    return true;
  }

  void add_character(uint32_t c) {
    std::string text;
    append_utf8(text, c);
    if (add(text)) base_.push_back(text);
  }

  void characters() {
    static constexpr std::pair<uint32_t, uint32_t> kRanges[] = {
        {0x2581, 0x2582},   {0x21, 0x7F},     {0x09, 0x0B},     {0xA1, 0x250},    {0x300, 0x370},
        {0x370, 0x530},     {0x5D0, 0x5EB},   {0x621, 0x650},   {0x900, 0x980},   {0xE01, 0xE5C},
        {0x1E00, 0x1F00},   {0x2010, 0x2028}, {0x3041, 0x30FF}, {0x4E00, 0x9000}, {0xAC00, 0xD7A4},
        {0x1F300, 0x1F650}, {0x200D, 0x200E}, {0xFE0F, 0xFE10}};
    for (const auto& [first, end] : kRanges) {
      for (uint32_t c = first; c < end; ++c) add_character(c);
    }
  }

  // Runs of 2 to `longest`, at ids of their own as Gemma has them, merged from every pair of shorter ones.
  void runs(std::string_view unit, int first_id, int longest) {
    std::string text(unit);
    for (int n = 2; n <= longest; ++n) {
      text += unit;
      const int id = first_id + n - 1;
      if (special_tokens().contains(id) || !taken_.emplace(text, id).second) continue;
      vocab_.emplace_back(text, id);
      split(text);
    }
  }

  // Pieces glued from pieces, the early ones more often: letters become syllables, syllables words.
  void words() {
    std::vector<std::string> pieces(base_.begin(), base_.begin() + 320);
    for (const char* letters :
         {"e", "t", "a", "o", "i", "n", "s", "r", "h", "l", "d", "u", "c", "m", "p", "g"})
      for (int n = 0; n < 20; ++n) pieces.emplace_back(letters);
    for (const std::string& fragment : read_fragments()) grow(fragment);
    TestRandom random(20260402);
    while (next_free() < kVocabSize - 6000) {
      const size_t n = pieces.size();
      const size_t a = random.below(1 + random.below(n));
      const size_t b = random.below(1 + random.below(n));
      const std::string text = pieces[a] + pieces[b];
      if (text.size() > 24 || text.find(kSpace, 1) != std::string::npos || !add(text)) continue;
      split(text);
      pieces.push_back(text);
    }
  }

  // Some words of the test texts, letter by letter, so that they are made of few tokens.
  void grow(const std::string& fragment) {
    std::string text;
    for (const char c : fragment) {
      if (c == ' ') {
        text += kSpace;
      } else if (static_cast<unsigned char>(c) > 0x20 && static_cast<unsigned char>(c) < 0x7F) {
        text += c;
      } else {
        return;
      }
      if (!taken_.contains(text) && text.size() > 1 && add(text)) split(text);
    }
  }

  // Every way to make `text` of two entries, as the merges of a SentencePiece model are listed.
  void split(const std::string& text) {
    for (size_t i = 1; i < text.size(); ++i) {
      if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
      std::string left = text.substr(0, i), right = text.substr(i);
      if (taken_.contains(left) && taken_.contains(right))
        merges_.emplace_back(std::move(left), std::move(right));
    }
  }

  std::string write() const {
    std::string out = R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)";
    bool first = true;
    for (const auto& [id, text] : special_tokens()) {
      out += fmt::format(R"({}{{"id":{},"content":{},"single_word":false,"lstrip":false,"rstrip":false,)"
                         R"("normalized":false,"special":true}})",
                         first ? "" : ",", id, quoted(text));
      first = false;
    }
    out +=
        "],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
        "\"},\"content\":\"\xE2\x96\x81\"},";
    out +=
        R"("pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious","invert":false},)"
        R"("post_processor":null,)";
    out +=
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
        "\"\xE2\x96\x81\"},"
        "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},";
    out +=
        R"("model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,)"
        R"("end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{)";
    std::vector<std::pair<int, std::string_view>> rows;
    for (const auto& [id, text] : special_tokens()) rows.emplace_back(id, text);
    for (const auto& [text, id] : vocab_) rows.emplace_back(id, text);
    std::sort(rows.begin(), rows.end());
    for (size_t i = 0; i < rows.size(); ++i)
      out += fmt::format("{}{}:{}", i == 0 ? "" : ",", quoted(rows[i].second), rows[i].first);
    out += "},\"merges\":[";
    for (size_t i = 0; i < merges_.size(); ++i)
      out += fmt::format("{}[{},{}]", i == 0 ? "" : ",", quoted(merges_[i].first), quoted(merges_[i].second));
    return out + "]}}\n";
  }

  std::unordered_map<std::string, int> taken_;
  std::vector<std::pair<std::string, int>> vocab_;
  std::vector<std::string> base_;
  std::vector<std::pair<std::string, std::string>> merges_;
  int next_ = 0;
};

}  // namespace

std::string synthetic_tokenizer_json() {
  return Recipe().json();
}

}  // namespace jewel

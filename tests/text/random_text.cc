#include "random_text.h"

#include <boost/json.hpp>
#include <fstream>
#include <sstream>

namespace jewel {

uint64_t TestRandom::next() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::vector<std::string> read_fragments() {
  std::ifstream file(JEWEL_SOURCE_DIR "/tests/data/text/fragments.json");
  std::stringstream text;
  text << file.rdbuf();
  std::vector<std::string> fragments;
  const boost::json::value parsed = boost::json::parse(text.str());
  for (const auto& item : parsed.as_array()) fragments.emplace_back(item.as_string());
  return fragments;
}

void append_utf8(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  }
}

std::string random_text(const std::vector<std::string>& fragments, uint64_t i) {
  TestRandom random(i);
  std::string text;
  const uint64_t pieces = i % 64 == 0 ? 300 : 1 + random.below(12);
  for (uint64_t p = 0; p < pieces; ++p) {
    const uint64_t kind = random.below(16);
    if (kind < 10) {
      text += fragments[random.below(fragments.size())];
    } else if (kind < 12) {
      static constexpr uint32_t kTops[] = {0x80, 0x800, 0x10000, 0x110000};
      const uint32_t c = static_cast<uint32_t>(random.below(kTops[random.below(4)]));
      append_utf8(text, c >= 0xD800 && c < 0xE000 ? c - 0x5000 : c);
    } else if (kind < 15) {
      const std::string& fragment = fragments[random.below(fragments.size())];
      for (uint64_t n = 2 + random.below(9); n > 0; --n) text += fragment;
    } else {
      for (uint64_t n = 1 + random.below(4); n > 0; --n) text += static_cast<char>(random.below(256));
    }
  }
  return text;
}

uint64_t fnv1a(const void* data, size_t size, uint64_t hash) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

}  // namespace jewel

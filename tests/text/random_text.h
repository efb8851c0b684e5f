// Random texts for the comparison with the reference tokenizer: the same number gives the same bytes here and
// in tools/goldens_text/random_text.py, so that only hashes need to be stored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace jewel {

// splitmix64
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed) {}
  uint64_t next();
  uint64_t below(uint64_t n) { return next() % n; }

 private:
  uint64_t state_;
};

// tests/data/text/fragments.json: words of many scripts, emoji, runs of white space, names of special tokens.
std::vector<std::string> read_fragments();

// Text number i: fragments, any code points, repetitions and bytes that are no UTF-8. Every 64th is long.
std::string random_text(const std::vector<std::string>& fragments, uint64_t i);

void append_utf8(std::string& out, uint32_t code_point);

// FNV-1a, 64 bits.
uint64_t fnv1a(const void* data, size_t size, uint64_t hash = 0xcbf29ce484222325);

}  // namespace jewel

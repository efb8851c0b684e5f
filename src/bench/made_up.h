// Made-up contents of requests: words and pictures, from a seed, the same on every machine. Pure functions,
// any thread.
#pragma once

#include <cstdint>
#include <string>

namespace jewel {

// Common English words, most of them one token of Gemma's vocabulary, as sentences.
std::string made_up_words(uint64_t seed, int words);

// A JPEG: shapes in a room of soft light, with a camera's noise, about 1.2 times as many pixels as
// `soft_tokens` (48 × 48 each) take, 4:3. It costs what a photograph costs to decode, to scale and to encode.
std::string made_up_picture(uint64_t seed, int soft_tokens);

}  // namespace jewel

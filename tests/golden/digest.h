// FNV-1a, for saying in one number whether two runs of bytes are the same. Not for anything hostile.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace jewel {

inline constexpr uint64_t kFnvOffset = 0xcbf29ce484222325u;
inline constexpr uint64_t kFnvPrime = 0x100000001b3u;

inline std::string digest_of_bytes(std::span<const uint8_t> bytes) {
  uint64_t hash = kFnvOffset;
  for (const uint8_t byte : bytes) hash = (hash ^ byte) * kFnvPrime;
  return fmt::format("{:016x}", hash);
}

// By 64-bit little-endian words, the last one filled with zeros: for whole files, which Python reads so in
// reasonable time. tools/goldens/cases.py has the same.
inline std::string digest_of_words(std::span<const uint8_t> bytes) {
  uint64_t hash = kFnvOffset;
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min(sizeof(word), bytes.size() - at));
    hash = (hash ^ word) * kFnvPrime;
  }
  return fmt::format("{:016x}", hash);
}

}  // namespace jewel

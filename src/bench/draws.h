// Random numbers that are the same on every machine and with every library: SplitMix64. For made-up requests
// and arrivals. One thread.
#pragma once

#include <cmath>
#include <cstdint>

namespace jewel {

class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}

  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  double uniform() { return static_cast<double>((bits() >> 11) + 1) * 0x1p-53; }  // (0, 1]
  double exponential(double mean) { return -mean * std::log(uniform()); }
  int between(int low, int high) {  // both ends included
    return low + static_cast<int>(bits() % (static_cast<uint64_t>(high - low) + 1));
  }

 private:
  uint64_t state_;
};

}  // namespace jewel

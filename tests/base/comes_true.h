// What a test waits for: ends as soon as the condition holds, or false.
#pragma once

#include <chrono>
#include <thread>

namespace jewel {

// `patience` is counted in sleeps of a millisecond, so that it lasts longer where much else runs.
template <typename Condition>
bool comes_true(const Condition& condition, std::chrono::milliseconds patience = std::chrono::seconds(20)) {
  for (auto left = patience; left.count() > 0; --left) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

}  // namespace jewel

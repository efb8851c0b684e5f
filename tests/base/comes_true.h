// What a test waits for. It ends as soon as the condition holds; the patience is for machines that do much
// else, under sanitizers, and only a test that fails takes so long.
#pragma once

#include <chrono>
#include <thread>

namespace jewel {

inline constexpr std::chrono::seconds kPatience{120};

template <typename Condition>
bool comes_true(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace jewel

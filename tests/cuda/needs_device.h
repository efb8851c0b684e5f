// Tests that need a device. Where there is none each is skipped with the reason; JEWEL_REQUIRE_CUDA=1 makes
// that a failure, so that a GPU machine cannot pass by skipping.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace jewel {

inline bool device_required() {
  const char* required = std::getenv("JEWEL_REQUIRE_CUDA");
  return required && *required == '1';
}

// Why a test is skipped; a failure of it where a device is required.
inline std::string without_device(const std::string& reason) {
  if (device_required()) ADD_FAILURE() << reason;
  return reason;
}

}  // namespace jewel

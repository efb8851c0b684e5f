// MemoryFile: bytes under a path, for parsers that open files themselves. Lives in memory, gone with the
// object.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"

namespace jewel {

class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("fuzz", 0)) {
    JEWEL_CHECK(descriptor_ >= 0, "memfd_create failed");
    JEWEL_CHECK(write(descriptor_, data, size) == static_cast<ssize_t>(size), "short write of {} bytes",
                size);
  }
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace jewel

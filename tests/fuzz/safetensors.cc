// The bytes of a safetensors file. Whatever the header says, every view handed out must lie inside the file,
// apart from all others, and hold what its type and shape need.
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <utility>

#include "checkpoint/compressed_tensors.h"

namespace {

using namespace jewel;

// Reads every byte, so that the sanitizer sees a view that is not what it seems.
unsigned touch(const TensorView& view) {
  unsigned sum = 0;
  for (size_t i = 0; i < view.bytes; ++i) sum += static_cast<unsigned>(view.data[i]);
  return sum;
}

void check_entries(const std::vector<SafetensorsEntry>& entries, std::span<const std::byte> file) {
  std::vector<std::pair<const std::byte*, const std::byte*>> ranges;
  for (const SafetensorsEntry& entry : entries) {
    const TensorView& view = entry.view;
    if (view.bytes == 0) continue;
    JEWEL_CHECK(
        view.data >= file.data() && view.bytes <= static_cast<size_t>(file.data() + file.size() - view.data),
        "'{}' leaves the file", entry.name);
    ranges.emplace_back(view.data, view.data + view.bytes);
    if (!entry.dtype_known) continue;
    size_t values = 1;
    for (const int64_t n : view.shape) values *= static_cast<size_t>(n);
    JEWEL_CHECK(values * dtype_bytes(view.dtype) == view.bytes, "'{}': {} values in {} bytes", entry.name,
                values, view.bytes);
    volatile unsigned sink = touch(view);
    (void)sink;
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    JEWEL_CHECK(ranges[i - 1].second <= ranges[i].first, "tensors {} and {} overlap", i - 1, i);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  const auto entries = parse_safetensors(file, "fuzz.safetensors");
  if (!entries.ok()) {
    JEWEL_CHECK(!entries.error().message.empty(), "an error without a message");
    return 0;
  }
  check_entries(*entries, file);
  for (const SafetensorsEntry& entry : *entries) {
    if (entry.dtype_known && entry.view.bytes > 0) (void)read_weight_scale(entry.view, 4, entry.name);
  }
  return 0;
}

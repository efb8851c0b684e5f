#include "backend/cuda/device_rates.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "backend/cuda/device.h"
#include "backend/cuda/rate_loops.h"

namespace jewel {
namespace {

using namespace cuda;

constexpr double kSecondsEach = 0.5;
constexpr int kRepeats = 20000;  // some 10 ms
constexpr size_t kLeastBytes = size_t{256} << 20;

// The best of what fits into kSecondsEach: other work on the device only ever makes it slower.
template <typename Body>
Result<double> best_seconds(cudaStream_t stream, std::string_view doing, const Body& body) {
  using Clock = std::chrono::steady_clock;
  cudaEvent_t events[2] = {};
  JEWEL_CUDA_TRY(cudaEventCreate(&events[0]), doing);
  JEWEL_CUDA_TRY(cudaEventCreate(&events[1]), doing);
  const auto start = Clock::now();
  double best = 1e9;
  int runs = 0;
  do {
    float ms = 0;
    cudaEventRecord(events[0], stream);
    JEWEL_CUDA_TRY(body(), doing);
    cudaEventRecord(events[1], stream);
    JEWEL_CUDA_TRY(cudaEventSynchronize(events[1]), doing);
    JEWEL_CUDA_TRY(cudaEventElapsedTime(&ms, events[0], events[1]), doing);
    best = std::min(best, ms * 1e-3);
  } while (++runs < 3 || std::chrono::duration<double>(Clock::now() - start).count() < kSecondsEach);
  for (cudaEvent_t event : events) cudaEventDestroy(event);
  return best;
}

Result<double> flop_per_s(const DeviceInfo& device, const MultiplyLoop& loop, uint32_t* sink,
                          cudaStream_t stream) {
  double flop = 0;
  JEWEL_ASSIGN(const double seconds, best_seconds(stream, "measuring what the device can multiply", [&] {
                 return multiply(loop, device.major, device.minor, device.n_sms, sink, &flop, stream);
               }));
  return flop / seconds;
}

}  // namespace

Result<CudaRates> measure_cuda_rates(int index, size_t bytes) {
  const DeviceUse use(index);
  JEWEL_ASSIGN(const DeviceInfo device, open_device(index));
  JEWEL_ASSIGN(const Stream stream, Stream::make());
  bytes = std::max(kLeastBytes, std::min(bytes, device.free_bytes / 4)) / 4096 * 4096;
  JEWEL_ASSIGN(const DeviceBuffer memory, DeviceBuffer::make(bytes, "measuring the read rate"));
  JEWEL_ASSIGN(const DeviceBuffer sink, DeviceBuffer::make(sizeof(uint32_t), "measuring"));
  JEWEL_CUDA_TRY(fill_with_values(memory.as<uint32_t>(), bytes / sizeof(uint32_t), stream.get()),
                 "filling memory");
  CudaRates rates;
  JEWEL_ASSIGN(const double seconds, best_seconds(stream.get(), "measuring what the device can read", [&] {
                 return read_all(memory.data(), bytes, sink.as<uint32_t>(), device.n_sms, stream.get());
               }));
  rates.bytes_per_s = static_cast<double>(bytes) / seconds;
  MultiplyLoop loop{.fp8 = false, .repeats = kRepeats};
  JEWEL_ASSIGN(rates.bf16_flop_per_s, flop_per_s(device, loop, sink.as<uint32_t>(), stream.get()));
  if (device.has_fp8()) {
    loop.fp8 = true;
    JEWEL_ASSIGN(rates.fp8_flop_per_s, flop_per_s(device, loop, sink.as<uint32_t>(), stream.get()));
  }
  rates.how = fmt::format("{}: {:.0f} MB read over and over; {} on operands at hand", device.name,
                          static_cast<double>(bytes) * 1e-6, device.sm90() ? "wgmma" : "mma.sync");
  return rates;
}

}  // namespace jewel

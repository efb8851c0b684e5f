// The device's plumbing: errors as Results, memory and streams that free themselves.
//
// One place turns the runtime's codes into sentences. Buffers know their device pointer and size, nothing of
// what is in them. All of it belongs to one thread, the engine's, and to the device that was current when it
// was made.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"

namespace jewel::cuda {

// kUnavailable with what was tried: "copying page tables: an illegal memory access was encountered".
Error cuda_error(cudaError_t code, std::string_view doing);

#define JEWEL_CUDA_TRY(expression, doing)                                       \
  do {                                                                          \
    if (const cudaError_t jewel_code = (expression); jewel_code != cudaSuccess) \
      return ::jewel::cuda::cuda_error(jewel_code, doing);                      \
  } while (false)

struct DeviceInfo {
  int index = 0;
  std::string name;  // "NVIDIA H200"
  int major = 0;
  int minor = 0;
  int n_sms = 0;
  size_t total_bytes = 0;
  size_t free_bytes = 0;

  bool sm90() const { return major == 9; }
  bool has_fp8() const { return major > 8 || (major == 8 && minor >= 9); }
};

// Opens device `index` and makes it current. Errors, one readable line each: no driver, a driver too old for
// this program, no such device, a device that no kernel here was compiled for.
Result<DeviceInfo> open_device(int index);

// Keeps reset_device() away while something of ours is on the device. Taken before the device is opened,
// dropped after the last thing there is gone.
class DeviceUse {
 public:
  explicit DeviceUse(int index);
  DeviceUse(DeviceUse&& other) noexcept : index_(std::exchange(other.index_, -1)) {}
  DeviceUse& operator=(DeviceUse&&) = delete;
  ~DeviceUse();

 private:
  int index_;
};

// Resets the primary context of a device that nobody uses; otherwise does nothing. Attributes of kernels go
// with it, which is why launchers set them each time.
void reset_device(int index);

class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer();

  // `what` names it in the error: how much was needed, how much is free.
  static Result<DeviceBuffer> make(size_t bytes, std::string_view what);

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Page-locked host memory that the device can read and write.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~PinnedBuffer();

  static Result<PinnedBuffer> make(size_t bytes);

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Between kernels that wait for a multiprocessor; one that runs is not stopped.
enum class StreamPriority : uint8_t { kLow, kHigh };

class Stream {
 public:
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~Stream();

  static Result<Stream> make(StreamPriority priority = StreamPriority::kLow);
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  // `blocking`: who waits for it sleeps instead of spinning.
  static Result<Event> make(bool blocking);
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Launches that were captured once and can be repeated as one.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept
      : graph_(std::exchange(other.graph_, nullptr)), source_(std::exchange(other.source_, nullptr)) {}
  Graph& operator=(Graph&&) = delete;
  ~Graph();

  // Of what `enqueue` puts on the stream; nothing of it runs. All of it has run before: kernels are loaded,
  // and attributes set, by their first launch.
  Result<void> capture(cudaStream_t stream, std::string_view what,
                       const std::function<Result<void>()>& enqueue);
  cudaGraphExec_t get() const { return graph_; }  // null: not captured yet

  // Launches it, its first kernel, which nothing stands beside and which takes one argument, with `argument`.
  // Launches under way keep theirs.
  template <typename Argument>
  cudaError_t launch_with(const Argument& argument, cudaStream_t stream) {
    return launch_with_argument(const_cast<Argument*>(&argument), stream);
  }

 private:
  cudaError_t launch_with_argument(void* argument, cudaStream_t stream);

  cudaGraphExec_t graph_ = nullptr;
  cudaGraph_t source_ = nullptr;  // whose nodes name those of graph_
};

// Hands out parts of one buffer, each aligned to 256 bytes. Two passes: with no memory it only counts.
class Carver {
 public:
  explicit Carver(std::byte* memory) : memory_(memory) {}

  template <typename T>
  T* take(size_t count) {
    const size_t at = used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  std::byte* memory_;
  size_t used_ = 0;
};

}  // namespace jewel::cuda

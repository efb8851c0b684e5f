#include "backend/cuda/device.h"

#include <fmt/format.h>

#include <map>
#include <mutex>

namespace jewel::cuda {
namespace {

// Users of each device; a reset is not to come between the count and what it counts.
std::mutex users_mutex;
std::map<int, int>& users() {
  static std::map<int, int> count;
  return count;
}

}  // namespace

Error cuda_error(cudaError_t code, std::string_view doing) {
  cudaGetLastError();  // clears a launch's error, so that the next call is not blamed for it
  return unavailable(fmt::format("CUDA: {}: {}", doing, cudaGetErrorString(code)));
}

Result<DeviceInfo> open_device(int index) {
  int driver = 0, n_devices = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    return unavailable("CUDA: no NVIDIA driver on this machine; install one, or use --device cpu");
  const cudaError_t counted = cudaGetDeviceCount(&n_devices);
  if (counted == cudaErrorInsufficientDriver) {
    return unavailable(
        fmt::format("CUDA: the driver is for CUDA {}.{}, and this program needs {}.{} or newer; update "
                    "the driver, or use --device cpu",
                    driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10));
  }
  if (counted != cudaSuccess || n_devices == 0) {
    return unavailable(fmt::format("CUDA: no device ({}); use --device cpu", cudaGetErrorString(counted)));
  }
  if (index < 0 || index >= n_devices) {
    return unavailable(fmt::format("CUDA: found {} device{}, expected device {}", n_devices,
                                   n_devices == 1 ? "" : "s", index));
  }
  // A thread that waits for a step sleeps; it must not keep a core busy.
  cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync);
  JEWEL_CUDA_TRY(cudaSetDevice(index), "opening the device");
  cudaDeviceProp properties{};
  JEWEL_CUDA_TRY(cudaGetDeviceProperties(&properties, index), "reading the device's properties");
  DeviceInfo info{.index = index,
                  .name = properties.name,
                  .major = properties.major,
                  .minor = properties.minor,
                  .n_sms = properties.multiProcessorCount};
  if (info.major < 8 || info.major > 9) {
    return unsupported(
        fmt::format("CUDA: {} has compute capability {}.{}; this program has kernels for 8.0 to 9.0 "
                    "(Ampere, Ada, Hopper); use --device cpu",
                    info.name, info.major, info.minor));
  }
  JEWEL_CUDA_TRY(cudaMemGetInfo(&info.free_bytes, &info.total_bytes), "reading the device's memory");
  return info;
}

DeviceUse::DeviceUse(int index) : index_(index) {
  const std::scoped_lock lock(users_mutex);
  ++users()[index];
}

DeviceUse::~DeviceUse() {
  if (index_ < 0) return;
  const std::scoped_lock lock(users_mutex);
  --users()[index_];
}

void reset_device(int index) {
  const std::scoped_lock lock(users_mutex);
  if (users()[index] > 0) return;
  if (cudaSetDevice(index) == cudaSuccess) cudaDeviceReset();
  cudaGetLastError();  // of a device that is gone, nothing is left to be told
}

Result<DeviceBuffer> DeviceBuffer::make(size_t bytes, std::string_view what) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  void* data = nullptr;
  if (const cudaError_t code = cudaMalloc(&data, bytes); code != cudaSuccess) {
    size_t free = 0, total = 0;
    cudaGetLastError();
    if (code != cudaErrorMemoryAllocation || cudaMemGetInfo(&free, &total) != cudaSuccess) {
      return cuda_error(code, fmt::format("memory for {}", what));
    }
    return unavailable(
        fmt::format("CUDA: {} need{} {:.2f} GB and {:.2f} of {:.2f} GB are free; free the card, or lower "
                    "max_num_seqs, max_model_len or prefix_cache_gib, or use --ple host",
                    what, what.ends_with('s') ? "" : "s", static_cast<double>(bytes) / 1e9,
                    static_cast<double>(free) / 1e9, static_cast<double>(total) / 1e9));
  }
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.bytes_ = bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_) cudaFree(data_);
}

Result<PinnedBuffer> PinnedBuffer::make(size_t bytes) {
  PinnedBuffer buffer;
  void* data = nullptr;
  JEWEL_CUDA_TRY(cudaMallocHost(&data, bytes), fmt::format("{} bytes of page-locked host memory", bytes));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_) cudaFreeHost(data_);
}

Result<Stream> Stream::make(StreamPriority priority) {
  Stream stream;
  int low = 0, high = 0;
  JEWEL_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&low, &high), "making a stream");
  JEWEL_CUDA_TRY(cudaStreamCreateWithPriority(&stream.stream_, cudaStreamNonBlocking,
                                              priority == StreamPriority::kHigh ? high : low),
                 "making a stream");
  return stream;
}

Stream::~Stream() {
  if (stream_) cudaStreamDestroy(stream_);
}

Result<Event> Event::make(bool blocking) {
  Event event;
  const unsigned flags = cudaEventDisableTiming | (blocking ? cudaEventBlockingSync : 0u);
  JEWEL_CUDA_TRY(cudaEventCreateWithFlags(&event.event_, flags), "making an event");
  return event;
}

Event::~Event() {
  if (event_) cudaEventDestroy(event_);
}

Graph::~Graph() {
  if (graph_) cudaGraphExecDestroy(graph_);
  if (source_) cudaGraphDestroy(source_);
}

Result<void> Graph::capture(cudaStream_t stream, std::string_view what,
                            const std::function<Result<void>()>& enqueue) {
  JEWEL_CUDA_TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), what);
  const auto enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
  if (!enqueued.ok()) {
    if (graph) cudaGraphDestroy(graph);
    cudaGetLastError();  // the end of a capture that failed is an error too
    return enqueued.error();
  }
  JEWEL_CUDA_TRY(ended, what);
  const cudaError_t made = cudaGraphInstantiate(&graph_, graph, 0);
  if (made != cudaSuccess) cudaGraphDestroy(graph);
  JEWEL_CUDA_TRY(made, what);
  source_ = graph;
  return {};
}

cudaError_t Graph::launch_with_argument(void* argument, cudaStream_t stream) {
  cudaGraphNode_t first = nullptr;
  size_t n = 1;
  cudaError_t error = cudaGraphGetRootNodes(source_, &first, &n);
  cudaKernelNodeParams kernel{};
  if (error == cudaSuccess) error = cudaGraphKernelNodeGetParams(first, &kernel);
  if (error != cudaSuccess) return error;
  void* arguments[] = {argument};
  kernel.kernelParams = arguments;
  kernel.extra = nullptr;
  error = cudaGraphExecKernelNodeSetParams(graph_, first, &kernel);
  return error != cudaSuccess ? error : cudaGraphLaunch(graph_, stream);
}

}  // namespace jewel::cuda

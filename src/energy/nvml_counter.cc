#include "energy/nvml_counter.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <utility>

namespace jewel {
namespace {

constexpr double kJoulesPerMillijoule = 1e-3;

// From nvml.h, whose numbers never change.
using NvmlDevice = void*;
constexpr int kSuccess = 0;
constexpr int kTemperatureOfGpu = 0;
constexpr int kSmClock = 1, kMemoryClock = 2;

// A shared library, open for as long as this lives.
class Library {
 public:
  explicit Library(const std::string& name) : handle_(::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) {}
  ~Library() {
    if (handle_ != nullptr) ::dlclose(handle_);
  }
  Library(Library&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Library& operator=(Library&&) = delete;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool is_open() const { return handle_ != nullptr; }
  template <typename Function>
  bool find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(::dlsym(handle_, name));
    return function != nullptr;
  }

 private:
  void* handle_;
};

// "00000000:1B:00.0" of a device of the CUDA driver; empty when it does not say. Makes no context.
std::string pci_bus_of(int cuda_index, const std::string& driver) {
  const Library library(driver);
  if (!library.is_open()) return {};
  int (*init)(unsigned) = nullptr;
  int (*get)(int*, int) = nullptr;
  int (*bus)(char*, int, int) = nullptr;
  if (!library.find("cuInit", init) || !library.find("cuDeviceGet", get) ||
      !library.find("cuDeviceGetPCIBusId", bus))
    return {};
  int device = 0;
  char text[32] = {};
  if (init(0) != kSuccess || get(&device, cuda_index) != kSuccess ||
      bus(text, sizeof(text), device) != kSuccess)
    return {};
  return text;
}

struct Nvml {
  Library library;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_text)(int) = nullptr;
  int (*by_index)(unsigned, NvmlDevice*) = nullptr;
  int (*by_bus)(const char*, NvmlDevice*) = nullptr;
  int (*name)(NvmlDevice, char*, unsigned) = nullptr;
  int (*energy)(NvmlDevice, unsigned long long*) = nullptr;
  int (*temperature)(NvmlDevice, int, unsigned*) = nullptr;
  int (*clock)(NvmlDevice, int, unsigned*) = nullptr;

  // The first that is missing, or nullptr.
  const char* find_functions() {
    if (!library.find("nvmlInit_v2", init)) return "nvmlInit_v2";
    if (!library.find("nvmlShutdown", shutdown)) return "nvmlShutdown";
    if (!library.find("nvmlErrorString", error_text)) return "nvmlErrorString";
    if (!library.find("nvmlDeviceGetHandleByIndex_v2", by_index)) return "nvmlDeviceGetHandleByIndex_v2";
    if (!library.find("nvmlDeviceGetTotalEnergyConsumption", energy))
      return "nvmlDeviceGetTotalEnergyConsumption";
    library.find("nvmlDeviceGetHandleByPciBusId_v2", by_bus);
    library.find("nvmlDeviceGetName", name);
    library.find("nvmlDeviceGetTemperature", temperature);
    library.find("nvmlDeviceGetClockInfo", clock);
    return nullptr;
  }
};

class NvmlCounter final : public EnergyCounter {
 public:
  NvmlCounter(Nvml nvml, NvmlDevice device) : nvml_(std::move(nvml)), device_(device) {
    char text[96] = {};
    if (nvml_.name != nullptr && nvml_.name(device_, text, sizeof(text)) == kSuccess) name_ = text;
  }
  ~NvmlCounter() override { nvml_.shutdown(); }

  std::string method() const override { return "nvml"; }
  std::string device() const override { return name_; }

  std::optional<MeterReading> read() override {
    unsigned long long millijoules = 0;
    if (nvml_.energy(device_, &millijoules) != kSuccess) return std::nullopt;
    return MeterReading{.at = MeterReading::Clock::now(),
                        .joules = static_cast<double>(total_.add(millijoules)) * kJoulesPerMillijoule};
  }

  void read_conditions(MeterReading& reading) override {
    unsigned value = 0;
    if (nvml_.temperature != nullptr && nvml_.temperature(device_, kTemperatureOfGpu, &value) == kSuccess)
      reading.celsius = value;
    if (nvml_.clock == nullptr) return;
    if (nvml_.clock(device_, kSmClock, &value) == kSuccess) reading.sm_mhz = value;
    if (nvml_.clock(device_, kMemoryClock, &value) == kSuccess) reading.memory_mhz = value;
  }

 private:
  Nvml nvml_;
  NvmlDevice device_;
  std::string name_ = "GPU";
  RunningTotal total_;  // 64 bits of millijoules never wrap; a driver that is loaded again begins at 0
};

FoundCounter none(std::string why) {
  return {.counter = nullptr, .why = "NVML: " + std::move(why)};
}

}  // namespace

FoundCounter find_nvml_counter(const NvmlChoice& choice) {
  Nvml nvml{.library = Library(choice.nvml)};
  if (!nvml.library.is_open())
    return none(fmt::format("{} cannot be opened; it comes with the driver", choice.nvml));
  if (const char* missing = nvml.find_functions())
    return none(fmt::format("{} has no {}", choice.nvml, missing));
  const int started = nvml.init();
  if (started != kSuccess) return none(nvml.error_text(started));
  const std::string bus = pci_bus_of(choice.cuda_index, choice.cuda_driver);
  NvmlDevice device = nullptr;
  const bool by_bus = !bus.empty() && nvml.by_bus != nullptr;
  const int found = by_bus ? nvml.by_bus(bus.c_str(), &device)
                           : nvml.by_index(static_cast<unsigned>(choice.cuda_index), &device);
  unsigned long long millijoules = 0;
  const int can_count = found == kSuccess ? nvml.energy(device, &millijoules) : found;
  if (can_count != kSuccess) {
    std::string why = fmt::format("GPU {}: {}", by_bus ? bus : std::to_string(choice.cuda_index),
                                  nvml.error_text(can_count));
    nvml.shutdown();
    return none(std::move(why));
  }
  return {.counter = std::make_unique<NvmlCounter>(std::move(nvml), device), .why = {}};
}

}  // namespace jewel

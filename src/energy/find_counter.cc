#include <fmt/format.h>

#include "energy/counter.h"
#include "energy/nvml_counter.h"
#include "energy/rapl_counter.h"

namespace jewel {

FoundCounter find_counter(const CounterWish& wish) {
  if (wish.which == "none") return {.counter = nullptr, .why = "--meter none"};
  if (wish.which == "nvml") return find_nvml_counter({.cuda_index = wish.cuda_index});
  if (wish.which == "rapl") return find_rapl_counter();
  if (wish.which != "auto") {
    return {.counter = nullptr,
            .why = fmt::format("--meter: found '{}', expected auto, none, nvml or rapl", wish.which)};
  }
  if (wish.on_gpu)
    return *wish.on_gpu ? find_nvml_counter({.cuda_index = wish.cuda_index}) : find_rapl_counter();
  FoundCounter gpu = find_nvml_counter({.cuda_index = wish.cuda_index});
  if (gpu.counter != nullptr) return gpu;
  FoundCounter cpu = find_rapl_counter();
  if (cpu.counter == nullptr) cpu.why = fmt::format("{}; {}", gpu.why, cpu.why);
  return cpu;
}

}  // namespace jewel

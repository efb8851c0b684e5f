// What this machine's cores can do, measured with the CPU backend's own inner loops and threads: the ceilings
// that a benchmark's figures are held against.
#pragma once

#include <cstddef>

#include "bench/target.h"

namespace jewel {

// Bytes a second: memory of `working_set` bytes (1 MiB to 512 MiB of it) read over and over, so that a model
// that fits a cache is held against the cache. FLOP a second: the widest product loop on operands in the
// first cache. The best of what fits into about half a second each: other programs only ever make it slower.
Rates measure_cpu_rates(int n_threads, size_t working_set);

}  // namespace jewel

// RAPL: the joules of the CPU's packages, as the kernel shows them under /sys/class/powercap.
#pragma once

#include <string>

#include "energy/counter.h"

namespace jewel {

// The sum of all domains named package-N. Their files are root's alone on most machines, and masked in most
// containers: then there is no counter, and `why` says which file could not be read.
FoundCounter find_rapl_counter(const std::string& powercap = "/sys/class/powercap");

}  // namespace jewel

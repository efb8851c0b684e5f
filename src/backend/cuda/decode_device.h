// What launchers of the decode chain know of the device, and where they want blocks to stand.
//
// Kernels of the chain overlap, so blocks of several stand on a multiprocessor together, and the scheduler
// puts them wherever there is room. A block that asks for more shared memory than it needs chooses its
// company: it costs nothing else. What was measured, in docs/cuda-decode.md (version 29).
#pragma once

#include <cstddef>

namespace jewel::cuda {

struct Device {
  int sms = 0;
  int shared_per_block = 0;
  bool dependent_launch = false;
  bool wgmma = false;  // sm_90, for whose multiprocessors the sizes below are
};
const Device& product_device();

// Shared memory of a block, static and dynamic together; found on an H200 by trying.
// More than half of what there is: norms and attention have few blocks, which would else stand two on a
// multiprocessor while others have none.
constexpr size_t kUpdateShared = 121 * 1024, kAttentionShared = 132 * 1024;
// No block of the next product beside it, whose weights would stand in the queue before its own loads.
constexpr size_t kNormShared = 153 * 1024, kPleShared = 175 * 1024;

}  // namespace jewel::cuda

// JEWEL_HOST_DEVICE marks functions that kernels and the host call.
#pragma once

#ifdef __CUDACC__
#define JEWEL_HOST_DEVICE __host__ __device__
#else
#define JEWEL_HOST_DEVICE
#endif

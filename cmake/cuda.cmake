# The CUDA toolkit: the one that CMAKE_CUDA_COMPILER, CUDACXX, CUDA_HOME or PATH name, else the one that tools/setup.sh
# put into build/cuda-toolkit. Kernels are compiled for the three generations ahead of time (no PTX, no JIT): sm_80 also
# runs on sm_86, sm_89 on the L4 and its siblings, sm_90a on H100 and H200.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(JEWEL_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
  if(NOT JEWEL_NVCC)
    file(GLOB wheel_nvcc ${CMAKE_SOURCE_DIR}/build/cuda-toolkit/lib/python3*/site-packages/nvidia/cu13/bin/nvcc)
    if(NOT wheel_nvcc)
      message(FATAL_ERROR "JEWEL_CUDA needs the CUDA toolkit, 13.0 or newer: put nvcc on PATH, or run tools/setup.sh cuda")
    endif()
    list(GET wheel_nvcc 0 JEWEL_NVCC)
  endif()
  set(CMAKE_CUDA_COMPILER ${JEWEL_NVCC})
endif()
if(NOT CMAKE_CUDA_HOST_COMPILER)
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
endif()
set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real" CACHE STRING "")
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
# CMake 3.25 does not know nvcc's spelling of C++20.
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
enable_language(CUDA)
find_package(CUDAToolkit 13.0 REQUIRED)

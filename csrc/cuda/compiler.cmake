# Sets CMAKE_CUDA_COMPILER to nvcc, which need not be on PATH. Fails if the machine has a GPU but no nvcc: a build
# without CUDA kernels would be noticed only by its speed.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  # PATH is searched first, then these folders in this order.
  find_program(MSVIT_NVCC nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin NO_CMAKE_SYSTEM_PATH)
  mark_as_advanced(MSVIT_NVCC)
  if(MSVIT_NVCC)
    set(CMAKE_CUDA_COMPILER "${MSVIT_NVCC}")
  endif()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND nvidia-smi -L OUTPUT_VARIABLE gpus RESULT_VARIABLE status ERROR_QUIET TIMEOUT 20)
  if(status EQUAL 0 AND gpus MATCHES "GPU 0")
    message(FATAL_ERROR "This machine has a GPU but no working nvcc in CUDACXX, on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda. "
      "Install the CUDA toolkit or set CUDACXX to its nvcc; MSVIT_BUILD_CUDA=0 leaves the CUDA kernels out.")
  endif()
endif()

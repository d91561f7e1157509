# Sets MSVIT_CUDA_ARCHS if the caller left it empty: to the architectures of this machine's GPUs or, without a GPU, to
# those of A100 and H100/H200. 9.0 becomes 90a, which wgmma and the tensor-memory accelerator need. GPUs older than 8.0
# have no bf16 and are left out.
if(NOT MSVIT_CUDA_ARCHS)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
    foreach(capability IN LISTS capabilities)
      string(REPLACE "." "" arch "${capability}")
      if(arch GREATER_EQUAL 80)
        list(APPEND MSVIT_CUDA_ARCHS ${arch})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES MSVIT_CUDA_ARCHS)
    list(TRANSFORM MSVIT_CUDA_ARCHS REPLACE "^90$" "90a")
  endif()
endif()
if(NOT MSVIT_CUDA_ARCHS)
  set(MSVIT_CUDA_ARCHS 80 90a)
endif()
message(STATUS "CUDA architectures: ${MSVIT_CUDA_ARCHS}")

# smile_fast._native_cuda, where SMILE_FAST_CUDA allows and a CUDA compiler works. AUTO never fails: it says why not.
set(cuda_sources
  csrc/core/masked_bce/masked_bce.cu
  csrc/core/masked_bce/label_counts.cu
  csrc/core/masked_bce/scale_gradient.cu
  csrc/core/select_top_fraction/select_top_fraction.cu)

function(why_no_cuda reason)
  if(SMILE_FAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SMILE_FAST_CUDA=ON, but ${reason}")
  endif()
  message(STATUS "no CUDA kernels: ${reason}")
endfunction()

if(NOT SMILE_FAST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "SMILE_FAST_CUDA must be AUTO, ON or OFF, got ${SMILE_FAST_CUDA}")
endif()
if(SMILE_FAST_CUDA STREQUAL "OFF")
  return()
endif()

# Machine code for A100 and H100/H200, and PTX, from which the driver makes code for later GPUs.
set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  why_no_cuda("no CUDA compiler that works was found")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.8)
  why_no_cuda("nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 11.8, the first that knows sm_90")
  return()
endif()

pybind11_add_module(_native_cuda csrc/bindings/native_cuda.cpp ${cuda_sources})
target_include_directories(_native_cuda PRIVATE csrc)
set_target_properties(_native_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
  CUDA_VISIBILITY_PRESET hidden INTERPROCEDURAL_OPTIMIZATION OFF)
target_compile_options(_native_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O3;-Wall;-Wextra;-Werror=missing-field-initializers>)
message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}")

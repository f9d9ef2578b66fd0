# The CUDA sources compiled for the host and executed there (csrc/tests/cuda_emulation), under the sanitizers; and by nvcc,
# where it is and without a sanitizer, to see that no kernel spills registers.
set(cuda_sources
  masked_bce/masked_bce
  masked_bce/label_counts
  masked_bce/scale_gradient
  select_top_fraction/select_top_fraction)

if(SMILE_FAST_SANITIZE)
  add_library(cuda_emulation STATIC csrc/tests/cuda_emulation/emulation.cpp)
  target_include_directories(cuda_emulation PUBLIC csrc/tests/cuda_emulation csrc)
  # The scheduler itself is not instrumented: emulation.cpp says why.
  target_compile_options(cuda_emulation PRIVATE -O2 -Wall -Wextra -fno-tree-loop-distribute-patterns)
  if(SMILE_FAST_SANITIZE MATCHES "^address")
    target_compile_definitions(cuda_emulation PRIVATE SMILE_FAST_EMULATION_ASAN)
  elseif(SMILE_FAST_SANITIZE STREQUAL "thread")
    target_compile_definitions(cuda_emulation PRIVATE SMILE_FAST_EMULATION_TSAN)
  endif()

  set(emulated_files)
  foreach(source ${cuda_sources})
    get_filename_component(name ${source} NAME)
    # A file of another name that includes the source: nvcc may compile the source itself in the same build.
    set(file ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
    file(CONFIGURE OUTPUT ${file} CONTENT "#include \"core/${source}.cu\"\n")
    list(APPEND emulated_files ${file})
  endforeach()
  add_library(emulated_kernels STATIC ${emulated_files})
  target_compile_options(emulated_kernels PUBLIC -Wno-unknown-pragmas)
  target_link_libraries(emulated_kernels PUBLIC cuda_emulation smile_fast_options)
  foreach(test masked_bce_cuda select_top_fraction_cuda cuda_emulation)
    add_executable(${test}_test csrc/tests/${test}_test.cpp)
    target_link_libraries(${test}_test PRIVATE emulated_kernels)
    add_test(NAME ${test} COMMAND ${test}_test)
  endforeach()

  # Planted bugs: the report that must appear.
  function(add_planted_bug bug report)
    add_test(NAME planted_${bug} COMMAND cuda_emulation_test ${bug})
    set_tests_properties(planted_${bug} PROPERTIES PASS_REGULAR_EXPRESSION "${report}")
  endfunction()
  add_planted_bug(divergent_barrier "CUDA emulation: divergent barrier")
  if(SMILE_FAST_SANITIZE MATCHES "^address")
    add_planted_bug(outside_of_global "AddressSanitizer: heap-buffer-overflow")
    add_planted_bug(outside_of_shared "AddressSanitizer: use-after-poison")
  elseif(SMILE_FAST_SANITIZE STREQUAL "thread")
    foreach(bug missing_barrier blocks fence)
      add_planted_bug(${bug} "ThreadSanitizer: data race")
    endforeach()
  endif()
endif()

find_program(SMILE_FAST_NVCC nvcc HINTS /usr/local/cuda/bin)
if(SMILE_FAST_NVCC AND NOT SMILE_FAST_SANITIZE)
  foreach(source ${cuda_sources})
    get_filename_component(name ${source} NAME)
    add_test(NAME spills_${name}
      COMMAND ${CMAKE_COMMAND} -DNVCC=${SMILE_FAST_NVCC} -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}/csrc/core/${source}.cu
        -DINCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/csrc -DOUTPUT=${CMAKE_CURRENT_BINARY_DIR}/${name}.spills.o
        -P ${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/spills.cmake)
    set_tests_properties(spills_${name} PROPERTIES LABELS nvcc)
  endforeach()
endif()

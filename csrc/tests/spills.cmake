# cmake -DNVCC=... -DSOURCE=... -DINCLUDE=... -DOUTPUT=... -P spills.cmake: compiles a source for sm_80 and sm_90, and
# fails if a kernel spills registers.
execute_process(
  COMMAND ${NVCC} -std=c++17 -O3 -I${INCLUDE} -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
          -Xptxas -v -c -o ${OUTPUT} ${SOURCE}
  OUTPUT_VARIABLE report ERROR_VARIABLE report RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} does not compile:\n${report}")
endif()
string(REGEX MATCHALL "[0-9]+ bytes spill stores, [0-9]+ bytes spill loads" kernels "${report}")
list(LENGTH kernels count)
set(clean ${kernels})
list(FILTER clean INCLUDE REGEX "^0 bytes spill stores, 0 bytes spill loads$")
list(LENGTH clean clean_count)
if(count EQUAL 0 OR NOT count EQUAL clean_count)
  message(FATAL_ERROR "${SOURCE}: ${clean_count} of ${count} kernels without spills:\n${report}")
endif()
message(STATUS "${SOURCE}: ${count} kernels, no spills")

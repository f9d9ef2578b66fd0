#include "core/masked_bce_upsampled/masked_bce_upsampled.h"

#include <array>

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void masked_bce_upsampled(const std::string& dtype, std::uintptr_t logits, std::uintptr_t labels, std::uintptr_t table,
                          std::int64_t batch, std::int64_t organs, const std::array<std::int64_t, 3>& low,
                          const std::array<std::int64_t, 3>& high, std::uintptr_t sums, std::uintptr_t counts,
                          std::uintptr_t gradient, int threads) {
  const MaskedBceUpsampledArguments arguments{
      .dtype = dtype_of(dtype),
      .logits = pointer<const void>(logits),
      .labels = pointer<const std::uint8_t>(labels),
      .table = pointer<const std::uint32_t>(table),
      .batch = batch,
      .organs = organs,
      .low = {low[0], low[1], low[2]},
      .high = {high[0], high[1], high[2]},
      .sums = pointer<double>(sums),
      .counts = pointer<std::int64_t>(counts),
      .gradient = pointer<void>(gradient),
  };
  const py::gil_scoped_release release;
  masked_bce_upsampled_cpu(arguments, threads);
}

}  // namespace

void bind_masked_bce_upsampled(py::module_& module) {
  module.def("masked_bce_upsampled", &masked_bce_upsampled, py::kw_only(), py::arg("dtype"), py::arg("logits"),
             py::arg("labels"), py::arg("table"), py::arg("batch"), py::arg("organs"), py::arg("low"), py::arg("high"),
             py::arg("sums"), py::arg("counts"), py::arg("gradient"), py::arg("threads"),
             "masked_bce_upsampled on the CPU; low and high are (depth, height, width), every array is the address of "
             "contiguous memory, gradient may be 0.");
}

}  // namespace smile_fast::bindings

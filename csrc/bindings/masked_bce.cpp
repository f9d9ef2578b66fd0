#include "core/masked_bce/masked_bce.h"

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void masked_bce(const std::string& dtype, std::uintptr_t logits, std::uintptr_t labels, std::uintptr_t table,
                std::int64_t batch, std::int64_t organs, std::int64_t voxels, std::uintptr_t sums,
                std::uintptr_t counts, std::uintptr_t gradient, bool mean, int threads) {
  const MaskedBceArguments arguments{
      .dtype = dtype_of(dtype),
      .logits = pointer<const void>(logits),
      .labels = pointer<const std::uint8_t>(labels),
      .table = pointer<const std::uint32_t>(table),
      .batch = batch,
      .organs = organs,
      .voxels = voxels,
      .sums = pointer<double>(sums),
      .counts = pointer<std::int64_t>(counts),
      .gradient = pointer<void>(gradient),
      .mean = mean,
  };
  const py::gil_scoped_release release;
  masked_bce_cpu(arguments, threads);
}

}  // namespace

void bind_masked_bce(py::module_& module) {
  module.def("masked_bce", &masked_bce, py::kw_only(), py::arg("dtype"), py::arg("logits"), py::arg("labels"),
             py::arg("table"), py::arg("batch"), py::arg("organs"), py::arg("voxels"), py::arg("sums"),
             py::arg("counts"), py::arg("gradient"), py::arg("mean"), py::arg("threads"),
             "masked_bce on the CPU; every array is the address of contiguous memory, gradient may be 0.");
}

}  // namespace smile_fast::bindings

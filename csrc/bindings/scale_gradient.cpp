#include "core/masked_bce/scale_gradient.h"

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void scale_gradient(const std::string& dtype, std::uintptr_t gradient, std::uintptr_t factors, std::int64_t planes,
                    std::int64_t voxels, int threads) {
  const ScaleGradientArguments arguments{
      .dtype = dtype_of(dtype),
      .gradient = pointer<void>(gradient),
      .factors = pointer<const double>(factors),
      .channels = planes,
      .voxels = voxels,
  };
  const py::gil_scoped_release release;
  scale_gradient_cpu(arguments, threads);
}

}  // namespace

void bind_scale_gradient(py::module_& module) {
  module.def("scale_gradient", &scale_gradient, py::kw_only(), py::arg("dtype"), py::arg("gradient"),
             py::arg("factors"), py::arg("planes"), py::arg("voxels"), py::arg("threads"),
             "gradient *= factors, plane by plane, on the CPU; both are addresses of contiguous memory.");
}

}  // namespace smile_fast::bindings

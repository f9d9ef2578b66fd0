#include "core/select_top_fraction/select_top_fraction.h"

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void select_top_fraction(const std::string& dtype, std::uintptr_t scores, std::uintptr_t candidates,
                         std::int64_t length, std::uintptr_t gamma, std::uintptr_t offsets, std::int64_t segments,
                         std::uintptr_t selection, int threads) {
  const SelectTopFractionArguments arguments{
      .dtype = dtype_of(dtype),
      .scores = pointer<const void>(scores),
      .candidates = pointer<const std::uint8_t>(candidates),
      .length = length,
      .gamma = pointer<const double>(gamma),
      .offsets = pointer<const std::int64_t>(offsets),
      .segments = segments,
      .selection = pointer<std::uint8_t>(selection),
  };
  const py::gil_scoped_release release;
  select_top_fraction_cpu(arguments, threads);
}

}  // namespace

void bind_select_top_fraction(py::module_& module) {
  module.def("select_top_fraction", &select_top_fraction, py::kw_only(), py::arg("dtype"), py::arg("scores"),
             py::arg("candidates"), py::arg("length"), py::arg("gamma"), py::arg("offsets"), py::arg("segments"),
             py::arg("selection"), py::arg("threads"),
             "select_top_fraction on the CPU; every array is the address of contiguous memory.");
}

}  // namespace smile_fast::bindings

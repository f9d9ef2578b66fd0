#include "core/upsampled_labels/pseudo_labels_upsampled.h"

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void pseudo_labels_upsampled(const std::string& dtype, std::uintptr_t logits, std::uintptr_t labels, std::int64_t depth,
                             std::int64_t channels, std::int64_t height, std::int64_t width, int stride,
                             const std::vector<std::int64_t>& organs, double gamma, bool per_slice,
                             std::uintptr_t overlay, std::uintptr_t counts, int threads) {
  const PseudoLabelsUpsampledArguments arguments{
      .dtype = dtype_of(dtype),
      .logits = pointer<const void>(logits),
      .labels = pointer<const std::uint8_t>(labels),
      .depth = depth,
      .channels = channels,
      .grid = cell_grid(height, width, stride),
      .organs = organs.data(),
      .organ_count = static_cast<std::int64_t>(organs.size()),
      .gamma = gamma,
      .per_slice = per_slice,
      .overlay = pointer<std::uint8_t>(overlay),
      .counts = pointer<std::int64_t>(counts),
  };
  const py::gil_scoped_release release;
  pseudo_labels_upsampled_cpu(arguments, threads);
}

}  // namespace

void bind_pseudo_labels_upsampled(py::module_& module) {
  module.def("pseudo_labels_upsampled", &pseudo_labels_upsampled, py::kw_only(), py::arg("dtype"), py::arg("logits"),
             py::arg("labels"), py::arg("depth"), py::arg("channels"), py::arg("height"), py::arg("width"),
             py::arg("stride"), py::arg("organs"), py::arg("gamma"), py::arg("per_slice"), py::arg("overlay"),
             py::arg("counts"), py::arg("threads"),
             "pseudo_labels_upsampled on the CPU; every array is the address of contiguous memory.");
}

}  // namespace smile_fast::bindings

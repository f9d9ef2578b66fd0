#include "core/upsampled_labels/label_map_upsampled.h"

#include "arguments.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

void label_map_upsampled(const std::string& dtype, std::uintptr_t logits, std::int64_t images, std::int64_t channels,
                         std::int64_t height, std::int64_t width, int stride, bool softmax, std::uintptr_t labels,
                         int threads) {
  const LabelMapUpsampledArguments arguments{
      .dtype = dtype_of(dtype),
      .logits = pointer<const void>(logits),
      .images = images,
      .channels = channels,
      .grid = cell_grid(height, width, stride),
      .softmax = softmax,
      .labels = pointer<std::uint8_t>(labels),
  };
  const py::gil_scoped_release release;
  label_map_upsampled_cpu(arguments, threads);
}

}  // namespace

void bind_label_map_upsampled(py::module_& module) {
  module.def("label_map_upsampled", &label_map_upsampled, py::kw_only(), py::arg("dtype"), py::arg("logits"),
             py::arg("images"), py::arg("channels"), py::arg("height"), py::arg("width"), py::arg("stride"),
             py::arg("softmax"), py::arg("labels"), py::arg("threads"),
             "label_map_upsampled on the CPU; every array is the address of contiguous memory.");
}

}  // namespace smile_fast::bindings

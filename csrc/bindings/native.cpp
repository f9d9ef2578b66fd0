// smile_fast._native: the CPU kernels for Python.
#include "arguments.h"
#include "core/common/cpu_capability.h"
#include "core/common/memory_pool.h"
#include "core/upsampled_labels/label_map_upsampled.h"
#include "core/upsampled_labels/pseudo_labels_upsampled.h"

namespace {

using smile_fast::CpuCapability;

constexpr std::pair<const char*, CpuCapability> kCpuCapabilities[] = {
    {"avx512", CpuCapability::avx512}, {"avx2", CpuCapability::avx2}, {"plain", CpuCapability::plain}};  // best first

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const auto& [name, capability] : kCpuCapabilities)
    if (smile_fast::runs(capability)) names.emplace_back(name);
  return names;
}

void use_cpu_capability(const std::string& wanted) {
  for (const auto& [name, capability] : kCpuCapabilities)
    if (name == wanted && smile_fast::runs(capability)) return smile_fast::use_cpu_capability(capability);
  throw std::invalid_argument("this CPU does not run the CPU capability " + wanted);
}

}  // namespace

namespace smile_fast::bindings {
namespace {

namespace py = pybind11;

constexpr std::array kLabelMapUpsampled{"dtype", "logits", "images", "channels", "grid", "softmax", "labels"};
constexpr std::array kPseudoLabelsUpsampled{"dtype",  "logits",      "labels", "depth",     "channels", "grid",
                                            "organs", "organ_count", "gamma",  "per_slice", "overlay",  "counts"};

// Binds `<op>(*, <fields of the struct>, threads)`; every array is the address of contiguous memory.
template <typename Struct, std::size_t count>
void bind_op(py::module_& module, const char* op, const std::array<const char*, count>& fields,
             void (*run)(const Struct&, int)) {
  module.def(op, [fields, run](py::kwargs keywords) {
    Keywords given(std::move(keywords));
    const int threads = given["threads"];
    const auto arguments = given.as<Struct>(fields);
    const py::gil_scoped_release release;
    run(arguments, threads);
  });
}

}  // namespace

void bind_all(py::module_& module) {
  bind_op(module, "label_map_upsampled", kLabelMapUpsampled, &label_map_upsampled_cpu);
  bind_op(module, "masked_bce", kMaskedBce, &masked_bce_cpu);
  bind_op(module, "masked_bce_upsampled", kMaskedBceUpsampled, &masked_bce_upsampled_cpu);
  bind_op(module, "pseudo_labels_upsampled", kPseudoLabelsUpsampled, &pseudo_labels_upsampled_cpu);
  bind_op(module, "scale_gradient", kScaleGradient, &scale_gradient_cpu);
  bind_op(module, "select_top_fraction", kSelectTopFraction, &select_top_fraction_cpu);
  py::class_<Memory>(module, "Memory", py::buffer_protocol(), "Bytes with unspecified contents, from a pool.")
      .def(py::init<std::size_t>(), py::arg("bytes"))
      .def_buffer([](Memory& memory) {
        return py::buffer_info(static_cast<unsigned char*>(memory.data()), static_cast<py::ssize_t>(memory.size()));
      });
}

}  // namespace smile_fast::bindings

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU kernels of smile_fast; see csrc/core for what they compute.";
  module.def("cpu_capabilities", &cpu_capabilities, "CPU capabilities that run here, best first.");
  module.def("use_cpu_capability", &use_cpu_capability, pybind11::arg("name"),
             "All kernels are those of this CPU capability from now on.");
  smile_fast::bindings::bind_all(module);
}

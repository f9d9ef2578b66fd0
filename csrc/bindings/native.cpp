// smile_fast._native: the CPU kernels for Python.
#include "arguments.h"
#include "core/common/cpu_capability.h"

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

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU kernels of smile_fast; see csrc/core for what they compute.";
  module.def("cpu_capabilities", &cpu_capabilities, "CPU capabilities that run here, best first.");
  module.def("use_cpu_capability", &use_cpu_capability, pybind11::arg("name"),
             "All kernels are those of this CPU capability from now on.");
  smile_fast::bindings::bind_label_map_upsampled(module);
  smile_fast::bindings::bind_masked_bce(module);
  smile_fast::bindings::bind_masked_bce_upsampled(module);
  smile_fast::bindings::bind_memory(module);
  smile_fast::bindings::bind_pseudo_labels_upsampled(module);
  smile_fast::bindings::bind_scale_gradient(module);
  smile_fast::bindings::bind_select_top_fraction(module);
}

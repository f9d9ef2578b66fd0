// smile_fast._native: the CPU kernels for Python.
#include "arguments.h"
#include "core/common/cpu_capability.h"

namespace {

using smile_fast::Target;

constexpr std::pair<const char*, Target> kTargets[] = {
    {"avx512", Target::avx512}, {"avx2", Target::avx2}, {"plain", Target::plain}};  // best first

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const auto& [name, target] : kTargets)
    if (smile_fast::runs(target)) names.emplace_back(name);
  return names;
}

void use_target(const std::string& wanted) {
  for (const auto& [name, target] : kTargets)
    if (name == wanted && smile_fast::runs(target)) return smile_fast::use_target(target);
  throw std::invalid_argument("this CPU does not run the target " + wanted);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU kernels of smile_fast; see csrc/core for what they compute.";
  module.def("targets", &targets, "Names of the instruction sets that run here, best first.");
  module.def("use_target", &use_target, pybind11::arg("name"), "All kernels use this instruction set from now on.");
  smile_fast::bindings::bind_label_map_upsampled(module);
  smile_fast::bindings::bind_masked_bce(module);
  smile_fast::bindings::bind_masked_bce_upsampled(module);
  smile_fast::bindings::bind_memory(module);
  smile_fast::bindings::bind_pseudo_labels_upsampled(module);
  smile_fast::bindings::bind_scale_gradient(module);
  smile_fast::bindings::bind_select_top_fraction(module);
}

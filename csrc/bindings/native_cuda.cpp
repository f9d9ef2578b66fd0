// smile_fast._native_cuda: the CUDA kernels for Python. Linked against the static CUDA runtime: it loads without a
// driver.
#include <array>

#include "arguments.h"
#include "core/masked_bce/masked_bce_cuda.h"
#include "core/masked_bce_upsampled/masked_bce_upsampled_cuda.h"
#include "core/select_top_fraction/select_top_fraction_cuda.h"

namespace py = pybind11;

namespace smile_fast::bindings {
namespace {

using Address = std::uintptr_t;
using Extents = std::array<std::int64_t, 3>;

// Every op twice: how much memory it works in, and the work itself, for the same arguments.
MaskedBceArguments masked_bce_arguments(const std::string& dtype, Address logits, Address labels, Address table,
                                        std::int64_t batch, std::int64_t organs, std::int64_t voxels, Address sums,
                                        Address counts, Address gradient, bool mean) {
  return {dtype_of(dtype),
          pointer<const void>(logits),
          pointer<const std::uint8_t>(labels),
          pointer<const std::uint32_t>(table),
          batch,
          organs,
          voxels,
          pointer<double>(sums),
          pointer<std::int64_t>(counts),
          pointer<void>(gradient),
          mean};
}

MaskedBceUpsampledArguments masked_bce_upsampled_arguments(const std::string& dtype, Address logits, Address labels,
                                                           Address table, std::int64_t batch, std::int64_t organs,
                                                           const Extents& low, const Extents& high, Address sums,
                                                           Address counts, Address gradient) {
  return {dtype_of(dtype),
          pointer<const void>(logits),
          pointer<const std::uint8_t>(labels),
          pointer<const std::uint32_t>(table),
          batch,
          organs,
          {low[0], low[1], low[2]},
          {high[0], high[1], high[2]},
          pointer<double>(sums),
          pointer<std::int64_t>(counts),
          pointer<void>(gradient)};
}

SelectTopFractionArguments select_top_fraction_arguments(const std::string& dtype, Address scores, Address candidates,
                                                         std::int64_t length, Address gamma, Address offsets,
                                                         std::int64_t segments, Address selection) {
  return {dtype_of(dtype), pointer<const void>(scores),     pointer<const std::uint8_t>(candidates),
          length,          pointer<const double>(gamma),    pointer<const std::int64_t>(offsets),
          segments,        pointer<std::uint8_t>(selection)};
}

// Binds `<name>_workspace(...) -> bytes` and `<name>(..., workspace, stream)`, both with the named arguments.
template <auto make, typename Arguments, typename... Parameters, typename... Names>
void bind(py::module_& module, const std::string& name, Arguments (*)(Parameters...),
          std::size_t (*workspace_bytes)(const Arguments&), void (*queue)(const Arguments&, void*, void*),
          const Names&... names) {
  module.def((name + "_workspace").c_str(),
             [workspace_bytes](Parameters... parameters) { return workspace_bytes(make(parameters...)); },
             py::kw_only(), names...);
  module.def(
      name.c_str(),
      [queue](Parameters... parameters, Address workspace, Address stream) {
        const Arguments arguments = make(parameters...);
        const py::gil_scoped_release release;
        queue(arguments, pointer<void>(workspace), pointer<void>(stream));
      },
      py::kw_only(), names..., py::arg("workspace"), py::arg("stream"));
}

}  // namespace

void bind_losses(py::module_& module) {
  using py::arg;
  bind<masked_bce_arguments>(module, "masked_bce", &masked_bce_arguments, &masked_bce_cuda_workspace, &masked_bce_cuda,
                             arg("dtype"), arg("logits"), arg("labels"), arg("table"), arg("batch"), arg("organs"),
                             arg("voxels"), arg("sums"), arg("counts"), arg("gradient"), arg("mean"));
  bind<masked_bce_upsampled_arguments>(module, "masked_bce_upsampled", &masked_bce_upsampled_arguments,
                                       &masked_bce_upsampled_cuda_workspace, &masked_bce_upsampled_cuda, arg("dtype"),
                                       arg("logits"), arg("labels"), arg("table"), arg("batch"), arg("organs"),
                                       arg("low"), arg("high"), arg("sums"), arg("counts"), arg("gradient"));
  module.def(
      "scale_gradient",
      [](const std::string& dtype, Address gradient, Address factors, std::int64_t planes, std::int64_t voxels,
         Address stream) {
        const ScaleGradientArguments arguments{dtype_of(dtype), pointer<void>(gradient), pointer<const double>(factors),
                                               planes, voxels};
        const py::gil_scoped_release release;
        scale_gradient_cuda(arguments, pointer<void>(stream));
      },
      py::kw_only(), arg("dtype"), arg("gradient"), arg("factors"), arg("planes"), arg("voxels"), arg("stream"));
  module.attr("MAX_UPSAMPLED_STRIDE") = kMaxUpsampledStride;
}

void bind_selection(py::module_& module) {
  using py::arg;
  bind<select_top_fraction_arguments>(module, "select_top_fraction", &select_top_fraction_arguments,
                                      &select_top_fraction_cuda_workspace, &select_top_fraction_cuda, arg("dtype"),
                                      arg("scores"), arg("candidates"), arg("length"), arg("gamma"), arg("offsets"),
                                      arg("segments"), arg("selection"));
}

}  // namespace smile_fast::bindings

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() =
      "CUDA kernels of smile_fast; see csrc/core for what they compute. Every array is the address of "
      "contiguous memory of the current device, stream is a cudaStream_t; nothing here waits.";
  smile_fast::bindings::bind_losses(module);
  smile_fast::bindings::bind_selection(module);
}

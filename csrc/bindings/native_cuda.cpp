// smile_fast._native_cuda: the CUDA kernels for Python. Linked against the static CUDA runtime: it loads without a
// driver.
#include "arguments.h"
#include "core/masked_bce/masked_bce_cuda.h"
#include "core/select_top_fraction/select_top_fraction_cuda.h"

namespace smile_fast::bindings {
namespace {

namespace py = pybind11;

// Binds `<op>_workspace(*, <fields of the struct>) -> bytes` and `<op>(*, <the same>, workspace, stream)`.
template <typename Struct, std::size_t count>
void bind_op(py::module_& module, const std::string& op, const std::array<const char*, count>& fields,
             std::size_t (*workspace_bytes)(const Struct&), void (*queue)(const Struct&, void*, void*)) {
  module.def((op + "_workspace").c_str(), [fields, workspace_bytes](py::kwargs keywords) {
    return workspace_bytes(Keywords(std::move(keywords)).as<Struct>(fields));
  });
  module.def(op.c_str(), [fields, queue](py::kwargs keywords) {
    Keywords given(std::move(keywords));
    void *workspace = given["workspace"], *stream = given["stream"];
    const auto arguments = given.as<Struct>(fields);
    const py::gil_scoped_release release;
    queue(arguments, workspace, stream);
  });
}

}  // namespace

void bind_all(py::module_& module) {
  bind_op(module, "masked_bce", kMaskedBce, &masked_bce_cuda_workspace, &masked_bce_cuda);
  bind_op<ScaleGradientArguments>(
      module, "scale_gradient", kScaleGradient, [](const auto&) { return std::size_t{0}; },
      [](const auto& arguments, void*, void* stream) { scale_gradient_cuda(arguments, stream); });
  bind_op(module, "select_top_fraction", kSelectTopFraction, &select_top_fraction_cuda_workspace,
          &select_top_fraction_cuda);
}

}  // namespace smile_fast::bindings

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() =
      "CUDA kernels of smile_fast; see csrc/core for what they compute. Every array is the address of "
      "contiguous memory of the current device, stream is a cudaStream_t; nothing here waits.";
  smile_fast::bindings::bind_all(module);
}

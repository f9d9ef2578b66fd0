// smile_fast._native: the CPU kernels for Python. Addresses come as integers; smile_fast/ops/native.py checks them.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/masked_bce.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

smile_fast::DType dtype_of(const std::string& name) {
  if (name == "float32") return smile_fast::DType::float32;
  if (name == "bfloat16") return smile_fast::DType::bfloat16;
  if (name == "float16") return smile_fast::DType::float16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + name);
}

void masked_bce(const std::string& dtype, std::uintptr_t logits, std::uintptr_t labels, std::uintptr_t table,
                std::int64_t batch, std::int64_t organs, std::int64_t voxels, std::uintptr_t sums,
                std::uintptr_t counts, std::uintptr_t gradient, int threads) {
  const smile_fast::MaskedBceArguments arguments{
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
  };
  const py::gil_scoped_release release;
  smile_fast::masked_bce_cpu(arguments, threads);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU kernels of smile_fast; see csrc/core for what they compute.";
  module.def("masked_bce", &masked_bce, py::kw_only(), py::arg("dtype"), py::arg("logits"), py::arg("labels"),
             py::arg("table"), py::arg("batch"), py::arg("organs"), py::arg("voxels"), py::arg("sums"),
             py::arg("counts"), py::arg("gradient"), py::arg("threads"),
             "masked_bce on the CPU; every array is the address of contiguous memory, gradient may be 0.");
}

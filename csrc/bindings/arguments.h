// What the bindings share: addresses that come as integers (smile_fast/ops/native checks them), and dtypes by name.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/common/float_formats.h"

namespace smile_fast::bindings {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + name);
}

// One a kernel, each in a file of the kernel's name.
void bind_label_map_upsampled(pybind11::module_& module);
void bind_masked_bce(pybind11::module_& module);
void bind_masked_bce_upsampled(pybind11::module_& module);
void bind_memory(pybind11::module_& module);
void bind_pseudo_labels_upsampled(pybind11::module_& module);
void bind_scale_gradient(pybind11::module_& module);
void bind_select_top_fraction(pybind11::module_& module);

}  // namespace smile_fast::bindings

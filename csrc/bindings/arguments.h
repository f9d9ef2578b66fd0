// What the bindings share: keyword arguments of Python as the struct of arguments of a kernel.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/common/float_formats.h"
#include "core/masked_bce/masked_bce.h"
#include "core/masked_bce/scale_gradient.h"
#include "core/masked_bce_upsampled/masked_bce_upsampled.h"
#include "core/select_top_fraction/select_top_fraction.h"
#include "core/upsampled_labels/cell_grid.h"

namespace smile_fast::bindings {

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + name);
}

// One argument, which becomes what the field of a struct needs: arrays come as addresses (smile_fast/ops has checked
// them; 0 is null), a dtype by its name, an extent as (depth, height, width), a grid of cells as (height,
// width, stride).
class Argument {
 public:
  explicit Argument(pybind11::handle value) : value_(value) {}

  template <typename T>
  operator T() const {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<T>(value_.cast<std::uintptr_t>());
    } else if constexpr (std::is_same_v<T, DType>) {
      return dtype_of(value_.cast<std::string>());
    } else if constexpr (std::is_same_v<T, Extent>) {
      const auto [depth, height, width] = value_.cast<std::array<std::int64_t, 3>>();
      return {depth, height, width};
    } else if constexpr (std::is_same_v<T, CellGrid>) {
      const auto [height, width, stride] = value_.cast<std::array<std::int64_t, 3>>();
      return cell_grid(height, width, static_cast<int>(stride));
    } else {
      return value_.cast<T>();
    }
  }

 private:
  pybind11::handle value_;
};

// The keyword arguments of a call, each of which is taken once. One that is missing is a TypeError.
class Keywords {
 public:
  explicit Keywords(pybind11::kwargs values) : values_(std::move(values)) {}

  Argument operator[](const char* name) {
    PyObject* value = PyDict_GetItemString(values_.ptr(), name);
    if (value == nullptr) throw pybind11::type_error(std::string("missing argument ") + name);
    ++taken_;
    return Argument(value);
  }

  // The others as the struct of a kernel, whose fields have these names in this order. One left over is a TypeError.
  template <typename Struct, std::size_t count>
  Struct as(const std::array<const char*, count>& fields) {
    if (taken_ + count != values_.size())
      throw pybind11::type_error("missing or unknown arguments in " + std::string(pybind11::str(values_)));
    return [&]<std::size_t... i>(std::index_sequence<i...>) {
      return Struct{(*this)[fields[i]]...};
    }(std::make_index_sequence<count>());
  }

 private:
  pybind11::kwargs values_;
  std::size_t taken_ = 0;
};

// The ops that run on the CPU and on CUDA; the fields of the others are in native.cpp.
constexpr std::array kMaskedBce{"dtype",  "logits", "labels", "table",    "batch", "organs",
                                "voxels", "sums",   "counts", "gradient", "mean",  "loss"};
constexpr std::array kMaskedBceUpsampled{"dtype", "logits", "labels", "table",    "batch", "organs", "low",
                                         "high",  "sums",   "counts", "gradient", "mean",  "loss"};
constexpr std::array kScaleGradient{"dtype", "gradient", "factors", "channels", "voxels"};
constexpr std::array kSelectTopFraction{"dtype", "scores",  "candidates", "length",
                                        "gamma", "offsets", "segments",   "selection"};

}  // namespace smile_fast::bindings

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

namespace smile_fast::bindings {

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("dtype must be float32, bfloat16 or float16, got " + name);
}

// One argument, which becomes what the field of a struct needs: arrays come as addresses (smile_fast/ops has checked
// them; 0 is null), a dtype by its name, an extent as (depth, height, width).
class Argument {
 public:
  explicit Argument(pybind11::object value) : value_(std::move(value)) {}

  template <typename T>
  operator T() const {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<T>(value_.cast<std::uintptr_t>());
    } else if constexpr (std::is_same_v<T, DType>) {
      return dtype_of(value_.cast<std::string>());
    } else if constexpr (std::is_same_v<T, Extent>) {
      const auto size = value_.cast<std::array<std::int64_t, 3>>();
      return {size[0], size[1], size[2]};
    } else {
      return value_.cast<T>();
    }
  }

 private:
  pybind11::object value_;
};

// The keyword arguments of a call. Each is taken once: one that is missing, or left over, is a TypeError.
class Keywords {
 public:
  explicit Keywords(pybind11::kwargs values) : values_(std::move(values)) {}

  Argument operator[](const char* name) {
    if (!values_.contains(name)) throw pybind11::type_error(std::string("missing argument ") + name);
    return Argument(values_.attr("pop")(name));
  }

  void expect_none_left() const {
    if (!values_.empty()) throw pybind11::type_error("unknown arguments " + std::string(pybind11::str(values_)));
  }

 private:
  pybind11::kwargs values_;
};

// The structs of the ops that run on the CPU and on CUDA; those of the CPU alone are in native.cpp.

inline MaskedBceArguments masked_bce(Keywords& given) {
  return {.dtype = given["dtype"],
          .logits = given["logits"],
          .labels = given["labels"],
          .table = given["table"],
          .batch = given["batch"],
          .organs = given["organs"],
          .voxels = given["voxels"],
          .sums = given["sums"],
          .counts = given["counts"],
          .gradient = given["gradient"],
          .mean = given["mean"]};
}

inline MaskedBceUpsampledArguments masked_bce_upsampled(Keywords& given) {
  return {.dtype = given["dtype"],
          .logits = given["logits"],
          .labels = given["labels"],
          .table = given["table"],
          .batch = given["batch"],
          .organs = given["organs"],
          .low = given["low"],
          .high = given["high"],
          .sums = given["sums"],
          .counts = given["counts"],
          .gradient = given["gradient"]};
}

inline ScaleGradientArguments scale_gradient(Keywords& given) {
  return {.dtype = given["dtype"],
          .gradient = given["gradient"],
          .factors = given["factors"],
          .planes = given["channels"],
          .voxels = given["voxels"]};
}

inline SelectTopFractionArguments select_top_fraction(Keywords& given) {
  return {.dtype = given["dtype"],
          .scores = given["scores"],
          .candidates = given["candidates"],
          .length = given["length"],
          .gamma = given["gamma"],
          .offsets = given["offsets"],
          .segments = given["segments"],
          .selection = given["selection"]};
}

}  // namespace smile_fast::bindings

// What the fuzz targets share: the fuzz input as a stream of choices, and a check that ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/common/cpu_capability.h"
#include "core/common/float_formats.h"
#include "tests/kernels.h"

namespace smile_fast::fuzz {

// Choices, byte by byte; zeros when the input has ended.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  std::uint8_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  std::uint32_t word() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value;
  }
  // In [0, bound]; two bytes.
  int up_to(int bound) {
    const int value = byte() << 8 | byte();
    return value % (bound + 1);
  }
  bool ended() const { return left_ == 0; }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

// Numbers that continue what the input says, so that a short input fills large arrays with something.
class Filler {
 public:
  explicit Filler(std::uint32_t seed) : state_(seed * 2654435761u + 1) {}
  std::uint32_t next() {
    state_ = state_ * 1664525u + 1013904223u;
    return state_ >> 8 ^ state_ << 11;
  }

 private:
  std::uint32_t state_;
};

// An array of exactly so many elements on the heap: AddressSanitizer sees the first one behind its end.
template <typename T>
class Exact {
 public:
  explicit Exact(std::size_t size) : size_(size), values_(new T[size]) {}
  T* data() const { return values_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) const { return values_[i]; }

 private:
  std::size_t size_;
  std::unique_ptr<T[]> values_;
};

// Bits that stand for a float: one of the values where formats differ, any bits at all, or a common number.
inline float choose_float(std::uint32_t bits) {
  constexpr std::uint32_t special[] = {0,          0x80000000, 1,          0x80000001, 0x7f800000, 0xff800000,
                                       0x7fc00000, 0xffc00001, 0x7f7fffff, 0x00800000, 0x3f800000, 0x33800000};
  if (bits % 8 == 0) return as_float(special[bits / 8 % 12]);
  if (bits % 8 == 1) return as_float(bits * 2654435761u);
  return static_cast<float>(static_cast<int>(bits / 8 % 4097) - 2048) / 256.0f;
}

// Runs of equal logits, until the input gives them one by one no more: some of few kinds, some of moderate size only.
template <typename Logit>
Exact<Logit> choose_logits(Choices& choices, std::size_t size) {
  Filler filler(choices.word());
  const std::uint32_t moderate = choices.byte() % 2 == 0 ? 0 : 2;  // a bit with which choose_float takes common numbers
  const std::uint32_t run_length = 1 + choices.up_to(60), kinds = 1 + choices.word() % 100000;
  Exact<Logit> logits(size);
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (!choices.ended())
      bits = choices.word();
    else if (i == 0 || filler.next() % run_length == 0)
      bits = filler.next() % kinds;
    logits[i] = from_float<Logit>(choose_float(bits | moderate));
  }
  return logits;
}

// Runs a fuzz target: run.template operator()<T>(choices), where the input chooses the instruction set and the dtype T.
template <typename Run>
int on_chosen(const Run& run, const std::uint8_t* data, std::size_t size) {
  Choices choices(data, size);
  constexpr CpuCapability capabilities[] = {CpuCapability::plain, CpuCapability::avx2, CpuCapability::avx512};
  const CpuCapability wanted = capabilities[choices.byte() % 3];
  use_cpu_capability(runs(wanted) ? wanted : CpuCapability::plain);
  const int dtype = choices.byte() % 3;
  if (dtype == 0) run.template operator()<float>(choices);
  if (dtype == 1) run.template operator()<BFloat16>(choices);
  if (dtype == 2) run.template operator()<Float16>(choices);
  return 0;
}

// Labels, or whatever is a byte, in runs.
inline Exact<std::uint8_t> choose_labels(Filler& filler, std::size_t size, std::uint32_t kinds,
                                         std::uint32_t run_length) {
  Exact<std::uint8_t> labels(size);
  std::uint8_t label = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (filler.next() % run_length == 0) label = static_cast<std::uint8_t>(filler.next() % kinds);
    labels[i] = label;
  }
  return labels;
}

// The same bits in two arrays of one size.
template <typename T>
bool same_bits(const Exact<T>& one, const Exact<T>& other) {
  return one.size() == 0 || std::memcmp(one.data(), other.data(), one.size() * sizeof(T)) == 0;
}

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "WRONG RESULT: %s\n", what);
  std::abort();
}

}  // namespace smile_fast::fuzz

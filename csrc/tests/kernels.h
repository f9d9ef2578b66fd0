// What the tests of the kernels share: dtypes, capabilities, and results with guarded ends.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "check.h"
#include "core/common/cpu_capability.h"
#include "core/common/float_formats.h"

namespace smile_fast::testing {

template <typename T>
constexpr DType dtype_of = DType::float32;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<Float16> = DType::float16;

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Calls work.template operator()<T>() for every dtype T. How threads meet is the same for both 16-bit dtypes, so the
// thread sanitizer, which makes everything some ten times slower, sees one of them.
template <typename Work>
void for_every_dtype(const Work& work) {
  work.template operator()<float>();
  work.template operator()<BFloat16>();
  if constexpr (!kThreadSanitizer) work.template operator()<Float16>();
}

constexpr std::pair<CpuCapability, const char*> kCpuCapabilities[] = {
    {CpuCapability::plain, "plain"}, {CpuCapability::avx2, "avx2"}, {CpuCapability::avx512, "avx512"}};

// Says which capabilities the tests run on; SMILE_FAST_REQUIRE_CPU_CAPABILITIES, if it is set, names those that must be
// among them.
inline void check_cpu_capabilities() {
  const char* const required = std::getenv("SMILE_FAST_REQUIRE_CPU_CAPABILITIES");
  for (const auto& [capability, name] : kCpuCapabilities) {
    std::printf("%s: %s\n", name, runs(capability) ? "tested" : "not tested, this machine does not run it");
    const bool must = required != nullptr && std::strstr(required, name) != nullptr;
    check(runs(capability) || !must, std::string("this machine does not run the capability ") + name);
  }
}

// Calls `work` once for every capability that this machine runs; that capability is then in use. The thread sanitizer
// sees the last one alone: they share the code in which threads meet.
template <typename Work>
void on_every_cpu_capability(const Work& work) {
  for (const auto& [capability, name] : kCpuCapabilities) {
    if (!runs(capability)) continue;
    use_cpu_capability(capability);
    if (!kThreadSanitizer) work();
  }
  if (kThreadSanitizer) work();
}

// An array as an allocator of large blocks hands it out, or one that starts `offset` elements behind such an address,
// between canaries. All its bytes are those of the canaries at first.
template <typename T>
class Guarded {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  explicit Guarded(std::int64_t size, std::int64_t offset = 0) : size_(size), offset_(offset) {
    const std::size_t bytes = bytes_of(size);
    memory_ = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{kAlignment}));
    std::memset(memory_, kCanary, bytes);
  }
  Guarded(const Guarded& other) : Guarded(other.size_, other.offset_) {
    std::memcpy(memory_, other.memory_, bytes_of(size_));
  }
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { ::operator delete(memory_, std::align_val_t{kAlignment}); }

  T* data() { return reinterpret_cast<T*>(memory_ + kAlignment) + offset_; }
  const T* data() const { return reinterpret_cast<const T*>(memory_ + kAlignment) + offset_; }
  T& operator[](std::int64_t i) { return data()[i]; }
  const T& operator[](std::int64_t i) const { return data()[i]; }
  T* begin() { return data(); }
  T* end() { return data() + size_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  std::int64_t size() const { return size_; }

  // The same bits: NaN equals itself, and 0 is not -0.
  bool operator==(const Guarded& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

  bool canaries_live() const {
    const auto* first = reinterpret_cast<const unsigned char*>(begin());
    const auto* last = reinterpret_cast<const unsigned char*>(end());
    bool live = true;
    for (const unsigned char* byte = memory_; byte < first; ++byte) live &= *byte == kCanary;
    for (const unsigned char* byte = last; byte < last + kCanaries * sizeof(T); ++byte) live &= *byte == kCanary;
    return live;
  }

 private:
  static constexpr std::size_t kAlignment = 256;
  static constexpr std::int64_t kCanaries = 16;
  static constexpr unsigned char kCanary = 0xa5;

  static std::size_t bytes_of(std::int64_t size) {
    return static_cast<std::size_t>(size + 2 * kCanaries) * sizeof(T) + kAlignment;
  }

  std::int64_t size_, offset_;
  unsigned char* memory_;
};

}  // namespace smile_fast::testing

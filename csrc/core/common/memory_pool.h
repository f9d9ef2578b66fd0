// Large blocks of memory that are used again, so that the system does not have to map and zero their pages each time.
#pragma once

#include <cstddef>

namespace smile_fast {

// One block, aligned to 2 MiB, with unspecified contents. Its memory goes back to the pool with it. The pool keeps
// the last kKeptBlocks returned blocks, of at most kKeptBytes together, and hands a block out again if it is not more
// than a quarter too large. Safe to use from any thread.
class Memory {
 public:
  static constexpr std::size_t kKeptBlocks = 4;
  static constexpr std::size_t kKeptBytes = std::size_t{1} << 30;

  explicit Memory(std::size_t bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }  // the bytes that were asked for

 private:
  void* data_;
  std::size_t size_;
  std::size_t capacity_;
};

}  // namespace smile_fast

// The pool: blocks come back, do not overlap, are bounded in number, and survive several threads.
#include "core/common/memory_pool.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using smile_fast::Memory;
using smile_fast::testing::check;

constexpr std::size_t kMegabyte = std::size_t{1} << 20;

void blocks_are_used_again() {
  void* first;
  {
    const Memory memory(20 * kMegabyte);
    first = memory.data();
  }
  check(reinterpret_cast<std::uintptr_t>(first) % (2 * kMegabyte) == 0, "alignment");
  const Memory again(19 * kMegabyte);
  check(again.data() == first, "a block of about the size is used again");
  check(again.size() == 19 * kMegabyte, "size is what was asked for");
  const Memory other(20 * kMegabyte);
  check(other.data() != first, "a block is handed out once");
}

void much_larger_blocks_are_left_alone() {
  void* large;
  {
    const Memory memory(64 * kMegabyte);
    large = memory.data();
  }
  const Memory small(2 * kMegabyte);
  check(small.data() != large, "a small request does not take a large block");
}

// How many of these sizes are found again after all were given back. Fresh memory holds zeros, kept memory its mark.
std::size_t kept(const std::vector<std::size_t>& sizes) {
  constexpr std::uint64_t kMark = 0x5eed5eed5eed5eed;
  std::vector<std::unique_ptr<Memory>> blocks;
  std::set<void*> addresses;
  for (const std::size_t size : sizes) {
    blocks.push_back(std::make_unique<Memory>(size));
    std::memcpy(blocks.back()->data(), &kMark, sizeof kMark);
    addresses.insert(blocks.back()->data());
  }
  check(addresses.size() == sizes.size(), "blocks in use are different ones");
  blocks.clear();
  std::size_t found = 0;
  for (const std::size_t size : sizes) {
    blocks.push_back(std::make_unique<Memory>(size));
    found += std::memcmp(blocks.back()->data(), &kMark, sizeof kMark) == 0;
    std::memset(blocks.back()->data(), 0, sizeof kMark);
  }
  return found;
}

void few_blocks_are_kept() {
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < 2 * Memory::kKeptBlocks; ++i) sizes.push_back((i + 1) * 30 * kMegabyte);
  // Each is too small for the next request.
  check(kept(sizes) == Memory::kKeptBlocks, "blocks that are kept");
  check(kept({Memory::kKeptBytes / 2 + kMegabyte, Memory::kKeptBytes / 2 + 3 * kMegabyte}) == 1, "bytes that are kept");
  check(kept({Memory::kKeptBytes + kMegabyte}) == 0, "a block larger than all that may be kept");
}

void threads_do_not_share_blocks() {
  std::vector<int> damaged(4);
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < 4; ++thread) {
      threads.emplace_back([thread, &damaged] {
        for (int round = 0; round < 200; ++round) {
          const Memory memory(3 * kMegabyte);
          auto* const bytes = static_cast<unsigned char*>(memory.data());
          for (std::size_t i = 0; i < memory.size(); i += 4096) bytes[i] = static_cast<unsigned char>(thread);
          for (std::size_t i = 0; i < memory.size(); i += 4096) damaged[thread] += bytes[i] != thread;
        }
      });
    }
  }
  for (const int count : damaged) check(count == 0, "another thread wrote to the block");
}

}  // namespace

int main() {
  blocks_are_used_again();
  much_larger_blocks_are_left_alone();
  few_blocks_are_kept();
  threads_do_not_share_blocks();
  return smile_fast::testing::finish();
}

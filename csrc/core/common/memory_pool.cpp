#include "core/common/memory_pool.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "core/common/huge_pages.h"

namespace smile_fast {
namespace {

struct Block {
  void* data;
  std::size_t capacity;
};

struct Pool {
  Pool() { blocks.reserve(Memory::kKeptBlocks + 1); }

  std::mutex mutex;
  std::vector<Block> blocks;  // oldest first
};

Pool& pool() {
  static Pool* const instance = new Pool;  // never destroyed: blocks may come back while the process ends
  return *instance;
}

Block allocate(std::size_t capacity) {
  void* const data = std::aligned_alloc(kHugePage, capacity);
  if (data == nullptr) throw std::bad_alloc();
  advise_huge_pages(data, capacity);
  return {data, capacity};
}

}  // namespace

Memory::Memory(std::size_t bytes) : size_(bytes) {
  const std::size_t wanted = std::max((bytes + kHugePage - 1) / kHugePage, std::size_t{1}) * kHugePage;
  Block block{};
  {
    const std::lock_guard lock(pool().mutex);
    auto& blocks = pool().blocks;
    const auto fits = [wanted](const Block& kept) {
      return kept.capacity >= wanted && kept.capacity - wanted <= wanted / 4;
    };
    const auto found = std::find_if(blocks.rbegin(), blocks.rend(), fits);  // the last one is still in the caches
    if (found != blocks.rend()) {
      block = *found;
      blocks.erase(std::next(found).base());
    }
  }
  if (block.data == nullptr) block = allocate(wanted);
  data_ = block.data;
  capacity_ = block.capacity;
}

Memory::~Memory() {
  const std::lock_guard lock(pool().mutex);
  auto& blocks = pool().blocks;
  blocks.push_back({data_, capacity_});
  std::size_t bytes = 0;
  for (const Block& block : blocks) bytes += block.capacity;
  while (blocks.size() > kKeptBlocks || bytes > kKeptBytes) {
    bytes -= blocks.front().capacity;
    std::free(blocks.front().data);
    blocks.erase(blocks.begin());
  }
}

}  // namespace smile_fast

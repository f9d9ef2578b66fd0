// Runs CUDA kernels on the host, so that a machine without a GPU executes them: see emulation.cpp for how.
//
// Every thread of a block is a fiber with a stack of its own. A barrier is a switch to the next fiber; blocks run one
// after another, in a shuffled order. ThreadSanitizer takes every fiber for a thread and knows of no order between two
// of them but what barriers and fences make: a missing barrier is reported although nothing ever runs in parallel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace smile_fast::emulation {

constexpr unsigned kWarpSize = 32;

// Runs `body` once per thread of the grid. Sizes of blocks are multiples of the warp size, and one-dimensional.
void launch(dim3 grid, dim3 block, const std::function<void()>& body);

// Number of launches so far; what else a stream executes, a memset say, is one, too.
std::int64_t launches();
void count_launch();

// Bytes that were read so far by loads which pass the caches by (__ldcs).
std::int64_t streamed_bytes();
void count_streamed(std::size_t bytes);

// From now on the blocks of every launch run in the opposite order, or in the usual one again.
void reverse_blocks(bool reversed);

// What the running thread can ask for.
unsigned thread_index();
unsigned block_index();
unsigned block_size();
unsigned grid_size();
void* shared_memory(std::size_t bytes);  // of the block; poisoned at its start, freed at its end
void fence();                            // __threadfence
void block_barrier();
void warp_exchange(std::uint64_t value, std::uint64_t (&values)[32]);  // a barrier of the warp; all lanes take part

[[noreturn]] void fail(const char* what);

}  // namespace smile_fast::emulation

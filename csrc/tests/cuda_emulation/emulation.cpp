// The scheduler. This file is compiled without sanitizers: it reports to them what it does, and what it does for one
// fiber on behalf of another is no race.
#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#ifdef SMILE_FAST_EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#ifdef SMILE_FAST_EMULATION_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace smile_fast::emulation {
namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr std::size_t kSharedBytes = 48 << 10;  // what every GPU has for a block that asks for nothing special
constexpr unsigned kFiberSets = 3;
constexpr std::uint8_t kPoison = 0xa5;

// What the sanitizers must be notified of; nothing without them.
#ifdef SMILE_FAST_EMULATION_TSAN
void* new_identity() { return __tsan_create_fiber(0); }
void* own_identity() { return __tsan_get_current_fiber(); }
void announce_switch(void* identity) { __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync); }
void release(void* address) { __tsan_release(address); }
void acquire(void* address) { __tsan_acquire(address); }
#else
void* new_identity() { return nullptr; }
void* own_identity() { return nullptr; }
void announce_switch(void*) {}
void release(void*) {}
void acquire(void*) {}
#endif

enum class State { running, at_warp_barrier, at_block_barrier, finished };

struct Fiber {
  ucontext_t context{};
  void* stack = nullptr;
  void* identity = nullptr;
};

// A barrier's two phases have addresses of their own: who leaves the first late must not be ordered after what others
// did before they reached the second.
struct Barrier {
  unsigned phase = 0;
  unsigned arrived = 0;
  char addresses[2];
};

struct Thread {
  Fiber* fiber = nullptr;
  State state = State::running;
  unsigned exchanges = 0;
};

struct Warp {
  Barrier barrier;
  std::uint64_t values[2][kWarpSize];
};

// One per block, on the heap: sync addresses must not be those of an earlier block, which would order the two.
struct Block {
  unsigned index = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  unsigned finished = 0;
  void* shared = nullptr;
  std::size_t shared_bytes = 0;
  char end;
};

struct Launch {
  dim3 grid, block;
  const std::function<void()>* body = nullptr;
  char begin, end, fences;
};

std::vector<std::unique_ptr<Fiber>> fibers;  // reused: creating one costs more than most kernels
Fiber scheduler;
Launch* running_launch = nullptr;
Block* running_block = nullptr;
unsigned running_thread = 0;
std::int64_t launch_count = 0;
std::int64_t streamed_count = 0;
bool blocks_reversed = false;

void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool from_scheduler) {
#ifdef SMILE_FAST_EMULATION_ASAN
  static const void* scheduler_stack = nullptr;
  static std::size_t scheduler_bytes = 0;
  void* fake_stack = nullptr;
  if (from_scheduler)
    __sanitizer_start_switch_fiber(&fake_stack, to.stack, kStackBytes);
  else
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack, scheduler_bytes);
#endif
  announce_switch(to.identity);
  swapcontext(&from.context, &to.context);
#ifdef SMILE_FAST_EMULATION_ASAN
  const void* other_stack = nullptr;
  std::size_t other_bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &other_stack, &other_bytes);
  if (!from_scheduler) {
    scheduler_stack = other_stack;
    scheduler_bytes = other_bytes;
  }
#endif
}

void yield() {
  const unsigned self = running_thread;
  switch_to(*running_block->threads[self].fiber, scheduler, false);
}

// The life of a fiber: one thread of one block after another.
void fiber_main() {
#ifdef SMILE_FAST_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (;;) {
    acquire(&running_launch->begin);
    (*running_launch->body)();
    release(&running_block->end);
    release(&running_launch->end);
    running_block->threads[running_thread].state = State::finished;
    ++running_block->finished;
    yield();
  }
}

// Apart, since GCC 12 warns of getcontext where it is inlined.
__attribute__((noinline)) void prepare(ucontext_t& context) {
  if (getcontext(&context) != 0) fail("no context for a fiber");
}

Fiber& fiber(std::size_t number) {
  while (fibers.size() <= number) {
    auto made = std::make_unique<Fiber>();
    made->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made->stack == MAP_FAILED) fail("no memory for a stack");
    made->identity = new_identity();
    prepare(made->context);
    made->context.uc_stack.ss_sp = made->stack;
    made->context.uc_stack.ss_size = kStackBytes;
    makecontext(&made->context, fiber_main, 0);
    fibers.push_back(std::move(made));
  }
  return *fibers[number];
}

void arrive(Barrier& barrier, unsigned participants, State state, unsigned first_thread) {
  Block& block = *running_block;
  char* const address = &barrier.addresses[barrier.phase % 2];
  release(address);
  if (++barrier.arrived < participants) {
    block.threads[running_thread].state = state;
    yield();
  } else {
    barrier.arrived = 0;
    ++barrier.phase;
    for (unsigned i = 0; i < participants; ++i) block.threads[first_thread + i].state = State::running;
  }
  acquire(address);
}

void run_block(Launch& launch, unsigned index) {
  auto block = std::make_unique<Block>();
  const unsigned size = launch.block.x;
  block->index = index;
  block->shared = std::aligned_alloc(64, kSharedBytes);
  std::memset(block->shared, kPoison, kSharedBytes);
  release(&launch.begin);
  block->threads.resize(size);
  block->warps.resize(size / kWarpSize);
  // Neighbouring blocks have fibers of their own: one that ran in both would be ordered, by the barriers of the first
  // block, after what all its threads did.
  for (unsigned i = 0; i < size; ++i) block->threads[i].fiber = &fiber(index % kFiberSets * size + i);
  running_block = block.get();
  bool backwards = index % 2 != 0;  // nothing may depend on the order of threads
  while (block->finished < size) {
    bool progress = false;
    for (unsigned i = 0; i < size; ++i) {
      const unsigned thread = backwards ? size - 1 - i : i;
      if (block->threads[thread].state != State::running) continue;
      progress = true;
      running_thread = thread;
      switch_to(scheduler, *block->threads[thread].fiber, true);
    }
    if (!progress) fail("divergent barrier: some threads wait where others never arrive");
    backwards = !backwards;
  }
#ifdef SMILE_FAST_EMULATION_ASAN
  __asan_unpoison_memory_region(block->shared, kSharedBytes);
#endif
  // Who frees the memory comes after the block's threads, but must not order them before those of the next block.
  static void* const janitor = new_identity();
  announce_switch(janitor);
  acquire(&block->end);
  std::free(block->shared);
  announce_switch(scheduler.identity);
  running_block = nullptr;
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::_Exit(1);
}

void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  if (block.x % kWarpSize != 0 || block.x == 0 || block.x > 1024 || block.y != 1 || block.z != 1 || grid.y != 1 ||
      grid.z != 1 || grid.x == 0)
    fail("a launch needs whole warps, at most 1024 threads, and one dimension");
  count_launch();
  auto launch = std::make_unique<Launch>();
  launch->grid = grid;
  launch->block = block;
  launch->body = &body;
  running_launch = launch.get();
  scheduler.identity = own_identity();
  release(&launch->begin);
  // A step that shares no divisor with the number of blocks visits each of them once, in an order unlike their own.
  std::uint64_t step = 1;
  for (const std::uint64_t prime : {7919ull, 104729ull, 1299709ull})
    if (grid.x % prime != 0) step = prime;
  for (std::uint64_t i = 0; i < grid.x; ++i) {
    const std::uint64_t turn = blocks_reversed ? grid.x - 1 - i : i;
    run_block(*launch, static_cast<unsigned>(turn * step % grid.x));
  }
  acquire(&launch->end);
  running_launch = nullptr;
}

std::int64_t launches() { return launch_count; }
void count_launch() { ++launch_count; }
std::int64_t streamed_bytes() { return streamed_count; }
void count_streamed(std::size_t bytes) { streamed_count += static_cast<std::int64_t>(bytes); }
void reverse_blocks(bool reversed) { blocks_reversed = reversed; }
unsigned thread_index() { return running_thread; }
unsigned block_index() { return running_block->index; }
unsigned block_size() { return running_launch->block.x; }
unsigned grid_size() { return running_launch->grid.x; }

void* shared_memory(std::size_t bytes) {
  Block& block = *running_block;
  if (bytes > kSharedBytes) fail("more than 48 KB of shared memory");
  if (block.shared_bytes != 0 && block.shared_bytes != bytes) fail("a kernel has one shared object");
#ifdef SMILE_FAST_EMULATION_ASAN
  if (block.shared_bytes == 0)
    __asan_poison_memory_region(static_cast<char*>(block.shared) + bytes, kSharedBytes - bytes);
#endif
  block.shared_bytes = bytes;
  return block.shared;
}

void fence() {
  release(&running_launch->fences);
  acquire(&running_launch->fences);
}

void block_barrier() { arrive(running_block->barrier, block_size(), State::at_block_barrier, 0); }

void warp_exchange(std::uint64_t value, std::uint64_t (&values)[32]) {
  Block& block = *running_block;
  const unsigned lane = running_thread % kWarpSize, index = running_thread / kWarpSize;
  Warp& warp = block.warps[index];
  std::uint64_t (&slots)[kWarpSize] = warp.values[block.threads[running_thread].exchanges++ % 2];
  slots[lane] = value;
  arrive(warp.barrier, kWarpSize, State::at_warp_barrier, index * kWarpSize);
  for (unsigned i = 0; i < kWarpSize; ++i) values[i] = slots[i];
}

}  // namespace smile_fast::emulation

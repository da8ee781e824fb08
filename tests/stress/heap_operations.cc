// Operations on malloc's memory: the allocator unmaps, trims and moves pages by its own lights.
#include <cstdlib>
#include <cstring>

#include "tests/stress/worker.h"

namespace uzswap::stress {

// The block through another size and back. What both sizes hold must have survived both moves.
void Worker::Realloc() {
  Range range;
  if (Block* block = LockBlock(range)) {
    const uint32_t other = 1 + random_.Below(96);
    void* moved = realloc(block->memory, static_cast<size_t>(other) * kUnitBytes);
    if (moved == nullptr) world_.reporter().Trouble("realloc failed");
    const uint32_t kept = other < block->units ? other : block->units;
    for (uint32_t i = 0; i < kept; ++i) {
      std::byte* const at = static_cast<std::byte*>(moved) + static_cast<size_t>(i) * kUnitBytes;
      world_.Check("a worker", Op::kRealloc, block->first + i, at, range.state[i], true);
    }
    // A block has a unit at least. NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI)
    block->memory = static_cast<std::byte*>(realloc(moved, static_cast<size_t>(block->units) * kUnitBytes));
    if (block->memory == nullptr) world_.reporter().Trouble("realloc failed");
    world_.memory().Place(*block);
    for (uint32_t i = 0; i < block->units; ++i) {
      range.at[i] = world_.shadow().address(block->first + i);
      if (i < kept) {
        world_.Check("a worker", Op::kRealloc, block->first + i, range.at[i], range.state[i]);
      } else {
        World::WriteAll(block->first + i, range.at[i], range.state[i]);
      }
    }
  }
  Unlock(range, Op::kRealloc);
}

void Worker::FreeMalloc() {
  Range range;
  if (Block* block = LockBlock(range)) {
    Check(range, Op::kFreeMalloc, true);
    const size_t bytes = static_cast<size_t>(block->units) * kUnitBytes;
    free(block->memory);
    const bool zeroed = random_.Below(2) == 0;
    block->memory = static_cast<std::byte*>(zeroed ? calloc(1, bytes) : malloc(bytes));
    if (block->memory == nullptr) world_.reporter().Trouble("malloc failed");
    world_.memory().Place(*block);
    for (uint32_t i = 0; i < block->units; ++i) {
      range.at[i] = world_.shadow().address(block->first + i);
      if (zeroed) {
        // calloc trusts fresh pages to be zero: content that comes back from the dead shows here.
        range.state[i].Zeroed();
        world_.Check("a worker, after calloc", Op::kFreeMalloc, block->first + i, range.at[i],
                     range.state[i]);
      }
      World::WriteAll(block->first + i, range.at[i], range.state[i]);
    }
  }
  Unlock(range, Op::kFreeMalloc);
}

}  // namespace uzswap::stress

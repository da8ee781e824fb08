// One thread that works on the memory: picks operations at random and does each on units that it holds.
//
// The operations' files: worker.cc (reads, writes, the loop), map_operations.cc (madvise, mmap, mremap,
// munmap, mprotect), heap_operations.cc (free, realloc), io_operations.cc (system calls and O_DIRECT on the
// memory, threads), fork_operations.cc. Each ends with every unit as its state says; verification before is
// part of most.
#pragma once

#include <array>
#include <cstdint>

#include "tests/stress/world.h"

namespace uzswap::stress {

class Worker {
 public:
  Worker(World& world, uint32_t index);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Fills this worker's share of the memory, works until the world stops, then verifies its share once more.
  void Run();

  uint64_t done(Op op) const { return done_[static_cast<size_t>(op)]; }
  uint64_t refused_remaps() const { return refused_remaps_; }
  bool has_direct() const { return direct_fd_ >= 0; }

 private:
  static constexpr uint32_t kMaxRange = 64;

  // Neighbouring units that this worker holds.
  struct Range {
    uint32_t first = 0;
    uint32_t count = 0;
    std::array<UnitState, kMaxRange> state;
    std::array<std::byte*, kMaxRange> at;
  };
  // Locks up to `most` units from `first` on, below `end`; fewer, or none, where others hold some.
  void Lock(Range& range, uint32_t first, uint32_t most, uint32_t end);
  void Unlock(Range& range, Op op);
  void Check(Range& range, Op op, bool some = false);
  // A random range of the mapped units, of some mapping, or of the heap units.
  void LockMapped(Range& range, uint32_t most);
  void LockAnywhere(Range& range, uint32_t most);
  // A block or an area with all of its units; count 0 if another holds one.
  Block* LockBlock(Range& range);
  Area& LockArea(Range& range);

  void Step(Op op);
  void Skipped(Op op) { --done_[static_cast<size_t>(op)]; }  // Step counts what it starts
  void Fill();
  void VerifyShare(const char* when);
  void Damage();

  void Read();
  void Write();
  void DontNeed();
  void Free();
  void Guard();
  void MapOver();
  void Remap();
  void RemapKeep();
  void Resize();
  void Unmap();
  void Protect();
  void Realloc();
  void FreeMalloc();
  void SystemCall();
  void Direct();
  void ForkSome();
  void ForkAll();
  void ForkWiped();
  void Thread();

  // mremap that moves; copies instead where the kernel refuses ranges of several mappings (counted).
  std::byte* Move(std::byte* from, uint32_t pages, std::byte* to);
  // The child's work: never returns.
  [[noreturn]] void ChildChecks(Op op, const uint32_t* units, std::byte* const* at, UnitState* states,
                                uint32_t count, bool may_fork = true);
  // For the end of a child, which must be a good one; other workers may stop the world meanwhile, or may not.
  void Await(int child);
  void AwaitInside(int child);

  World& world_;
  const uint32_t index_;
  Random random_;
  int pipe_fd_ = -1;    // a memfd: contents go out and come back by read(2) and write(2)
  int direct_fd_ = -1;  // an unnamed file opened with O_DIRECT
  uint64_t last_fork_ms_ = 0;
  uint64_t refused_remaps_ = 0;
  std::array<uint64_t, static_cast<size_t>(Op::kCount)> done_{};
};

}  // namespace uzswap::stress

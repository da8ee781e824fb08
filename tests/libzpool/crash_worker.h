// The process that is killed: threads that change a store and its indexes, and tell the shadow.
#pragma once

#include <array>
#include <memory>
#include <random>
#include <shared_mutex>

#include "libzpool/compact/compactor.h"
#include "tests/libzpool/crash_shadow.h"

namespace zp::testing {

// Ends the process with a message if the store or an index gives a wrong answer. Runs in a process of its
// own, forked while there was one thread.
class CrashWorkers {
 public:
  CrashWorkers(Shadow& shadow, Revived& world, uint64_t seed);
  // Runs `threads` threads for `operations` operations in all, then ends the process with status 0.
  [[noreturn]] void Run(uint32_t threads, uint64_t operations);

  // Ends the process by SIGKILL at the pause point that the shadow names.
  static void ArmPausePoints(Shadow& shadow);

 private:
  struct Thread {
    uint32_t number;
    std::mt19937_64 random;
    Scratch scratch;
    PageBuffer page, out;
    uint64_t Below(uint64_t n) { return random() % n; }
  };

  void Work(Thread& thread);
  void Step(Thread& thread);
  void Replace(Thread& thread, uint32_t index, uint32_t page);
  void TakeHome(Thread& thread, uint32_t index, uint32_t page);
  void Move(Thread& thread, uint32_t index, uint32_t page);
  void Compact(Thread& thread);
  void DropRange(Thread& thread, uint32_t index);
  void Rekey(Thread& thread, uint32_t index);
  // The caller holds the locks of both.
  void Clone(Thread& thread, uint32_t index, uint32_t other);
  void DropClone(Thread& thread, uint32_t index);

  void Begin(Thread& thread, CrashOp op, const Intent& intent);
  void End(Thread& thread);
  void DropPages(Thread& thread, uint32_t index, uint32_t begin, uint32_t end);
  // The content of the slot is right.
  void Check(Thread& thread, Slot slot, uint64_t content);

  Shadow& shadow_;
  Revived& world_;
  const uint64_t seed_;
  Compactor compactor_;
  // By index; exclusive: what needs everybody else out of it. Two are taken in order.
  std::array<std::shared_mutex, kCrashIndexes> mu_;
  uint64_t operations_ = 0;
};

}  // namespace zp::testing

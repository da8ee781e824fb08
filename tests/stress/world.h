// What all workers share, and the checking and writing of one unit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "tests/stress/memory.h"
#include "tests/stress/options.h"
#include "tests/stress/report.h"
#include "tests/stress/shadow.h"

namespace uzswap::stress {

class World {
 public:
  explicit World(const Options& options);
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Options& options() const { return options_; }
  Memory& memory() { return memory_; }
  Shadow& shadow() { return memory_.shadow(); }
  // A copy of the shadow for the child of a fork with all workers stopped. One at a time: see ClaimSnapshot.
  Shadow& snapshot() { return snapshot_; }
  bool ClaimSnapshot() { return !snapshot_taken_.exchange(true); }
  void ReleaseSnapshot() { snapshot_taken_ = false; }
  Reporter& reporter() { return reporter_; }
  Progress& progress(uint32_t worker) { return progress_[worker]; }

  // Every operation of a worker lies between Enter and Leave. Enter waits while another worker has stopped
  // the world.
  void Enter(uint32_t worker);
  void Leave(uint32_t worker) { progress_[worker].in_operation.store(0); }
  // Called inside an operation: false if another is stopping the world; else all other workers are outside
  // theirs until Resume.
  bool StopOthers(uint32_t worker);
  void Resume();

  bool stopping() const { return stopping_.load(std::memory_order_relaxed); }
  void Stop() { stopping_ = true; }

  // Compares words of the unit at `at` with what `state` says: all of them, or (`some`) a few. A unit that
  // the kernel may drop (MADV_FREE) may be zero, and `state` says so afterwards. Does not come back from a
  // wrong word.
  void Check(const char* who, Op op, uint32_t unit, const std::byte* at, UnitState& state, bool some = false);
  // Writes the next generation into the unit: the whole of it, or the next `words` words.
  static void WriteAll(uint32_t unit, std::byte* at, UnitState& state);
  static void WriteSome(uint32_t unit, std::byte* at, UnitState& state, uint32_t words);

 private:
  const Options options_;
  Memory memory_;
  Shadow snapshot_;
  Progress* progress_;
  Reporter reporter_;
  std::atomic<bool> snapshot_taken_{false};
  std::atomic<uint32_t> stopped_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace uzswap::stress

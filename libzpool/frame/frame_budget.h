// How many frames may be populated, over all nodes.
#pragma once

#include <atomic>
#include <cstdint>

#include "libzpool/base/check.h"

namespace zp {

// A counter with a limit. Frames are taken before they are populated and given back after they are punched,
// so memory in use never exceeds the limit. Thread-safe, lock-free.
class FrameBudget {
 public:
  explicit FrameBudget(uint64_t limit_frames) : limit_(limit_frames) {}
  FrameBudget(const FrameBudget&) = delete;
  FrameBudget& operator=(const FrameBudget&) = delete;

  // What a migration may take above the limit, since it gives as much back soon: 4 MiB.
  static constexpr uint64_t kMigrationReserve = 1024;

  // Takes all `frames` or none.
  bool TryTake(uint64_t frames) { return TryTakeBelow(frames, limit_frames()); }
  // Over the limit, if it must be: for what would be lost otherwise.
  void TakeAlways(uint64_t frames) { used_.fetch_add(frames, std::memory_order_relaxed); }
  bool TryTakeForMigration(uint64_t frames) {
    return TryTakeBelow(frames, limit_frames() + kMigrationReserve);
  }

  void Give(uint64_t frames) {
    const uint64_t before = used_.fetch_sub(frames, std::memory_order_relaxed);
    ZP_CHECK(before >= frames, "more frames given back than taken");
  }

  uint64_t used_frames() const { return used_.load(std::memory_order_relaxed); }
  uint64_t limit_frames() const { return limit_.load(std::memory_order_relaxed); }
  // A lower limit takes nothing away; it refuses until enough was given back.
  void set_limit_frames(uint64_t frames) { limit_.store(frames, std::memory_order_relaxed); }

 private:
  bool TryTakeBelow(uint64_t frames, uint64_t limit) {
    uint64_t used = used_.load(std::memory_order_relaxed);
    do {
      if (used + frames > limit) return false;
    } while (!used_.compare_exchange_weak(used, used + frames, std::memory_order_relaxed));
    return true;
  }

  std::atomic<uint64_t> limit_;
  std::atomic<uint64_t> used_{0};
};

}  // namespace zp

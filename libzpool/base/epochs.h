// Waiting for readers that take no lock.
#pragma once

#include <sched.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "libzpool/base/mutex.h"

namespace zp {

// Idea: a reader counts itself in and out of one of two sums; who has taken something out of sight waits
//   until the readers that may still see it have left. Two sums, used in turn, so that readers who come
//   meanwhile do not prolong the wait; both are waited for, since a reader may have looked at the phase long
//   before it counts itself.
// Cost: two atomic additions to a cache line of the CPU per reading; 2 KiB.
// Threads: everything from any thread. Guards are held for a page's copy, not more, and waited under never.
// Order: what was published before Synchronize, by a sequentially consistent operation, is what readers see
//   whom it did not wait for; they must look with a sequentially consistent load.
// Source: sleepable read-copy-update (SRCU), McKenney 2006.
class Epochs {
 public:
  class [[nodiscard]] Guard {
   public:
    explicit Guard(std::atomic<uint64_t>& inside) : inside_(inside) {
      inside_.fetch_add(1, std::memory_order_seq_cst);
    }
    ~Guard() { inside_.fetch_sub(1, std::memory_order_release); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    std::atomic<uint64_t>& inside_;
  };

  // A reading from here to the end of the guard's life. On one thread guards may nest.
  Guard Enter() const {
    const int cpu = sched_getcpu();
    Stripe& stripe = stripes_[cpu < 0 ? 0 : static_cast<unsigned>(cpu) % kStripes];
    return Guard(stripe.inside[phase_.load(std::memory_order_relaxed) & 1]);
  }

  // Returns when every reading that began before the call has ended. Not under a guard of the same thread.
  void Synchronize() ZP_EXCLUDES(mu_);

 private:
  static constexpr unsigned kStripes = 32;
  struct alignas(64) Stripe {
    std::array<std::atomic<uint64_t>, 2> inside{};
  };

  mutable std::array<Stripe, kStripes> stripes_;
  std::atomic<uint32_t> phase_{0};
  Mutex mu_;  // one Synchronize at a time
};

}  // namespace zp

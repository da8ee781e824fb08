// Threads beside the workers, for two races that a single thread cannot make.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "tests/stress/report.h"

namespace uzswap::stress {

// - A pair on a small area of its own: one unmaps it, the other takes the address the moment it is free,
// perhaps
//   before munmap has returned to the first (hazard H1: a decision about the old mapping meets the new one).
// - A loop of mprotect over a large populated area: it holds the address space's lock for long, which
// stretches the
//   time between the announcement of a madvise(DONTNEED) and its effect (hazard H3).
class Helpers {
 public:
  explicit Helpers(Reporter& reporter);
  ~Helpers();  // stops and joins
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;

  uint64_t handovers() const { return handovers_; }

 private:
  void Unmapper(std::byte* area);
  void Taker(std::byte* area);
  void Protector(std::byte* area);

  Reporter& reporter_;
  std::atomic<bool> stop_{false};
  // kToUnmap from the taker's request until munmap has returned to the unmapper.
  static constexpr uint32_t kTaken = 0, kToUnmap = 1;
  std::atomic<uint32_t> turn_{kTaken};
  std::atomic<uint64_t> handovers_{0};
  std::vector<std::thread> threads_;
};

}  // namespace uzswap::stress

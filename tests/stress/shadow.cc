#include "tests/stress/shadow.h"

#include <sys/mman.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>

namespace uzswap::stress {

uint64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  const uint64_t ms = static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
  static const uint64_t start = ms;
  return ms - start;
}

Shadow::Shadow(uint32_t units) : units_(units) {
  void* memory =
      mmap(nullptr, units * sizeof(Record), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    perror("verifier: mapping the shadow");
    exit(3);
  }
  records_ = static_cast<Record*>(memory);
  for (uint32_t unit = 0; unit < units; ++unit) records_[unit].state.store(Pack(UnitState{}));
}

Shadow::~Shadow() { munmap(records_, units_ * sizeof(Record)); }

uint64_t Shadow::Pack(const UnitState& state) {
  return static_cast<uint64_t>(state.lazy) << 62 | static_cast<uint64_t>(state.absent) << 61 |
         static_cast<uint64_t>(state.split) << 48 | static_cast<uint64_t>(state.previous) << 24 |
         state.generation;
}

UnitState Shadow::Unpack(uint64_t word) {
  return {static_cast<uint32_t>(word & (kMaxGeneration - 1)),
          static_cast<uint32_t>(word >> 24 & (kMaxGeneration - 1)), static_cast<uint32_t>(word >> 48 & 0x3ff),
          (word >> 62 & 1) != 0, (word >> 61 & 1) != 0};
}

void Shadow::CopyFrom(const Shadow& from) {
  for (uint32_t unit = 0; unit < units_; ++unit) {
    records_[unit].state.store(from.records_[unit].state.load(std::memory_order_acquire),
                               std::memory_order_relaxed);
    records_[unit].address = from.records_[unit].address;
    records_[unit].last = from.records_[unit].last;
  }
}

std::optional<UnitState> Shadow::TryLock(uint32_t unit) {
  uint64_t word = records_[unit].state.load(std::memory_order_relaxed);
  if (word & kLocked) return std::nullopt;
  if (!records_[unit].state.compare_exchange_strong(word, word | kLocked, std::memory_order_acquire))
    return std::nullopt;
  return Unpack(word);
}

void Shadow::Unlock(uint32_t unit, const UnitState& state, Op op) {
  records_[unit].last = static_cast<uint64_t>(op) << 56 | NowMs();
  records_[unit].state.store(Pack(state), std::memory_order_release);
}

}  // namespace uzswap::stress

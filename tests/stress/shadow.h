// What each unit of memory should hold, kept where no swap can touch it.
//
// Idea: one record per unit in a MAP_SHARED mapping, which uzswap never manages. A record is also the unit's
// lock: who has set its bit owns the unit's memory and may read and write both. Nobody waits for a lock: a
// worker that finds a unit taken picks another, so no order of locks can go wrong, and a stall is the
// memory's own.
//
// A unit is rewritten in pieces: words [0, split) are of `generation`, the rest of `previous`. So a lost
// write shows even where only half a page was written. `generation` only grows, also over memory that is
// thrown away: what comes back from the dead is then older than everything expected.
//
// Threads: TryLock/Unlock from any; the rest by the owner of the unit.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "tests/stress/pattern.h"

namespace uzswap::stress {

struct UnitState {
  uint32_t generation = 0;  // of the latest writing; 0: never written
  uint32_t previous = 0;    // of words from `split` on; 0: zeros
  uint32_t split = kUnitWords;
  bool lazy = false;    // after MADV_FREE: all as expected, or all zero
  bool absent = false;  // no memory there now

  uint64_t Expected(uint32_t unit, uint32_t index) const {
    return ExpectedWord(unit, index < split ? generation : previous, index);
  }
  // Whole unit zero now, as after MADV_DONTNEED.
  void Zeroed() {
    previous = split = 0;
    lazy = absent = false;
  }
};

// The operations of a verifier, in the order of their names in report.cc. Kept per unit as its last one.
enum class Op : uint8_t {
  kNone,
  kRead,
  kWrite,
  kDontNeed,
  kFree,
  kGuard,
  kMapOver,
  kRemap,
  kRemapKeep,
  kResize,
  kUnmap,
  kProtect,
  kRealloc,
  kFreeMalloc,
  kSystemCall,
  kDirect,
  kForkSome,
  kForkAll,
  kForkWiped,
  kThread,
  kCount,
};

class Shadow {
 public:
  // Exits with status 3 if the mapping fails.
  explicit Shadow(uint32_t units);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  uint32_t units() const { return units_; }

  // The state if the unit was free and is now the caller's; nothing if another has it.
  std::optional<UnitState> TryLock(uint32_t unit);
  // Publishes what the unit holds now and gives it back. `op` is noted for a later report.
  void Unlock(uint32_t unit, const UnitState& state, Op op);

  UnitState Peek(uint32_t unit) const { return Unpack(records_[unit].state.load(std::memory_order_acquire)); }

  // Where the unit's 4096 bytes are. The owner alone may change it.
  std::byte* address(uint32_t unit) const { return reinterpret_cast<std::byte*>(records_[unit].address); }
  void set_address(uint32_t unit, std::byte* at) { records_[unit].address = reinterpret_cast<uintptr_t>(at); }

  // Copies every record; `from` has as many units, and nobody holds any of them meanwhile.
  void CopyFrom(const Shadow& from);

  Op last_op(uint32_t unit) const { return static_cast<Op>(records_[unit].last >> 56); }
  uint64_t last_ms(uint32_t unit) const { return records_[unit].last & ((1ull << 56) - 1); }

 private:
  struct Record {
    std::atomic<uint64_t> state;
    uintptr_t address;
    uint64_t last;  // Op in the top byte, milliseconds since the start below
  };

  // state: [63 locked][62 lazy][61 absent][57..48 split][47..24 previous][23..0 generation]
  static constexpr uint64_t kLocked = 1ull << 63;
  static uint64_t Pack(const UnitState& state);
  static UnitState Unpack(uint64_t word);

  uint32_t units_;
  Record* records_;
};

// Milliseconds since the first call.
uint64_t NowMs();

}  // namespace uzswap::stress

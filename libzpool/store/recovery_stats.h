// What was found, and what was not, when a pool comes back from its files.
#pragma once

#include <cstdint>

namespace zp {

// Filled by PageStore::Recover and FinishRecovery, and added to by each OffsetIndex::Recover.
struct RecoveryStats {
  // The pool.
  uint64_t objects = 0;  // entries that name an object which can be there
  uint64_t frames = 0;   // with memory, those of objects and idle ones
  // Entries that do not, by reason. After a crash alone there are none: they come from damaged files.
  uint64_t bad_location = 0;  // no such node, span, place in it, length or codec
  uint64_t no_memory = 0;     // a frame of the object is a hole
  uint64_t overlaps = 0;      // another object lies there
  // Objects that nobody holds: what was just being stored, or just released. They are freed.
  uint64_t orphans = 0;

  // The indexes.
  uint64_t nodes = 0;
  uint64_t slots = 0;       // stored ones that are what they were, counted once for all clones of a leaf
  uint64_t lost_slots = 0;  // whose object is gone or whose word makes no sense; they are Slot::Lost() now
  uint64_t filling = 0;     // found on their way home
  uint64_t busy = 0;
  uint64_t cut_branches = 0;  // words of inner nodes that named no node that can be there

  uint64_t dropped() const { return bad_location + no_memory + overlaps; }
};

}  // namespace zp

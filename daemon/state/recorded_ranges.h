// A RangeSet that outlives its daemon: what a client's userfaultfd watches, as far as is known.
//
// Idea: the set is in memory; beside it an array in the client table has one slot for each of its ranges, in
// no order. A change writes the ranges that are new before it clears those that are gone, each by one store
// that counts, so whoever finds the array after a death at any instruction reads the set as it was, as it was
// to be, or with both in it. What was to be is brought about by doing the change again, which its owner does:
// it applies the event again.
//
// Threads: none of its own; the owner's lock guards it. Memory for more slots, or more slots than there are,
// may not be had: then the set is right, and a successor does not know the ranges that had no slot.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "daemon/state/client_table.h"
#include "daemon/state/range_set.h"

namespace uzswap {

class RecordedRanges {
 public:
  // The record's slots are empty, or Recover follows.
  RecordedRanges(const ClientTable& table, ClientRecord* record) : table_(table), record_(record) {}
  RecordedRanges(const RecordedRanges&) = delete;
  RecordedRanges& operator=(const RecordedRanges&) = delete;

  // Takes over what another daemon left in the record.
  void Recover();
  void Add(uint64_t start, uint64_t end);
  void Remove(uint64_t start, uint64_t end);
  void Clear();

  const RangeSet& set() const { return set_; }

 private:
  using Slots = std::vector<uint32_t>;

  void Write(const AddressRange& range);
  void Clear(const Slots& slots);
  // Takes the ranges around [start, end) out of `slot_of_`.
  Slots Release(uint64_t start, uint64_t end);

  const ClientTable& table_;
  ClientRecord* const record_;
  RangeSet set_;
  std::map<uint64_t, uint32_t> slot_of_;  // by a range's start
  Slots free_;                            // among those that were used once
};

}  // namespace uzswap

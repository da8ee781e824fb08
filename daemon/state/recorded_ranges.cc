#include "daemon/state/recorded_ranges.h"

#include <algorithm>

#include "libzpool/base/pause_point.h"

namespace uzswap {
namespace {

bool IsValid(const AddressRange& range) {
  return range.start < range.end && (range.start | range.end) % zp::kPageBytes == 0;
}

}  // namespace

RecordedRanges::Slots RecordedRanges::Release(uint64_t start, uint64_t end) {
  Slots released;
  for (const AddressRange& range : set_.Touching(start, end)) {
    const auto found = slot_of_.find(range.start);
    if (found == slot_of_.end()) continue;
    released.push_back(found->second);
    slot_of_.erase(found);
  }
  return released;
}

void RecordedRanges::Add(uint64_t start, uint64_t end) {
  if (start >= end) return;
  for (const AddressRange& range : set_.Touching(start, end)) {
    if (range.start <= start && end <= range.end) return;
  }
  const Slots old = Release(start, end);
  set_.Add(start, end);
  for (const AddressRange& range : set_.Touching(start, end)) Write(range);
  ZP_PAUSE_POINT("ranges.written");
  Clear(old);
}

void RecordedRanges::Remove(uint64_t start, uint64_t end) {
  if (set_.Intersect(start, end).empty()) return;
  const Slots old = Release(start, end);
  std::vector<AddressRange> left;
  for (const AddressRange& range : set_.Touching(start, end)) {
    if (range.start < start) left.push_back({range.start, std::min(range.end, start)});
    if (range.end > end) left.push_back({std::max(range.start, end), range.end});
  }
  set_.Remove(start, end);
  for (const AddressRange& range : left) Write(range);
  ZP_PAUSE_POINT("ranges.written");
  Clear(old);
}

void RecordedRanges::Clear() {
  Slots all;
  for (const auto& [start, slot] : slot_of_) all.push_back(slot);
  slot_of_.clear();
  set_.clear();
  Clear(all);
}

void RecordedRanges::Write(const AddressRange& range) {
  uint32_t slot = 0;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else {
    slot = record_->ranges_used;
    if (!table_.PopulateRanges(record_, slot + 1)) return;
    table_.ranges(record_)[slot].end = 0;
    CompilerBarrier();
    record_->ranges_used = slot + 1;
  }
  AddressRange& place = table_.ranges(record_)[slot];
  place.start = range.start;
  CompilerBarrier();
  ZP_PAUSE_POINT("ranges.begun");
  place.end = range.end;  // from here on it counts
  CompilerBarrier();
  slot_of_[range.start] = slot;
}

void RecordedRanges::Clear(const Slots& slots) {
  for (const uint32_t slot : slots) {
    table_.ranges(record_)[slot].end = 0;
    CompilerBarrier();
    free_.push_back(slot);
  }
}

void RecordedRanges::Recover() {
  const auto slots = table_.ranges(record_).first(std::min(record_->ranges_used, kRangesPerClient));
  record_->ranges_used = static_cast<uint32_t>(slots.size());
  for (const AddressRange& range : slots) {
    if (IsValid(range)) set_.Add(range.start, range.end);
  }
  // One slot for each range of the set; a change that was under way may have left several.
  Slots others;
  for (uint32_t slot = 0; slot < slots.size(); ++slot) {
    const AddressRange range = slots[slot];
    const auto whole = IsValid(range) ? set_.Touching(range.start, range.end) : std::vector<AddressRange>();
    if (whole.size() == 1 && whole.front() == range && slot_of_.emplace(range.start, slot).second) continue;
    if (range.end == 0) {
      free_.push_back(slot);
    } else {
      others.push_back(slot);
    }
  }
  for (const AddressRange& range : set_.All()) {
    if (!slot_of_.contains(range.start)) Write(range);
  }
  Clear(others);
}

}  // namespace uzswap

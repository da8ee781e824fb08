// A set of addresses as disjoint half-open ranges [start, end).
//
// Idea: a sorted map from start to end; neighbours that touch are one. Every operation is O(log n + ranges
// touched), so a set over gigabytes costs what its fragmentation costs.
// Threads: none of its own; the owner's lock guards it. Allocates; no other failure.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace uzswap {

struct AddressRange {
  uint64_t start = 0;
  uint64_t end = 0;
  bool empty() const { return start >= end; }
  friend bool operator==(const AddressRange&, const AddressRange&) = default;
};

class RangeSet {
 public:
  void Add(uint64_t start, uint64_t end) {
    if (start >= end) return;
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin() && std::prev(it)->second >= start) --it;
    while (it != ranges_.end() && it->first <= end) {
      start = std::min(start, it->first);
      end = std::max(end, it->second);
      it = ranges_.erase(it);
    }
    ranges_.emplace(start, end);
  }

  void Remove(uint64_t start, uint64_t end) {
    if (start >= end) return;
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin() && std::prev(it)->second > start) --it;
    while (it != ranges_.end() && it->first < end) {
      const auto [from, to] = *it;
      it = ranges_.erase(it);
      if (from < start) ranges_.emplace(from, start);
      if (to > end) {
        ranges_.emplace(end, to);
        break;
      }
    }
  }

  bool Contains(uint64_t address) const {
    const auto it = ranges_.upper_bound(address);
    return it != ranges_.begin() && std::prev(it)->second > address;
  }

  // The parts of [start, end) that are in the set, ascending.
  std::vector<AddressRange> Intersect(uint64_t start, uint64_t end) const {
    std::vector<AddressRange> parts;
    if (start >= end) return parts;
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin() && std::prev(it)->second > start) --it;
    for (; it != ranges_.end() && it->first < end; ++it) {
      parts.push_back({std::max(start, it->first), std::min(end, it->second)});
    }
    return parts;
  }

  // The ranges, whole, that overlap [start, end) or touch it, ascending.
  std::vector<AddressRange> Touching(uint64_t start, uint64_t end) const {
    std::vector<AddressRange> ranges;
    auto it = ranges_.upper_bound(start);
    if (it != ranges_.begin() && std::prev(it)->second >= start) --it;
    for (; it != ranges_.end() && it->first <= end; ++it) ranges.push_back({it->first, it->second});
    return ranges;
  }

  // The parts of [start, end) that are not in the set, ascending.
  std::vector<AddressRange> Gaps(uint64_t start, uint64_t end) const {
    std::vector<AddressRange> gaps;
    for (const AddressRange& part : Intersect(start, end)) {
      if (part.start > start) gaps.push_back({start, part.start});
      start = part.end;
    }
    if (start < end) gaps.push_back({start, end});
    return gaps;
  }

  std::vector<AddressRange> All() const {
    std::vector<AddressRange> all;
    for (const auto& [start, end] : ranges_) all.push_back({start, end});
    return all;
  }

  bool empty() const { return ranges_.empty(); }
  size_t size() const { return ranges_.size(); }
  void clear() { ranges_.clear(); }

 private:
  std::map<uint64_t, uint64_t> ranges_;
};

}  // namespace uzswap

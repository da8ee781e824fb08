// Which pages to take next.
//
// Idea: a clock hand over the addresses of a client's evictable mappings. The kernel gives user space no
// accessed bit, so a page's heat is learned from its coming back: each 2 MiB region counts its refaults, and
// the hand passes over a region that had many, halving its count. A mapping younger than kMatureAfter is left
// alone, so mmap churn costs nothing; unless the client is well over its limit (`urgent`), when growth is
// what must be taken.
//
// Never chosen: anything but "rw-p" anonymous memory; the agent's own ranges; the neighbourhood of each
// thread's descriptor (H14: the kernel's exit path silently drops writes to a missing page there) and its
// stack; pages with mutexes that the kernel writes (wire/notes.h).
//
// Cost: reading maps once per kRefreshEvery, a PAGEMAP_SCAN per batch (12 ns a present page).
// Threads: one at a time (the client's eviction lock); RegionHeat from any thread.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <set>
#include <vector>

#include "daemon/state/range_set.h"
#include "daemon/sys/process_memory.h"
#include "daemon/wire/ring.h"

namespace uzswap {

inline constexpr uint64_t kRegionBytes = 2 << 20;

// Refaults per 2 MiB region, hashed: two regions 128 GiB apart share a counter, which costs a little
// judgement.
class RegionHeat {
 public:
  void Touch(uint64_t address) {
    auto& heat = heat_[Index(address)];
    const uint8_t now = heat.load(std::memory_order_relaxed);
    if (now < 255) heat.store(static_cast<uint8_t>(now + 1), std::memory_order_relaxed);
  }
  uint8_t Get(uint64_t address) const { return heat_[Index(address)].load(std::memory_order_relaxed); }
  void Halve(uint64_t address) {
    auto& heat = heat_[Index(address)];
    heat.store(static_cast<uint8_t>(heat.load(std::memory_order_relaxed) / 2), std::memory_order_relaxed);
  }

 private:
  static size_t Index(uint64_t address) { return (address / kRegionBytes) % kEntries; }
  static constexpr size_t kEntries = 65536;
  std::array<std::atomic<uint8_t>, kEntries> heat_{};
};

class VictimScanner {
 public:
  static constexpr std::chrono::milliseconds kRefreshEvery{20};
  static constexpr std::chrono::milliseconds kMatureAfter{40};
  static constexpr std::chrono::milliseconds kUrgentRefresh{3};
  static constexpr uint8_t kHotRefaults = 64;  // of a region's 512 pages, since the hand was last there

  void Exclude(AddressRange own) { own_.push_back(own); }
  // Threads of the process, by their descriptors; `main_tid` is the one whose stack is [stack].
  void SetThreads(const std::vector<wire::ThreadRecord>& threads, int main_tid);

  // Pages that stay, by their addresses.
  void SetKept(std::set<uint64_t> pages) { kept_ = std::move(pages); }

  // Looks at the mappings, so that they mature before the first victim is wanted. Next does it, too.
  void Refresh(const ProcessMemory& memory, bool urgent);
  // Up to `max_pages` addresses, ascending runs within one region after the other. Empty: nothing fit now.
  std::vector<uint64_t> Next(const ProcessMemory& memory, RegionHeat& heat, uint64_t max_pages, bool urgent);

 private:
  std::vector<AddressRange> own_;
  std::vector<AddressRange> thread_windows_;
  std::set<uint64_t> kept_;
  RangeSet previous_, mature_;
  std::chrono::steady_clock::time_point previous_at_{}, refreshed_at_{};
  uint64_t hand_ = 0;
};

// Decides when a doomed page that is still present may be evicted again (H3).
//
// A REMOVE is announced before the pages are zapped, by a thread that is inside madvise(2) until it is done.
// A doomed range is cleared when every thread that lived at its announcement has been seen outside madvise
// since. Threads born later cannot be that thread.
class DoomClearance {
 public:
  // A range was doomed: what is running now must be seen again.
  void Doomed(uint64_t start, uint64_t end) { fresh_.push_back({start, end}); }
  // A listing of the threads is about to be taken: it will speak for what was announced before this call.
  void Mark() {
    marked_.insert(marked_.end(), fresh_.begin(), fresh_.end());
    fresh_.clear();
  }
  // A complete listing of the process's threads, taken after Mark. Ranges that are cleared by it are
  // returned.
  std::vector<AddressRange> Observe(const std::vector<wire::ThreadRecord>& threads);
  // What is not cleared yet.
  std::vector<AddressRange> Pending() const;

 private:
  std::vector<AddressRange> fresh_;    // announced since the last Mark
  std::vector<AddressRange> marked_;   // announced before it, no listing seen yet
  std::vector<AddressRange> waiting_;  // waiting for `uncleared_`
  std::set<int> uncleared_;
};

}  // namespace uzswap

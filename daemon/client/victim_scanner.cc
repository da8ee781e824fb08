#include "daemon/client/victim_scanner.h"

#include <sys/syscall.h>

#include <algorithm>

namespace uzswap {
namespace {

constexpr uint64_t kMainWindow = 64 * 1024;  // around the main thread's descriptor: its static TLS
constexpr uint64_t kStackWindow = 8 << 20;   // below another thread's descriptor: the default stack size

constexpr uint64_t kGuardBytes = 64 * 1024;  // libc's guard below a stack is a page

}  // namespace

void VictimScanner::SetThreads(const std::vector<wire::ThreadRecord>& threads, int main_tid) {
  thread_windows_.clear();
  for (const auto& thread : threads) {
    if (thread.robust_list == 0) continue;
    const uint64_t below = thread.tid == main_tid ? kMainWindow : kStackWindow;
    const uint64_t start = thread.robust_list > below ? thread.robust_list - below : 0;
    thread_windows_.push_back(
        {start & ~uint64_t{4095}, (thread.robust_list + kMainWindow) & ~uint64_t{4095}});
  }
}

void VictimScanner::Refresh(const ProcessMemory& memory, bool urgent) {
  const auto now = std::chrono::steady_clock::now();
  if (now - refreshed_at_ < (urgent ? kUrgentRefresh : kRefreshEvery)) return;
  auto maps = memory.ReadMaps();
  refreshed_at_ = now;
  if (!maps.ok()) {
    mature_.clear();
    return;
  }
  RangeSet current;
  const MapEntry* below = nullptr;
  for (const MapEntry& entry : *maps) {
    const bool guarded = below != nullptr && below->inaccessible && below->end == entry.start &&
                         below->end - below->start <= kGuardBytes;
    below = &entry;
    if (!entry.private_rw_anonymous) continue;
    // By its looks a thread's stack of the default size: its thread may be too young for the last listing
    // (H14).
    if (guarded && entry.end - entry.start == kStackWindow) continue;
    current.Add(entry.start, entry.end);
  }
  // A thread's window reaches down to the start of its mapping at most: adjacent mappings have their own
  // entries.
  for (const AddressRange& window : thread_windows_) {
    for (const MapEntry& entry : *maps) {
      const uint64_t anchor = window.end - kMainWindow;
      if (entry.start <= anchor && anchor < entry.end) {
        current.Remove(std::max(window.start, entry.start), std::min(window.end, entry.end));
      }
    }
  }
  for (const AddressRange& own : own_) current.Remove(own.start, own.end);

  if (urgent) {
    mature_ = std::move(current);
    return;
  }
  RangeSet mature;
  for (const AddressRange& range : current.All()) {
    for (const AddressRange& part : previous_.Intersect(range.start, range.end))
      mature.Add(part.start, part.end);
  }
  if (now - previous_at_ >= kMatureAfter) {
    mature_ = std::move(mature);
    previous_ = std::move(current);
    previous_at_ = now;
  } else {
    // Between two full steps: nothing new matures, but what is gone is gone.
    RangeSet still;
    for (const AddressRange& range : mature.All()) {
      for (const AddressRange& part : mature_.Intersect(range.start, range.end))
        still.Add(part.start, part.end);
    }
    mature_ = std::move(still);
  }
}

std::vector<uint64_t> VictimScanner::Next(const ProcessMemory& memory, RegionHeat& heat, uint64_t max_pages,
                                          bool urgent) {
  Refresh(memory, urgent);
  std::vector<uint64_t> pages;
  std::vector<page_region> regions;
  // Two rounds at most: one that spares hot regions, one that does not.
  for (const bool spare_hot : {true, false}) {
    uint64_t from = hand_;
    for (const bool wrapped : {false, true}) {
      const uint64_t to = wrapped ? hand_ : ~uint64_t{0};
      if (wrapped) from = 0;
      for (const AddressRange& range : mature_.Intersect(from, to)) {
        for (uint64_t at = range.start; at < range.end;) {
          const uint64_t region_end = std::min(range.end, (at / kRegionBytes + 1) * kRegionBytes);
          const bool hot = spare_hot && heat.Get(at) >= kHotRefaults;
          if (hot) heat.Halve(at);
          uint64_t next = region_end;
          if (!hot) {
            regions.clear();
            auto end = memory.ScanPresent(at, region_end, max_pages - pages.size(), &regions);
            if (!end.ok()) return pages;
            next = std::max(*end, at + 4096);
            for (const page_region& region : regions) {
              for (uint64_t page = region.start; page < region.end && pages.size() < max_pages;
                   page += 4096) {
                if (!kept_.contains(page)) pages.push_back(page);
              }
            }
          }
          if (pages.size() >= max_pages) {
            hand_ = next;
            return pages;
          }
          at = next;
        }
      }
    }
    if (!pages.empty()) return pages;
  }
  return pages;
}

std::vector<AddressRange> DoomClearance::Observe(const std::vector<wire::ThreadRecord>& threads) {
  const auto outside = [](const wire::ThreadRecord& thread) {
    // Blocked outside a system call without a robust list: a kernel worker of io_uring, perhaps at a madvise.
    if (thread.syscall == -1 && thread.robust_list == 0) return false;
    return thread.syscall != -2 && thread.syscall != SYS_madvise && thread.syscall != SYS_process_madvise;
  };
  std::vector<AddressRange> cleared;
  if (!waiting_.empty()) {
    std::set<int> alive;
    for (const auto& thread : threads) {
      alive.insert(thread.tid);
      if (outside(thread)) uncleared_.erase(thread.tid);
    }
    std::erase_if(uncleared_, [&](int tid) { return !alive.contains(tid); });
    if (uncleared_.empty()) cleared.swap(waiting_);
  }
  if (waiting_.empty() && !marked_.empty()) {
    waiting_.swap(marked_);
    for (const auto& thread : threads) {
      if (!outside(thread)) uncleared_.insert(thread.tid);
    }
    if (uncleared_.empty()) {
      cleared.insert(cleared.end(), waiting_.begin(), waiting_.end());
      waiting_.clear();
    }
  }
  return cleared;
}

std::vector<AddressRange> DoomClearance::Pending() const {
  std::vector<AddressRange> all = fresh_;
  all.insert(all.end(), marked_.begin(), marked_.end());
  all.insert(all.end(), waiting_.begin(), waiting_.end());
  return all;
}

}  // namespace uzswap

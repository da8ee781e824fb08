// What an agent notes for the daemon in the program's own memory: a mapping that is never evicted.
//
// Idea: the functions that the agent puts before libc's run on the program's threads. They leave a note here
// and never wait; the daemon reads it through /proc/PID/mem before it chooses pages. A forked child inherits
// the notes with everything else.
//
// Layout (kNotesBytes, page-aligned, its start is in Hello): [KeptMutexes].
//
// Kept mutexes: the kernel itself writes a mutex with priority inheritance while its owner sleeps or wakes,
// and a robust one when its owner dies; it does not wait for a missing page then, and says EFAULT or nothing
// (11.4). Pages that hold such a mutex stay.
//
// Trust: the program can write anything here. It can only keep its own pages resident.
// Threads: any thread of the program adds and removes; the daemon reads at any time.
#pragma once

#include <stdint.h>

#include <atomic>

namespace uzswap::wire {

inline constexpr uint64_t kNotesBytes = 4 * 4096;
inline constexpr uint32_t kMaxKeptMutexes = (kNotesBytes - 64) / sizeof(uint64_t);

struct KeptMutexes {
  std::atomic<uint64_t> changes;  // counts additions and removals, behind each
  std::atomic<uint32_t> used;     // entries from here on were never used
  uint32_t reserved[13];
  std::atomic<uint64_t> mutex[kMaxKeptMutexes];  // addresses; 0: free
};
static_assert(sizeof(KeptMutexes) <= kNotesBytes);
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);

}  // namespace uzswap::wire

// What is counted about a client. Counters only grow; gauges are computed where they are asked for.
//
// Threads: relaxed atomics, any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "daemon/state/histogram.h"

namespace uzswap {

using Counter = std::atomic<uint64_t>;

struct ClientStats {
  Counter evicted_pages{0};
  // Faults by how they were answered.
  Counter faults_stored{0};     // from the pool, the same-filled slot or a staged copy
  Counter faults_zero_fill{0};  // fresh memory in a registered range
  Counter fault_around_pages{0};
  Counter read_ahead_pages{0};
  Counter faults_duplicate{0};  // the page was there already
  Counter faults_retried{0};    // requeued: an event was undelivered, or the page was on its way
  Counter faults_throttled{0};  // held up because the client was far over its limit
  Counter events_unmap{0}, events_remove{0}, events_remap{0}, events_fork{0};
  // Pages that were to be evicted and were not, by reason.
  Counter refused_busy{0};       // shared after a fork, or momentarily referenced
  Counter refused_pinned{0};     // still busy after it was un-shared: O_DIRECT, io_uring, …
  Counter refused_hole{0};       // nothing was there any more
  Counter refused_not_ours{0};   // locked, protected, not plain memory, or in a userfaultfd of its own
  Counter refused_stale{0};      // an event overtook the decision
  Counter refused_doomed{0};     // announced as dropped, not yet seen absent (H3)
  Counter refused_no_memory{0};  // the pool is full: the page went back
  Counter refused_failed{0};     // UFFDIO_MOVE is not permitted (seccomp)
  Counter corrupt{0};            // checksum mismatch: the page was poisoned
  Counter conflicts{0};          // a stored page was found present: the stored copy was dropped
  Counter revoked{0};            // commands taken back from an agent that did not answer
  LatencyHistogram latency;

  // Gauge: compressed bytes of this client's objects. Pages that it shares with a forked child count in both,
  // and leave at the average size.
  Counter object_bytes{0};
  Counter stored_peak_pages{0};
  Counter object_peak_bytes{0};
  Counter resident_bytes{0};  // as last sampled
  Counter resident_peak_bytes{0};

  static void RaiseTo(Counter& peak, uint64_t value) {
    uint64_t seen = peak.load(std::memory_order_relaxed);
    while (value > seen && !peak.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }
};

inline void Add(Counter& counter, uint64_t n = 1) { counter.fetch_add(n, std::memory_order_relaxed); }
// Never below zero: a gauge that is an estimate in places must not wrap.
inline void Sub(Counter& counter, uint64_t n = 1) {
  uint64_t now = counter.load(std::memory_order_relaxed);
  while (!counter.compare_exchange_weak(now, now < n ? 0 : now - n, std::memory_order_relaxed)) {
  }
}
inline uint64_t Read(const Counter& counter) { return counter.load(std::memory_order_relaxed); }

}  // namespace uzswap

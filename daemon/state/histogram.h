// Latencies, counted in buckets: eight for each power of two, so a percentile is at most 12.5 % too high.
//
// Threads: Record and the readers from any thread at once; a reader sees some recent state, which is what a
// statistic is for. Cost: one relaxed increment, 64 × 8 × 8 bytes.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

namespace uzswap {

class LatencyHistogram {
 public:
  void Record(uint64_t ns) {
    buckets_[BucketOf(ns)].fetch_add(1, std::memory_order_relaxed);
    uint64_t seen = max_ns_.load(std::memory_order_relaxed);
    while (ns > seen && !max_ns_.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
    }
  }

  // Upper edge of the bucket that holds the `permille`-th value; 0 if there are none.
  uint64_t PercentileNs(unsigned permille) const {
    uint64_t total = 0;
    for (const auto& bucket : buckets_) total += bucket.load(std::memory_order_relaxed);
    if (total == 0) return 0;
    const uint64_t rank = (total * permille + 999) / 1000;
    uint64_t below = 0;
    for (unsigned i = 0; i < kBuckets; ++i) {
      below += buckets_[i].load(std::memory_order_relaxed);
      if (below >= rank) return std::min(UpperEdge(i), max_ns());
    }
    return max_ns();
  }

  uint64_t max_ns() const { return max_ns_.load(std::memory_order_relaxed); }

  void Merge(const LatencyHistogram& other) {
    for (unsigned i = 0; i < kBuckets; ++i) {
      buckets_[i].fetch_add(other.buckets_[i].load(std::memory_order_relaxed), std::memory_order_relaxed);
    }
    const uint64_t theirs = other.max_ns();
    if (theirs > max_ns()) max_ns_.store(theirs, std::memory_order_relaxed);
  }

 private:
  static constexpr unsigned kSubBits = 3;
  static constexpr unsigned kBuckets = 64 << kSubBits;

  static unsigned BucketOf(uint64_t ns) {
    if (ns < (1u << kSubBits)) return static_cast<unsigned>(ns);
    const unsigned exponent = static_cast<unsigned>(std::bit_width(ns)) - 1;
    const auto sub = static_cast<unsigned>(ns >> (exponent - kSubBits)) & ((1u << kSubBits) - 1);
    return ((exponent - kSubBits + 1) << kSubBits) + sub;
  }
  static uint64_t UpperEdge(unsigned bucket) {
    if (bucket < (1u << kSubBits)) return bucket;
    const unsigned exponent = (bucket >> kSubBits) + kSubBits - 1;
    const uint64_t sub = bucket & ((1u << kSubBits) - 1);
    return ((sub + (1u << kSubBits) + 1) << (exponent - kSubBits)) - 1;
  }

  std::array<std::atomic<uint64_t>, kBuckets> buckets_{};
  std::atomic<uint64_t> max_ns_{0};
};

}  // namespace uzswap

// On which NUMA node a client runs, as far as looks tell.
//
// Idea: where it is now decides where a new object goes; where it stays decides whether what is stored
// already follows. A scheduler may send a thread to and fro, and its objects must not go along each time: a
// client is at home where all looks of the last kSettledNs found it.
//
// Threads: any; looks at the same time may lose one another.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "libzpool/base/units.h"

namespace uzswap {

class HomeNode {
 public:
  static constexpr uint64_t kSettledNs = 10'000'000'000;

  void Observe(zp::NodeId node, uint64_t now_ns) {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    if (word != 0 && NodeOf(word) == node) return;
    word_.store((now_ns & ~kNodeMask) | node.value(), std::memory_order_relaxed);
  }
  // Where the last look found it; 0 before the first.
  zp::NodeId now() const { return NodeOf(word_.load(std::memory_order_relaxed)); }
  std::optional<zp::NodeId> Settled(uint64_t now_ns) const {
    const uint64_t word = word_.load(std::memory_order_relaxed);
    if (word == 0 || now_ns < (word & ~kNodeMask) + kSettledNs) return std::nullopt;
    return NodeOf(word);
  }

 private:
  // {nanoseconds since when : 56, node : 8}, the lowest eight bits of the time left out. 0: no look yet.
  static constexpr uint64_t kNodeMask = 0xff;
  static zp::NodeId NodeOf(uint64_t word) { return zp::NodeId(static_cast<uint8_t>(word & kNodeMask)); }
  std::atomic<uint64_t> word_{0};
};

}  // namespace uzswap

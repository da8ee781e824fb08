// One side of a comparison: a worker process (worker.h) and the way in which its memory is taken away.
//
// Idea: ours is the worker under `uzswap run`, evicted by the daemon at the control verb `reclaim`; the
// peer's is the same worker started plainly, evicted by madvise(MADV_PAGEOUT) with the peer's swap on.
// Everything else is the same code in the same order, so a difference is the swap's.
//
// Failure: BenchError, among others when not enough pages could be evicted (nothing is measured then).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/bench/child_process.h"
#include "tools/bench/cpu_clock.h"
#include "tools/bench/load.h"

namespace uzswap::bench {

// What one eviction of the whole region took.
struct Eviction {
  uint64_t pages = 0;     // of the region, seen to be gone by pagemap
  double wall_us = 0;     // of the request(s)
  double program_us = 0;  // CPU time of the program: agent's thread included; the peer's compression is here
  double daemon_us = 0;   // CPU time of uzswapd; 0 for the peer
  double kernel_us = 0;   // CPU time of the kernel's swap threads
  double cpu_us() const { return program_us + daemon_us + kernel_us; }
};

class MeasuredProgram {
 public:
  enum class Side { kOurs, kPeer };

  // Starts it. `uzswap` is the CLI's path, used for our side.
  MeasuredProgram(Side side, const std::string& uzswap);

  Side side() const { return side_; }
  // Gives it `pages` pages of content to hold.
  void Fill(uint64_t pages, const std::string& source, uint64_t seed);
  // Dirties all pages and has them evicted; at least kEnoughPermille of them are gone afterwards.
  Eviction Evict();
  nlohmann::json TouchRandomly(uint64_t touches, uint64_t seed, unsigned gap_us);
  // The answer has "cpu_us_per_page" besides.
  nlohmann::json TouchSequentially();
  // Throws BenchError if a page has not the content that it was filled with.
  void Verify();
  // Throughput of a program that only uses memory; no Fill needed.
  LoadRate Load(const std::string& kind, unsigned milliseconds);
  // {"ping": …, "client": the client's part of `uzswap stat`} of our side's daemon; null for the peer.
  nlohmann::json DaemonState();

 private:
  // Some pages are on their way to the LRU lists, or shared with a fork: a few are always left.
  static constexpr uint64_t kEnoughPermille = 970;

  uint64_t GonePages();
  void TakeAway(uint64_t pages, Eviction& eviction);
  nlohmann::json AskDaemon(const nlohmann::json& request) const;
  void Settle() const;

  const Side side_;
  ChildProcess child_;
  pid_t pid_ = 0;
  std::string socket_;
  pid_t daemon_pid_ = 0;
  uint64_t pages_ = 0;
  KernelSwapThreads kernel_threads_;
};

}  // namespace uzswap::bench

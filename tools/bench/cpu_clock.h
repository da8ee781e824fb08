// CPU time of other processes, in nanoseconds.
//
// Idea: the CPU clock of a process (clock_getcpuclockid) counts user and kernel time of all its threads,
// those that have ended included, and to the nanosecond, where /proc/PID/stat rounds to 10 ms. Kernel threads
// that work for swap (kswapd, zram's, loop's) have such clocks too.
//
// Threads: free functions, no state but the list of kernel threads in KernelSwapThreads (one owner).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

namespace uzswap::bench {

// CPU time that `pid` has used so far; 0 if it is gone.
uint64_t ProcessCpuNs(pid_t pid);

// Waits until `pid` has used next to no CPU for a short while, so that work which it put off (encoding after
// the answer, freeing) is counted where it was caused. Gives up after two seconds.
void WaitUntilIdle(pid_t pid);

class KernelSwapThreads {
 public:
  // Looks for the kernel threads that reclaim memory or serve swap devices. Finds none in a container: then
  // 0.
  KernelSwapThreads();
  uint64_t CpuNs() const;

 private:
  std::vector<pid_t> tids_;
};

}  // namespace uzswap::bench

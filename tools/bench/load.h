// Programs that use memory the way that an attached allocator or kernel would feel, for `uzswap-bench
// native`.
#pragma once

#include <chrono>
#include <string>

namespace uzswap::bench {

struct LoadRate {
  double per_second = 0;
  // By CPU time of the whole process (an attached agent's thread included): blind to waiting, but not
  // disturbed by whatever else the machine does.
  double per_cpu_second = 0;
};

// Runs for about `duration` in one thread. Kinds:
//   "malloc": allocates, fills and frees blocks of 16 B to 128 KiB among 32,768 live ones, sizes as programs
//   have
//             them (small ones frequent); an operation is one block's free and malloc.
//   "mmap":   maps 32 KiB to 512 KiB, touches four of its pages, and unmaps; an operation is one such cycle.
// Throws BenchError on an unknown kind.
LoadRate RunLoad(const std::string& kind, std::chrono::milliseconds duration);

}  // namespace uzswap::bench

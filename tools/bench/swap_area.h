// One swap area that is on for as long as the object lives.
//
// Idea: the header that mkswap(8) writes is one page, so it is written here; swapon(2) and swapoff(2) are two
// calls. Source: include/linux/swap.h (union swap_header), mkswap(8).
#pragma once

#include <cstdint>
#include <string>

#include "libzpool/base/fd.h"

namespace uzswap::bench {

// True if no swap is on anywhere. The bench refuses to run beside swap that it did not switch on: the figures
// would be mixed, and switching off the wrong area would hurt.
bool NoSwapIsOn();

class SwapArea {
 public:
  // Writes a swap header to `path` (a block device, or a file without holes) of `bytes` bytes and switches it
  // on with the highest priority. Throws BenchError; nothing is on then.
  SwapArea(std::string path, uint64_t bytes);
  // Switches it off, which brings everything in it back into memory. A failure is told on standard error.
  ~SwapArea();
  SwapArea(const SwapArea&) = delete;
  SwapArea& operator=(const SwapArea&) = delete;

 private:
  const std::string path_;
};

}  // namespace uzswap::bench

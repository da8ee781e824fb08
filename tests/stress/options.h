// The verifier's options, and the line that replays a run.
#pragma once

#include <cstdint>
#include <string>

namespace uzswap::stress {

enum class Plant : uint8_t { kNothing, kZero, kStale, kSwap, kFlip, kFault, kHang };

struct Options {
  uint32_t threads = 8;
  uint32_t megabytes = 512;
  uint32_t malloc_percent = 40;  // of the memory; the rest is mapped
  double seconds = 10;
  uint64_t seed = 0;  // 0: drawn from the clock
  uint32_t hang_seconds = 60;
  uint32_t fork_every_ms = 1000;
  bool forks = true;
  bool maps = true;    // madvise, munmap, mremap, mprotect
  bool heap = true;    // free+malloc, realloc
  bool direct = true;  // O_DIRECT
  bool threads_come_and_go = true;
  bool helpers = true;        // the hand-over pair and the mprotect loop
  bool keep_at_once = false;  // MADV_KEEPONFORK straight after the fork
  bool stop_on_failure = false;
  Plant plant = Plant::kNothing;
};

// Exits with status 2 and a message on stderr if they make no sense, with 0 after --help.
Options ParseOptions(int argc, char** argv);

// "verifier --threads 8 …": the same run again. Races are not replayed exactly, the operations of each thread
// are.
std::string ReplayLine(const Options& options);

}  // namespace uzswap::stress

// The measurements. Each adds its figures to a report; see README.md for what each figure means.
#pragma once

#include <memory>

#include "tools/bench/measured_program.h"
#include "tools/bench/options.h"
#include "tools/bench/report.h"
#include "tools/bench/swap_keeper.h"

namespace uzswap::bench {

// Random and sequential re-read of evicted memory.
void MeasureFault(const Options& options, const SwapKeeper& peer, Report& report);
// Cost of eviction.
void MeasureEvict(const Options& options, const SwapKeeper& peer, Report& report);
// Density and effective ratio of the pool, in this process, against the peer's pool.
void MeasurePool(const Options& options, const SwapKeeper& peer, Report& report);
// Throughput of programs that are attached and never reclaimed, against the same run plainly.
void MeasureNative(const Options& options, Report& report);

// Both sides of a run, each with its memory filled; a side that is not there is null.
struct Sides {
  std::unique_ptr<MeasuredProgram> ours;
  std::unique_ptr<MeasuredProgram> peer;

  Sides(const Options& options, const SwapKeeper& keeper);
  // fn(program) for each side that is there; the order changes with `round`, so that neither always comes
  // first.
  template <typename Fn>
  void ForEach(unsigned round, Fn&& fn) {
    for (unsigned i = 0; i < 2; ++i) {
      MeasuredProgram* program = (i + round) % 2 == 0 ? ours.get() : peer.get();
      if (program != nullptr) fn(*program);
    }
  }
};

}  // namespace uzswap::bench

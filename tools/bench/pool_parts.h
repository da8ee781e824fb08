// The parts of MeasurePool: libzpool in this process, without any peer.
#pragma once

#include "tools/bench/options.h"
#include "tools/bench/page_source.h"
#include "tools/bench/report.h"

namespace uzswap::bench {

// Density of zbud; of zsmalloc when pages have been replaced or released, with compaction and without.
void MeasureDensity(const Options& options, const PageSource& source, Report& report);
// Store, load and free of objects of 2 KiB without codec, against memcpy.
void MeasureOperations(const Options& options, Report& report);
// What movers cost: loads beside them, and their own speed.
void MeasureMoving(const Options& options, const PageSource& source, Report& report);
// The index of a large process: dropping what is absent, cloning.
void MeasureIndex(Report& report);
// A successor of a process that was killed takes over a pool of small objects.
void MeasureRecovery(Report& report);

}  // namespace uzswap::bench

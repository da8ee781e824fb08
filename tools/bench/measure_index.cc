#include <chrono>
#include <utility>

#include "libzpool/index/offset_index.h"
#include "tools/bench/error.h"
#include "tools/bench/goal.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/stats.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kFullPages = uint64_t{16} << 18;   // 16 GiB; 17 MiB of nodes
constexpr uint64_t kEmptyPages = uint64_t{64} << 18;  // 64 GiB
constexpr unsigned kTimes = 200;

double MicrosSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

}  // namespace

void MeasureIndex(Report& report) {
  auto store = zp::PageStore::Create({.capacity = zp::MiB(1)});
  auto arena = zp::IndexArena::Create();
  if (!store.ok() || !arena.ok()) throw BenchError("the index cannot be made: no memory");
  auto index = zp::OffsetIndex::Create(**arena, **store);
  if (!index.ok()) throw BenchError("the index cannot be made: no memory");
  // Same-filled pages: the index does not look at what its words say.
  for (uint64_t i = 0; i < kFullPages; ++i) {
    if (index->CompareExchange(zp::PageIndex(i), zp::Slot::Empty(), *zp::Slot::SameFilled(i)) !=
        zp::OffsetIndex::Exchange::kDone)
      throw BenchError("the index took only " + std::to_string(i) + " pages");
  }

  std::vector<double> drops, clones;
  std::vector<zp::Slot> dropped;
  for (unsigned i = 0; i < kTimes; ++i) {
    const Clock::time_point start = Clock::now();
    index->DropRange(zp::PageIndex(kFullPages), zp::PageIndex(kFullPages + kEmptyPages), &dropped);
    drops.push_back(MicrosSince(start));
  }
  for (unsigned i = 0; i < kTimes; ++i) {
    const Clock::time_point start = Clock::now();
    auto clone = index->Clone();
    clones.push_back(MicrosSince(start));
    if (!clone.ok()) throw BenchError("the index cannot be cloned: no memory");
  }
  report.Part("details")["pool"]["index_worst_us"] = {{"drop_range", Percentile(drops, 1000)},
                                                      {"clone", Percentile(clones, 1000)}};
  AddWithGoal(report, "index_drop_64gib_us", Median(drops), AtMost(1000),
              "DropRange over 64 GiB of pages that are absent");
  AddWithGoal(report, "index_clone_16gib_us", Median(clones), AtMost(50),
              "Clone of a full index of 16 GiB of pages");
}

}  // namespace uzswap::bench

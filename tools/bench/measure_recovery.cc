#include <fcntl.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "libzpool/index/offset_index.h"
#include "tools/bench/error.h"
#include "tools/bench/goal.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/stats.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kObjects = 1'000'000;  // 46 MiB of frames, 28 of handles and nodes
constexpr unsigned kTimes = 5;

zp::UniqueFd Again(int fd) { return zp::UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

}  // namespace

// As a successor does it, on the files of a store that lives: what it makes is abandoned each time.
void MeasureRecovery(Report& report) {
  const zp::PageStore::Options options{.capacity = zp::GiB(1)};
  auto store = zp::PageStore::Create(options);
  auto arena = zp::IndexArena::Create();
  if (!store.ok() || !arena.ok()) throw BenchError("a pool to recover cannot be made: no memory");
  std::atomic<uint32_t> root{0};
  auto index = zp::OffsetIndex::Create(**arena, **store, &root);
  if (!index.ok()) throw BenchError("a pool to recover cannot be made: no memory");
  const auto scratch = std::make_unique<zp::Scratch>();
  // One word over and over that no slot can hold: the smallest of objects.
  alignas(8) std::array<std::byte, zp::kPageBytes> page;
  for (uint64_t i = 0; i < kObjects; ++i) {
    zp::FillPage((i << 32) + 0x12345678, page);
    const auto slot = (*store)->Store(page, {1, zp::PageIndex(i)}, zp::NodeId(0), *scratch);
    if (!slot.ok() || index->CompareExchange(zp::PageIndex(i), zp::Slot::Empty(), *slot) !=
                          zp::OffsetIndex::Exchange::kDone)
      throw BenchError("the pool took only " + std::to_string(i) + " pages");
  }
  std::vector<double> times;
  for (unsigned i = 0; i < kTimes; ++i) {
    zp::StoreFiles files;
    zp::UniqueFd nodes;
    (*store)->ForEachMemfd([&](const char* name, int fd) {
      if (std::strcmp(name, "handles") == 0) {
        files.handles = Again(fd);
      } else {
        files.frames.push_back(Again(fd));
      }
    });
    (*arena)->ForEachMemfd([&](const char*, int fd) { nodes = Again(fd); });
    std::atomic<uint32_t> its_root{root.load()};
    zp::RecoveryStats stats;
    const Clock::time_point start = Clock::now();
    auto next = zp::PageStore::Recover(options, std::move(files), &stats);
    auto next_arena = zp::IndexArena::Recover(std::move(nodes));
    if (!next.ok() || !next_arena.ok()) throw BenchError("the pool does not come back");
    const auto next_index = zp::OffsetIndex::Recover(**next_arena, **next, &its_root, nullptr, &stats);
    (*next_arena)->FinishRecovery();
    (*next)->FinishRecovery(&stats);
    times.push_back(std::chrono::duration<double, std::nano>(Clock::now() - start).count());
    if (stats.slots != kObjects || stats.lost_slots != 0) throw BenchError("a page did not come back");
    (*next_arena)->Abandon();
    (*next)->Abandon();
  }
  report.Part("details")["pool"]["recovery_worst_ns_per_object"] = Percentile(times, 1000) / kObjects;
  AddWithGoal(report, "recovery_ns_per_object", Median(times) / kObjects, AtMost(200),
              "a successor takes over: handles, frames and the index");
}

}  // namespace uzswap::bench

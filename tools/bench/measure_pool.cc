#include <sys/stat.h>

#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>

#include "libzpool/index/offset_index.h"
#include "libzpool/store/page_store.h"
#include "tools/bench/commands.h"
#include "tools/bench/error.h"
#include "tools/bench/goal.h"
#include "tools/bench/interrupt.h"
#include "tools/bench/kernel_knob.h"
#include "tools/bench/page_source.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/stored_pages.h"

namespace uzswap::bench {
namespace {

struct PoolFigures {
  double density = 0;
  double effective_ratio = 0;
};

// What the filled pool's density should be: small pools have more zspages that are begun than full ones. By
// the pages' MiB; null below.
std::optional<Goal> FilledGoal(uint64_t megabytes) {
  if (megabytes >= 1024) return AtLeast(.985);
  if (megabytes >= 86) return AtLeast(.975);
  if (megabytes >= 13) return AtLeast(.92);
  return std::nullopt;
}

// Memory that a file of the store holds, which has holes.
uint64_t HeldBytes(int fd) {
  struct stat status {};
  return ::fstat(fd, &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
}

// CPU time, since nothing here waits: steady on a busy machine.
double CpuUsPerPage(std::clock_t start, uint64_t pages) {
  return static_cast<double>(std::clock() - start) * 1e6 / CLOCKS_PER_SEC / static_cast<double>(pages);
}

PoolFigures MeasureOurs(const Options& options, const PageSource& source, Report& report) {
  const uint64_t pages = options.region_pages();
  auto store = zp::PageStore::Create({.capacity = zp::Bytes(pages * kPageBytes * 2)});
  auto arena = zp::IndexArena::Create();
  if (!store.ok() || !arena.ok()) throw BenchError("the pool cannot be made: no memory");
  auto index = zp::OffsetIndex::Create(*arena.value(), *store.value());
  if (!index.ok()) throw BenchError("the index cannot be made: no memory");
  auto scratch = std::make_unique<zp::Scratch>();

  std::clock_t start = std::clock();
  for (uint64_t i = 0; i < pages; ++i) {
    const zp::PageIndex page(i);
    const auto slot = store.value()->Store(ViewOf(source.TilePage(i)), {1, page}, zp::NodeId(0), *scratch);
    if (!slot.ok() ||
        index->CompareExchange(page, zp::Slot::Empty(), *slot) != zp::OffsetIndex::Exchange::kDone) {
      throw BenchError("the pool took only " + std::to_string(i) + " pages");
    }
    if (i % 4096 == 0) CheckInterrupted();
  }
  const double store_us = CpuUsPerPage(start, pages);

  const zp::PoolStats stats = store.value()->stats();
  const uint64_t metadata = stats.metadata_bytes + arena.value()->metadata_bytes();
  PoolFigures figures;
  figures.density = static_cast<double>(stats.stored_bytes) / static_cast<double>(stats.pool_bytes);
  figures.effective_ratio =
      static_cast<double>(pages * kPageBytes) / static_cast<double>(stats.pool_bytes + metadata);

  alignas(64) std::byte out[kPageBytes];
  start = std::clock();
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t page = i * 7919 % pages;  // neither in order nor with a generator's cost
    const zp::Slot slot = index->Get(zp::PageIndex(page));
    if (store.value()->Load(slot, out, *scratch) != zp::LoadOutcome::kLoaded)
      throw BenchError("a page came back corrupt");
    if (i % 64 == 0 && std::memcmp(out, source.TilePage(page), kPageBytes) != 0)
      throw BenchError("a page came back WRONG");
  }
  const double load_us = CpuUsPerPage(start, pages);

  report.Add("metadata_bytes_per_page", static_cast<double>(metadata) / static_cast<double>(pages),
             std::nullopt, "index, handles, spans");
  uint64_t held = 0;
  const auto add = [&](const char* name, int fd) {
    if (std::strncmp(name, "frames", 6) != 0) held += HeldBytes(fd);
  };
  store.value()->ForEachMemfd(add);
  arena.value()->ForEachMemfd(add);
  AddWithGoal(report, "index_handle_bytes_per_page", static_cast<double>(held) / static_cast<double>(pages),
              AtMost(24), "of these the files of index and handle table, as the kernel counts them");
  report.Add("store_us_per_page", store_us, std::nullopt, "libzpool alone: encode, place, index");
  report.Add("load_us_per_page", load_us, std::nullopt, "libzpool alone: look up, decode, verify");
  report.Part("details")["pool"]["ours"] = {{"pages", pages},
                                            {"stored_pages", stats.stored_pages},
                                            {"same_filled_pages", stats.same_filled},
                                            {"raw_pages", stats.raw_pages},
                                            {"stored_bytes", stats.stored_bytes},
                                            {"pool_bytes", stats.pool_bytes},
                                            {"metadata_bytes", metadata}};
  return figures;
}

uint64_t MeminfoBytes(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string word;
  uint64_t kib = 0;
  while (file >> word) {
    if (word == key + ":" && file >> kib) return kib * 1024;
  }
  return 0;
}

// What the kernel's pool holds, and in how much: {uncompressed, compressed (0: not told), pool}.
struct PeerPool {
  uint64_t original_bytes = 0;
  uint64_t stored_bytes = 0;
  uint64_t pool_bytes = 0;
};

PeerPool ReadPeerPool(const SwapKeeper& peer) {
  PeerPool pool;
  if (peer.device().empty()) {
    pool.original_bytes = MeminfoBytes("Zswapped");
    pool.pool_bytes = MeminfoBytes("Zswap");
  } else {
    std::istringstream(ReadKnob("/sys/block/" + peer.device() + "/mm_stat")) >> pool.original_bytes >>
        pool.stored_bytes >> pool.pool_bytes;
  }
  return pool;
}

}  // namespace

void MeasurePool(const Options& options, const SwapKeeper& peer, Report& report) {
  const PageSource source = PageSource::Load(options.pages, options.seed);
  std::optional<double> density, effective, peer_density, peer_effective;
  if (options.ours) {
    const PoolFigures figures = MeasureOurs(options, source, report);
    density = figures.density;
    effective = figures.effective_ratio;
  }
  if (peer.available()) {
    MeasuredProgram program(MeasuredProgram::Side::kPeer, "");
    program.Fill(options.region_pages(), options.pages, options.seed);
    program.Evict();
    const PeerPool pool = ReadPeerPool(peer);
    if (pool.pool_bytes != 0) {
      if (pool.stored_bytes != 0) {
        peer_density = static_cast<double>(pool.stored_bytes) / static_cast<double>(pool.pool_bytes);
      }
      peer_effective = static_cast<double>(pool.original_bytes) / static_cast<double>(pool.pool_bytes);
    }
    report.Part("details")["pool"]["peer"] = {{"original_bytes", pool.original_bytes},
                                              {"stored_bytes", pool.stored_bytes},
                                              {"pool_bytes", pool.pool_bytes}};
  }
  const std::optional<Goal> goal = density ? FilledGoal(options.megabytes) : std::nullopt;
  const char* const meaning = "compressed bytes / pool's bytes";
  if (goal) {
    AddWithGoal(report, "density", *density, peer_density, *goal, meaning);
  } else {
    report.Add("density", density, peer_density, meaning);
  }
  report.Add("effective_ratio", effective, peer_effective,
             "pages' bytes / pool's bytes (ours with metadata, the peer's without)");
  report.Part("details")["pool"]["lz4_page_ratio"] = source.Lz4Ratio();
  if (!options.ours) return;
  MeasureDensity(options, source, report);
  MeasureOperations(options, report);
  MeasureMoving(options, source, report);
  MeasureIndex(report);
  MeasureRecovery(report);
}

}  // namespace uzswap::bench

#include <time.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "libzpool/base/memory_file.h"
#include "tools/bench/error.h"
#include "tools/bench/goal.h"
#include "tools/bench/interrupt.h"
#include "tools/bench/pool_parts.h"
#include "tools/bench/random.h"
#include "tools/bench/stats.h"
#include "tools/bench/stored_pages.h"

namespace uzswap::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr zp::NodeId kNear{0}, kFar{1};
constexpr uint64_t kMostPages = uint64_t{1} << 15;     // of the loads beside movers: 128 MiB
constexpr size_t kLoads = 100000;                      // p99.9 then has 100 above it
constexpr std::chrono::milliseconds kMoverBlocks{20};  // a mover that has nothing to do is fed between
constexpr unsigned kMostBlocks = 400;
constexpr uint64_t kSlowDrain = uint64_t{64} << 20;  // bytes a second
constexpr std::chrono::milliseconds kSlowPause{10};  // seldom, since one that wakes takes a CPU from somebody

zp::Topology TwoNodes() {
  auto made = zp::Topology::Made({kNear, kFar}, {{10, 20}, {20, 10}});
  if (!made.ok()) throw BenchError("no topology");
  return *made;
}

uint64_t ThreadCpuNs() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

struct Latency {
  double p50 = 0, p999 = 0;  // us
  size_t loads = 0;
};

// Loads at random, each timed, while `mover` runs on a thread of its own: it does a bounded piece of work and
// says whether there was any. `feed` makes more, while nothing is loaded.
Latency LoadsBeside(StoredPages& stored, uint64_t seed, const std::function<void()>& feed,
                    const std::function<bool(const std::atomic<bool>&)>& mover) {
  std::vector<float> samples;
  samples.reserve(kLoads * 2);
  Random random(seed);
  zp::Scratch scratch;
  alignas(64) std::byte out[kPageBytes];
  for (unsigned block = 0; block < kMostBlocks && samples.size() < kLoads; ++block) {
    CheckInterrupted();
    feed();
    std::atomic<bool> stop{false};
    std::atomic<bool> running{false};
    std::atomic<bool> ended{false};
    std::thread thread([&] {
      running.store(true);
      while (!stop.load(std::memory_order_relaxed) && mover(stop)) {
      }
      ended.store(true);
    });
    while (!running.load()) std::this_thread::yield();
    const Clock::time_point end = Clock::now() + kMoverBlocks;
    for (Clock::time_point before = Clock::now(); before < end && !ended.load(std::memory_order_relaxed);) {
      before = Clock::now();
      stored.Load(random.Below(stored.size()), out, scratch);
      samples.push_back(std::chrono::duration<float, std::micro>(Clock::now() - before).count());
    }
    stop.store(true);
    stop.notify_all();
    thread.join();
  }
  return {Percentile(samples, 500), Percentile(samples, 999), samples.size()};
}

void MeasureLoads(const Options& options, const PageSource& source, Report& report) {
  const uint64_t pages = std::min(options.region_pages(), kMostPages);
  StoredPages stored(source, pages, options.seed, zp::PoolKind::kZsmalloc, TwoNodes());
  const auto nothing = [] {};
  // Nobody beside it; and one who takes as much of the machine's memory as a mover, and no lock.
  const Latency alone = LoadsBeside(stored, options.seed, nothing, [](const std::atomic<bool>& stop) {
    stop.wait(false);  // one that woke would show in the loads
    return false;
  });
  std::vector<std::byte> from(64 << 20), to(64 << 20);
  size_t at = 0;
  const Latency copying = LoadsBeside(stored, options.seed, nothing, [&](const std::atomic<bool>&) {
    at = (at + kPageBytes) % from.size();
    std::copy_n(&from[at], kPageBytes, &to[at]);
    return true;
  });
  // And one who gets frames and gives them back, with no pool: when they go other CPUs are told.
  auto file = zp::MemoryFile::Create("bench-frames", zp::FileKind::kFrames, 0, zp::kSpanBytes);
  if (!file.ok()) throw BenchError("no memory for frames");
  const Latency punching = LoadsBeside(stored, options.seed, nothing, [&](const std::atomic<bool>&) {
    if (!file->PopulateFresh(0, zp::kSpanBytes).ok()) return false;
    file->Punch(0, zp::kSpanBytes);
    return true;
  });
  // From one node to the other, and back.
  const auto drain_with = [&](zp::Compactor& mover) {
    return [&](const std::atomic<bool>& stop) {
      const bool near = stored.store().node_stats(kNear).accepts;
      const zp::NodeId node = near ? kNear : kFar;
      stored.store().SetNodeAccepts(near ? kFar : kNear, true);
      stored.store().SetNodeAccepts(node, false);
      while (!stop.load(std::memory_order_relaxed)) {
        if (mover.exhausted()) {
          std::this_thread::sleep_for(kSlowPause);
          continue;
        }
        if (mover.DrainStep(node, zp::MiB(1), zp::MigrateMode::kSyncLight).left_bytes == 0) break;
      }
      return true;
    };
  };
  zp::Compactor compactor(stored.store(), {});
  const Latency draining = LoadsBeside(stored, options.seed, nothing, drain_with(compactor));
  zp::Compactor slow(stored.store(), {.bytes_per_second = kSlowDrain});
  const Latency slowly = LoadsBeside(stored, options.seed, nothing, drain_with(slow));
  for (const zp::NodeId node : {kNear, kFar}) stored.store().SetNodeAccepts(node, true);
  const Latency compacting = LoadsBeside(
      stored, options.seed,
      [&] {
        // A third goes, in a pool that is full: most frames have a hole then.
        stored.Add(pages - stored.size());
        stored.ShrinkTo(pages * 2 / 3);
      },
      [&](const std::atomic<bool>&) {
        return compactor.CompactStep(kNear, zp::MiB(1)) + compactor.CompactStep(kFar, zp::MiB(1)) != 0;
      });
  stored.Verify();
  nlohmann::json& details = report.Part("details")["pool"]["loads_beside"];
  const auto tell = [&](const char* name, const Latency& latency) {
    details[name] = {{"p50_us", latency.p50}, {"p999_us", latency.p999}, {"loads", latency.loads}};
  };
  tell("nothing", alone);
  tell("plain_copying", copying);
  tell("frames", punching);
  tell("compaction", compacting);
  tell("drain", draining);
  tell("slow_drain", slowly);
  report.Add("load_alone_p999_us", alone.p999, std::nullopt, "p99.9 of a load, decoded, nothing beside it");
  // A machine on which loads alone were slower has shown nothing, and no goal is reached on it.
  const auto add_delay = [&](const std::string& name, const Latency& beside, const std::string& meaning) {
    if (beside.p999 >= alone.p999) {
      report.Add(name, beside.p999 - alone.p999, std::nullopt, meaning);
      return;
    }
    report.Add(name, std::nullopt, std::nullopt, meaning + " (the machine is too busy to tell)");
  };
  const auto add_delay_with_goal = [&](const std::string& name, const Latency& beside,
                                       const std::string& meaning) {
    if (beside.p999 >= alone.p999) {
      AddWithGoal(report, name, beside.p999 - alone.p999, AtMost(5), meaning);
    } else {
      add_delay(name, beside, meaning);
    }
  };
  add_delay("load_delay_copying_p999_us", copying,
            "p99.9 beside a thread that copies memory, minus alone: the machine's part");
  add_delay("load_delay_frames_p999_us", punching,
            "the same beside one that gets and gives back frames, without pool: the kernel's part");
  report.Add("load_delay_compaction_p50_us", compacting.p50 - alone.p50, std::nullopt,
             "p50 of a load beside compaction, minus alone");
  add_delay_with_goal("load_delay_compaction_p999_us", compacting, "its p99.9");
  report.Add("load_delay_drain_p50_us", draining.p50 - alone.p50, std::nullopt,
             "p50 of a load beside a drain, minus alone");
  add_delay_with_goal("load_delay_drain_p999_us", draining, "its p99.9");
  add_delay("load_delay_slow_drain_p999_us", slowly, "the same beside a drain of 64 MiB a second");
}

void MeasureDrain(const Options& options, const PageSource& source, Report& report) {
  StoredPages stored(source, options.region_pages(), options.seed, zp::PoolKind::kZsmalloc, TwoNodes());
  zp::Compactor compactor(stored.store(), {});
  std::vector<double> speeds;
  uint64_t bytes = 0;
  zp::NodeId from = kNear, to = kFar;
  for (unsigned round = 0; round < options.rounds; ++round) {
    stored.store().SetNodeAccepts(to, true);
    stored.store().SetNodeAccepts(from, false);
    bytes = 0;
    const uint64_t start = ThreadCpuNs();
    for (zp::Compactor::Drain step{1, 1}; step.left_bytes != 0; bytes += step.moved_bytes) {
      CheckInterrupted();
      step = compactor.DrainStep(from, zp::MiB(16), zp::MigrateMode::kSync);
      if (step.moved_bytes == 0 && step.left_bytes != 0) throw BenchError("a node does not drain");
    }
    const double seconds = static_cast<double>(ThreadCpuNs() - start) / 1e9;
    speeds.push_back(static_cast<double>(bytes) / seconds / (1 << 30));
    std::swap(from, to);
  }
  stored.Verify();
  report.Part("details")["pool"]["drain"] = {{"object_bytes", bytes}, {"gib_per_cpu_second", speeds}};
  AddWithGoal(report, "drain_gib_per_cpu_second", Median(speeds), AtLeast(1),
              "objects of a node that is emptied, one thread");
}

}  // namespace

void MeasureMoving(const Options& options, const PageSource& source, Report& report) {
  MeasureLoads(options, source, report);
  MeasureDrain(options, source, report);
}

}  // namespace uzswap::bench

#include "daemon/pool/pool_keeper.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>

namespace uzswap {
namespace {

using std::chrono::milliseconds;

constexpr zp::Bytes kStep = zp::MiB(1);
constexpr zp::Bytes kDrainStep = zp::MiB(16);
constexpr milliseconds kShortPause{20};    // between steps that gain: the rate sets the pace
constexpr milliseconds kFirstPause{1000};  // behind the last step that gained
constexpr milliseconds kLongestPause{64'000};
constexpr int kFruitlessSteps = 3;  // of an evacuation

// Slow nodes last: by distance from the first one.
zp::Compactor::Options OptionsFor(const zp::PageStore& store, uint64_t bytes_per_second) {
  zp::Compactor::Options options;
  options.bytes_per_second = bytes_per_second;
  const zp::Topology& topology = store.topology();
  for (const uint8_t index : topology.FallbackOrder(topology.nodes().front()))
    options.demotion_order.push_back(topology.nodes()[index]);
  return options;
}

}  // namespace

PoolKeeper::PoolKeeper(zp::PageStore& store)
    : store_(store), paced_(store, OptionsFor(store, kBytesPerSecond)), asked_(store, OptionsFor(store, 0)) {}

void PoolKeeper::Start() {
  thread_ = std::thread([this] { Run(); });
}

void PoolKeeper::Stop() {
  {
    zp::MutexLock lock(mu_);
    stop_.store(true);
  }
  wake_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

bool PoolKeeper::Step() {
  uint64_t bytes = 0;
  for (const zp::NodeId node : store_.topology().nodes()) bytes += paced_.CompactStep(node, kStep);
  if (store_.topology().nodes().size() > 1) bytes += paced_.DemoteStep(kStep) + paced_.BalanceStep(kStep);
  return bytes != 0;
}

void PoolKeeper::Run() {
  (void)pthread_setname_np(pthread_self(), "uzswap-pool");
  milliseconds pause = kFirstPause;
  uint64_t seen = 0;
  zp::MutexLock lock(mu_);
  while (!stop_.load()) {
    (void)wake_.WaitFor(mu_, pause);
    if (stop_.load()) return;
    const uint64_t now = store_.changes();
    if (now == seen) {
      pause = std::min(std::max(pause, kFirstPause) * 2, kLongestPause);
      continue;
    }
    mu_.Unlock();
    const bool gained = Step();
    mu_.Lock();
    // As long as something is gained, what changed is not dealt with.
    if (!gained && !paced_.exhausted()) seen = now;
    pause = gained ? kShortPause : kFirstPause;
  }
}

PoolKeeper::Drained PoolKeeper::Drain(zp::NodeId node) {
  Drained result;
  result.left_bytes = store_.node_stats(node).pool_bytes;
  const zp::MigrateStats before = asked_.stats().drained;
  for (int fruitless = 0; fruitless < kFruitlessSteps && !stop_.load() && !store_.NodeAccepts(node);) {
    const auto step = asked_.DrainStep(node, kDrainStep, zp::MigrateMode::kSyncLight, &stop_);
    result.moved_bytes += step.moved_bytes;
    result.left_bytes = step.left_bytes;
    if (step.left_bytes == 0) break;
    fruitless = step.moved_bytes == 0 ? fruitless + 1 : 0;
    if (fruitless != 0) std::this_thread::sleep_for(kShortPause);  // compaction may have had what is left
  }
  const zp::MigrateStats after = asked_.stats().drained;
  result.pinned_spans = after.of(zp::MigrateOutcome::kPinned) - before.of(zp::MigrateOutcome::kPinned);
  result.without_target = after.of(zp::MigrateOutcome::kNoTarget) - before.of(zp::MigrateOutcome::kNoTarget);
  return result;
}

void PoolKeeper::Close(zp::NodeId node) { store_.SetNodeAccepts(node, false); }
void PoolKeeper::Open(zp::NodeId node) { store_.SetNodeAccepts(node, true); }

uint64_t PoolKeeper::Balance() {
  uint64_t bytes = 0;
  // Nothing has to move twice.
  const uint64_t most = store_.pool_bytes();
  while (!stop_.load() && bytes <= most) {
    const uint64_t moved = asked_.DemoteStep(kDrainStep) + asked_.BalanceStep(kDrainStep);
    if (moved == 0) break;
    bytes += moved;
  }
  return bytes;
}

}  // namespace uzswap

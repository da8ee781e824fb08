#include "daemon/pool/pool_keeper.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

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

PoolKeeper::PoolKeeper(zp::PageStore& store, std::function<Homes()> find_homes)
    : store_(store),
      paced_(store, OptionsFor(store, kBytesPerSecond)),
      asked_(store, OptionsFor(store, 0)),
      find_homes_(store.topology().nodes().size() > 1 ? std::move(find_homes) : nullptr) {}

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

bool PoolKeeper::Pack() {
  uint64_t bytes = 0;
  for (const zp::NodeId node : store_.topology().nodes()) bytes += paced_.CompactStep(node, kStep);
  return bytes != 0;
}

bool PoolKeeper::Level() {
  if (store_.topology().nodes().size() == 1) return false;
  return paced_.DemoteStep(kStep) + paced_.BalanceStep(kStep) != 0;
}

bool PoolKeeper::SomebodyMoved() {
  const Homes before = std::exchange(homes_, find_homes_());
  return std::any_of(homes_.begin(), homes_.end(), [&](const auto& client) {
    const auto was = before.find(client.first);
    return was == before.end() || was->second != client.second;
  });
}

PoolKeeper::Followed PoolKeeper::Follow() {
  if (find_homes_ == nullptr) return Followed::kNothing;
  if (!round_.running) {
    const auto now = std::chrono::steady_clock::now();
    if (now < round_.next_look) return Followed::kNothing;
    round_.next_look = now + kFirstPause;
    const bool somebody_moved = SomebodyMoved();
    if (!somebody_moved && now < round_.next) return Followed::kNothing;
    if (somebody_moved) round_.pause = kFirstPause;
    round_.running = true;
    round_.node = 0;
    round_.moved_bytes = 0;
  }
  const std::vector<zp::NodeId>& nodes = store_.topology().nodes();
  // Where all are at home nobody's objects have to leave.
  const auto all_at_home = [&] {
    return std::all_of(homes_.begin(), homes_.end(),
                       [&](const auto& client) { return client.second == nodes[round_.node]; });
  };
  while (round_.node < nodes.size() && all_at_home()) ++round_.node;
  uint64_t moved_bytes = 0;
  if (round_.node < nodes.size()) {
    const auto home = [this](uint32_t client) {
      const auto found = homes_.find(client);
      return found == homes_.end() ? std::nullopt : std::optional(found->second);
    };
    const zp::Compactor::Locality step = paced_.LocalityStep(nodes[round_.node], home, kStep);
    moved_bytes = step.moved_bytes;
    if (step.round_ended) ++round_.node;
  }
  round_.moved_bytes += moved_bytes;
  if (round_.node == nodes.size()) {
    round_.running = false;
    round_.pause = round_.moved_bytes != 0 ? kFirstPause : std::min(round_.pause * 2, kLongestPause);
    round_.next = std::chrono::steady_clock::now() + round_.pause;
  }
  if (moved_bytes != 0) return Followed::kMoved;
  return round_.running ? Followed::kLooked : Followed::kNothing;
}

void PoolKeeper::Run() {
  (void)pthread_setname_np(pthread_self(), "uzswap-pool");
  milliseconds pause = kFirstPause;
  uint64_t packed = 0;      // the changes that are dealt with
  bool left_holes = false;  // something moved away since
  zp::MutexLock lock(mu_);
  while (!stop_.load()) {
    (void)wake_.WaitFor(mu_, pause);
    if (stop_.load()) return;
    mu_.Unlock();
    const uint64_t now = store_.changes();
    const bool changed = left_holes || now != packed;
    const bool gained = changed && Pack();
    const bool leveled = Level();
    const Followed followed = Follow();
    mu_.Lock();
    if (leveled || followed == Followed::kMoved) {
      left_holes = true;
    } else if (changed && !gained && !paced_.exhausted()) {
      // As long as something is gained, what changed is not dealt with.
      packed = now;
      left_holes = false;
    }
    if (gained || leveled || followed != Followed::kNothing) {
      pause = kShortPause;
    } else {
      pause = changed ? kFirstPause : std::min(std::max(pause, kFirstPause) * 2, kLongestPause);
    }
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

// Keeps the pools dense, and moves them between nodes.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "libzpool/base/mutex.h"
#include "libzpool/base/units.h"
#include "libzpool/frame/topology.h"
#include "libzpool/migrate/migrator.h"
#include "libzpool/store/page_store.h"

namespace zp {

struct CompactorStats {
  uint64_t objects = 0;  // moved by compaction within a node
  uint64_t bytes = 0;
  MigrateStats blocks;    // spans moved to lower places of their node
  MigrateStats drained;   // off nodes that are being emptied
  MigrateStats balanced;  // off nodes above their watermark
  MigrateStats demoted;   // down the node order
  // Objects that followed their client to its node, and their bytes by that.
  uint64_t followed_objects = 0;
  std::array<uint64_t, kMaxNodes> followed_bytes{};
  uint64_t followed_bytes_of_all() const {
    return std::accumulate(followed_bytes.begin(), followed_bytes.end(), uint64_t{0});
  }
};

// Idea: the mechanisms, in steps that copy a bounded number of bytes; when to take them is the caller's
//   policy. Everything goes on beside stores, loads and frees: a load never waits, a store or a free waits
//   for its class's lock while objects are chosen or a span's slots are claimed.
// Cost: nothing between steps.
// Threads: all methods may be called at any time.
// Locks: mu_ (statistics, allowance), held while nothing is moved.
class Compactor {
 public:
  struct Options {
    uint64_t bytes_per_second = 0;  // copied by all steps together; 0: as fast as they are called
    // Shares of what a node may hold, in thousandths: above `high` it gives spans away, until it is below
    // `low`. Only nodes below `low` take them.
    uint32_t high_permille = 950;
    uint32_t low_permille = 850;
    // Which share of the frames of a size class, or of a shard of zbud, must be to gain before objects are
    // copied.
    uint32_t waste_permille = 20;
    // Fast nodes first. A node above `high` demotes to the next one that has room.
    std::vector<NodeId> demotion_order;
    // A node takes objects whose client runs there only while it is below this. So far below `low` that what
    // was demoted or balanced away does not come and go: it leaves a node that is above `high`, which is then
    // at `low`, and can come back when a seventh of what the node may hold has been freed; and to be sent
    // away again the node must grow by a quarter. Objects that are old go round only as fast as a program's
    // needs swing by that much.
    uint32_t return_permille = 700;
  };
  // `store` must outlive it.
  Compactor(PageStore& store, Options options);
  Compactor(const Compactor&) = delete;
  Compactor& operator=(const Compactor&) = delete;

  // Each copies at most about `budget` bytes, less where the rate says so, and returns how many; 0: nothing
  // to gain, or to be had by the rate, now.

  // Packs objects into fewer frames of `node`.
  uint64_t CompactStep(NodeId node, Bytes budget);
  // Moves what lies in the highest blocks of 2 MiB into free places of lower ones.
  uint64_t EmptyBlocksStep(NodeId node, Bytes budget);
  // From nodes above the high watermark to others below the low one, nearest first.
  uint64_t BalanceStep(Bytes budget);
  // From nodes above the high watermark to those behind them in the demotion order.
  uint64_t DemoteStep(Bytes budget);

  // Where the objects of a client should lie; nothing: where they are.
  using HomeOf = std::function<std::optional<NodeId>(uint32_t client)>;
  struct Locality {
    uint64_t moved_bytes = 0;
    bool round_ended = false;  // all of the node has been looked at since a step that said so, or the first
  };
  // Moves objects of `node` whose client is at home on another one, to there: between nodes that programs run
  // on, and back from one that others were demoted to. Whose an object is says its owner word, so of those
  // that clones share it is who stored it. Looks at kLooksPerStep objects at most, of which each may cost a
  // cache miss. `home` is called for each.
  static constexpr uint64_t kLooksPerStep = 8192;
  Locality LocalityStep(NodeId node, const HomeOf& home, Bytes budget);

  // Evacuation of a node that takes nothing new (PageStore::SetNodeAccepts). `left_bytes` 0: it is empty. No
  // progress and something left: the others have no room, or I/O or another mover holds the rest.
  struct Drain {
    uint64_t moved_bytes = 0;
    uint64_t left_bytes = 0;  // of frames
  };
  Drain DrainStep(NodeId node, Bytes budget, MigrateMode mode, const std::atomic<bool>* abort = nullptr);

  // Whether the rate forbids to copy anything just now: then a step that returned 0 says nothing.
  bool exhausted() { return Allowed(Bytes(1)) == 0; }

  CompactorStats stats() const ZP_EXCLUDES(mu_);

 private:
  // What may be copied now, of `budget`.
  uint64_t Allowed(Bytes budget) ZP_EXCLUDES(mu_);
  void Spent(uint64_t bytes) ZP_EXCLUDES(mu_);
  // Up to `bytes` of the node's spans, from the hand on, to the first of `targets` that takes them.
  MigrateStats MoveSome(const PageStore::Node& from, const std::vector<NodeId>& targets, uint64_t bytes,
                        MigrateMode mode, const std::atomic<bool>* abort);
  uint64_t Relieve(bool demote, Bytes budget, MigrateStats CompactorStats::*counter);
  // What it may hold, and its frames in thousandths of that.
  uint64_t MostFrames(const PageStore::Node& node) const;
  uint64_t FillPermille(const PageStore::Node& node) const;
  // Whether the node takes objects whose client runs there.
  bool TakesBack(const PageStore::Node& node) const;

  PageStore& store_;
  const Options options_;
  mutable Mutex mu_;
  CompactorStats stats_ ZP_GUARDED_BY(mu_);
  int64_t allowance_ ZP_GUARDED_BY(mu_) = 0;  // below zero: a span was larger than what was left
  std::chrono::steady_clock::time_point allowance_at_ ZP_GUARDED_BY(mu_) = std::chrono::steady_clock::now();
  std::array<std::atomic<uint32_t>, kMaxNodes> span_hand_{};
  std::array<std::atomic<uint32_t>, kMaxNodes> part_hand_{};
  std::array<std::atomic<uint64_t>, kMaxNodes> object_hand_{};  // {span : 32, place in it : 32}
};

}  // namespace zp

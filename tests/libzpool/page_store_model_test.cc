// PageStore under random stores, loads, references, releases, pins and moves, alone against a model and from
// several threads, with both pools.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/points.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;

struct Held {
  Slot slot;
  uint64_t content;
  uint32_t refs;
};

// Lengths of all size classes come up: from pages that encode to some 30 bytes to raw ones.
unsigned NoiseOf(uint64_t content) { return static_cast<unsigned>(content * 37 % 513); }

// Ends a migration before its n-th object.
class Aborter {
 public:
  Aborter() {
    points_.On("migrate.object", [this] {
      if (left_ != 0 && --left_ == 0) abort_.store(true);
    });
  }
  // Before the n-th object from now on; 0: never.
  const std::atomic<bool>* After(uint64_t objects) {
    left_ = objects;
    abort_.store(false);
    return &abort_;
  }

 private:
  testing::Points points_;
  std::atomic<bool> abort_{false};
  uint64_t left_ = 0;
};

// One random step of moving things about. Without an aborter, where there are several threads, what is
// aborted is so at its first object.
void MoveSomething(PageStore& store, Compactor& compactor, std::mt19937_64& random,
                   Aborter* aborter = nullptr) {
  const auto& nodes = store.topology().nodes();
  const NodeId node = nodes[random() % nodes.size()];
  const std::atomic<bool> at_once{random() % 4 == 0};
  const std::atomic<bool>* const abort =
      aborter != nullptr ? aborter->After(at_once ? 1 + random() % 12 : 0) : &at_once;
  switch (random() % 7) {
    case 0:
      compactor.CompactStep(node, KiB(64));
      break;
    case 1:
      compactor.EmptyBlocksStep(node, KiB(512));
      break;
    case 2:
      store.SetNodeAccepts(node, false);
      compactor.DrainStep(node, KiB(512), MigrateMode::kSyncLight, abort);
      break;
    case 3:
      compactor.BalanceStep(KiB(512));
      break;
    case 4:
      compactor.DemoteStep(KiB(512));
      break;
    case 5:
      compactor.LocalityStep(
          node, [&](uint32_t) { return nodes[random() % nodes.size()]; }, KiB(64));
      break;
    default:
      for (const NodeId each : nodes) store.SetNodeAccepts(each, true);
      store.set_pool(random() % 2 == 0 ? PoolKind::kZbud : PoolKind::kZsmalloc);
  }
}

// Grows, shrinks and churns in turn, checking all along.
void RunSeed(PageStore& store, uint64_t seed, int steps, bool alone, Compactor* compactor = nullptr,
             Aborter* aborter = nullptr) {
  SCOPED_TRACE("replay: ZP_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  auto scratch = std::make_unique<Scratch>();
  std::vector<Held> held;
  PageBuffer page;
  PageBuffer out;
  uint64_t content = seed << 32;
  for (int i = 0; i < steps; ++i) {
    const int phase = i / 500 % 3;  // grow, churn, shrink
    const bool store_one = held.empty() || random() % 10 < (phase == 0 ? 8u : phase == 1 ? 5u : 2u);
    if (store_one) {
      ++content;
      MakePage(content, 1, NoiseOf(content), &page);
      const Result<Slot> slot = random() % 16 == 0
                                    ? store.StoreRaw(page, {1, PageIndex(content)}, NodeId(0))
                                    : store.Store(page, {1, PageIndex(content)}, NodeId(0), *scratch);
      if (slot.ok()) {
        held.push_back({*slot, content, 1});
      } else {
        ASSERT_EQ(slot.error().code, Errc::kNoMemory);
      }
      if (!slot.ok() || random() % 8 != 0) continue;
    }
    if (held.empty()) continue;
    std::swap(held[random() % held.size()], held.back());
    Held& one = held.back();
    MakePage(one.content, 1, NoiseOf(one.content), &page);
    ASSERT_EQ(store.Load(one.slot, out, *scratch), LoadOutcome::kLoaded) << "step " << i;
    ASSERT_EQ(page, out) << "step " << i;
    if (compactor != nullptr && random() % 8 == 0) MoveSomething(store, *compactor, random, aborter);
    if (one.slot.is_handle() && random() % 16 == 0) {
      const auto bytes = store.Pin(one.slot);
      if (bytes.ok()) {
        const std::vector<std::byte> before(bytes->begin(), bytes->end());
        if (compactor != nullptr) MoveSomething(store, *compactor, random, aborter);
        ASSERT_TRUE(std::equal(before.begin(), before.end(), bytes->begin())) << "step " << i;
        store.Unpin(one.slot);
      }
      const auto& nodes = store.topology().nodes();
      const Status moved = store.MoveObject(one.slot, nodes[random() % nodes.size()]);
      ASSERT_TRUE(moved.ok() || moved.error().code == Errc::kBusy || moved.error().code == Errc::kNoMemory);
    }
    if (random() % 16 == 0 && store.Ref(one.slot).ok()) {
      ++one.refs;
      continue;
    }
    store.Release(one.slot);
    if (--one.refs == 0) held.pop_back();
    if (alone && i % 50 == 0) {
      store.DebugVerify();
      uint64_t objects = 0;
      for (const Held& h : held) objects += h.slot.is_handle() ? 1 : 0;
      ASSERT_EQ(store.stats().stored_pages, objects) << "step " << i;
    }
    if (i % 700 == 0) store.Trim();
  }
  for (const Held& one : held) {
    for (uint32_t r = 0; r < one.refs; ++r) store.Release(one.slot);
  }
}

void ExpectEmpty(PageStore& store) {
  store.Trim();
  store.DebugVerify();
  EXPECT_EQ(store.stats().stored_pages, 0u);
  EXPECT_EQ(store.stats().stored_bytes, 0u);
  EXPECT_EQ(store.stats().pool_bytes, 0u);
}

TEST(PageStoreModel, KeepsEveryPageUnderRandomOperations) {
  const char* fixed = std::getenv("ZP_SEED");
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : 1;
  for (uint64_t seed = first; seed < first + (fixed != nullptr ? 1 : testing::Rounds(6, 100)); ++seed) {
    auto store = PageStore::Create({Topology::SingleNode(), MiB(64), CodecId::kLz4}).value();
    RunSeed(*store, seed, 6000, true);
    if (HasFatalFailure()) return;
    ExpectEmpty(*store);
  }
}

Topology ThreeNodes() {
  return Topology::Made({NodeId(0), NodeId(3), NodeId(4)}, {{10, 20, 40}, {20, 10, 40}, {40, 40, 10}})
      .value();
}

TEST(PageStoreModel, KeepsEveryPageWhileThingsMove) {
  const char* fixed = std::getenv("ZP_SEED");
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : 100;
  uint64_t compacted = 0;
  uint64_t aborted = 0;
  for (uint64_t seed = first; seed < first + (fixed != nullptr ? 1 : testing::Rounds(8, 100)); ++seed) {
    auto store = PageStore::Create({ThreeNodes(), seed % 2 == 0 ? MiB(64) : MiB(2), CodecId::kLz4}).value();
    Compactor compactor(*store, {0, 100, 50, 0, {NodeId(0), NodeId(3), NodeId(4)}});
    Aborter aborter;
    RunSeed(*store, seed, 6000, true, &compactor, &aborter);
    if (HasFatalFailure()) return;
    ExpectEmpty(*store);
    const CompactorStats stats = compactor.stats();
    compacted += stats.objects;
    EXPECT_GT(stats.drained.of(MigrateOutcome::kMoved), 0u);
    aborted += stats.drained.of(MigrateOutcome::kAborted);
  }
  EXPECT_TRUE(fixed != nullptr || compacted > 0);
  EXPECT_TRUE(fixed != nullptr || aborted > 0);
}

TEST(PageStoreModel, KeepsEveryPageWhereMemoryRunsOut) {
  for (uint64_t seed = 50; seed < 50 + testing::Rounds(4, 20); ++seed) {
    auto store = PageStore::Create({Topology::Made({NodeId(1), NodeId(4)}, {{10, 20}, {20, 10}}).value(),
                                    MiB(1), CodecId::kLz4})
                     .value();
    RunSeed(*store, seed, 6000, true);
    if (HasFatalFailure()) return;
    EXPECT_GT(store->stats().store_failures, 0u);
    ExpectEmpty(*store);
  }
}

TEST(PageStoreStress, ThreadsDoNotDisturbEachOther) {
  for (const uint64_t mib : {64, 2}) {
    auto store = PageStore::Create({Topology::SingleNode(), MiB(mib), CodecId::kLz4}).value();
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([&store, t] { RunSeed(*store, 1000 + t, 6000, false); });
    }
    for (std::thread& thread : threads) thread.join();
    ExpectEmpty(*store);
  }
}

TEST(PageStoreStress, MoversDisturbNobody) {
  for (const uint64_t mib : {64, 2}) {
    auto store = PageStore::Create({ThreeNodes(), MiB(mib), CodecId::kLz4}).value();
    Compactor compactor(*store, {0, 100, 50, 0, {NodeId(0), NodeId(3), NodeId(4)}});
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] { RunSeed(*store, 2000 + t, 6000, false); });
    }
    std::vector<std::thread> movers;
    for (uint64_t t = 0; t < 2; ++t) {
      movers.emplace_back([&, t] {
        std::mt19937_64 random(t);
        while (!stop.load()) MoveSomething(*store, compactor, random);
      });
    }
    for (std::thread& thread : threads) thread.join();
    stop.store(true);
    for (std::thread& mover : movers) mover.join();
    ExpectEmpty(*store);
  }
}

}  // namespace
}  // namespace zp

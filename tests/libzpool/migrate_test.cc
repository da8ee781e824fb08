// Moving spans and objects: what each outcome leaves, exact interleavings, and abort at every step. With both
// pools, by one contract.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"
#include "tests/libzpool/one_cpu.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/points.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;
using testing::Points;

constexpr NodeId kNear(0);
constexpr NodeId kFar(5);

class Migration : public ::testing::TestWithParam<PoolKind> {
 protected:
  Migration() {
    PageStore::Options options;
    options.topology = Topology::Made({kNear, kFar}, {{10, 20}, {20, 10}}).value();
    options.capacity = MiB(16);
    options.pool = GetParam();
    store_ = PageStore::Create(options).value();
  }
  // `noise` 512: objects of whole frames, of which 60 lie in one span of either pool.
  void Fill(uint64_t pages, unsigned noise = 200) {
    PageBuffer page;
    noise_ = noise;
    for (uint64_t i = 0; i < pages; ++i) {
      MakePage(i, 1, noise_, &page);
      slots_.push_back(store_->Store(page, {1, PageIndex(i)}, kNear, *scratch_).value());
    }
    store_->SetNodeAccepts(kNear, false);  // it is to be drained
  }
  void ExpectAllThere() {
    PageBuffer page;
    PageBuffer out;
    for (uint64_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].is_empty()) continue;
      MakePage(i, 1, noise_, &page);
      ASSERT_EQ(store_->Load(slots_[i], out, *scratch_), LoadOutcome::kLoaded) << i;
      ASSERT_EQ(page, out) << i;
    }
  }
  uint64_t CountOn(NodeId node) const {
    return static_cast<uint64_t>(std::count_if(slots_.begin(), slots_.end(), [&](Slot slot) {
      return !slot.is_empty() && store_->NodeOfObject(slot) == node;
    }));
  }
  void Drop(size_t i) {
    store_->Release(slots_[i]);
    slots_[i] = Slot::Empty();
  }
  void TearDown() override {
    for (size_t i = 0; i < slots_.size(); ++i) {
      if (!slots_[i].is_empty()) Drop(i);
    }
    store_->Trim();
    store_->DebugVerify();
    EXPECT_EQ(store_->stats().pool_bytes, 0u);
    EXPECT_EQ(store_->stats().stored_pages, 0u);
  }

  testing::OneCpu one_cpu_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  std::vector<Slot> slots_;
  unsigned noise_ = 200;
};

TEST_P(Migration, DrainEmptiesANodeAndKeepsEveryHandle) {
  Fill(2000);
  const uint64_t bytes = store_->node_stats(kNear).stored_bytes;
  Compactor compactor(*store_, {});
  Compactor::Drain drain;
  for (int steps = 0; steps < 100; ++steps) {
    drain = compactor.DrainStep(kNear, MiB(1), MigrateMode::kSync);
    if (drain.left_bytes == 0) break;
  }
  EXPECT_EQ(drain.left_bytes, 0u);
  EXPECT_EQ(CountOn(kNear), 0u);
  EXPECT_EQ(CountOn(kFar), slots_.size());
  EXPECT_EQ(store_->node_stats(kFar).stored_bytes, bytes);
  ExpectAllThere();
  store_->DebugVerify();
  // It takes nothing new until it is opened again.
  Fill(1);
  EXPECT_EQ(store_->NodeOfObject(slots_.back()), kFar);
  store_->SetNodeAccepts(kNear, true);
  Fill(1);
  EXPECT_EQ(store_->NodeOfObject(slots_.back()), kNear);
}

TEST_P(Migration, AbortAtEveryStepRestoresWhatWas) {
  Fill(60, 512);
  Compactor compactor(*store_, {});
  std::vector<const std::byte*> before;
  for (const Slot slot : slots_) {
    before.push_back(store_->Pin(slot).value().data());
    store_->Unpin(slot);
  }
  const NodeStats near = store_->node_stats(kNear);
  bool finished = false;
  for (int stop_at = 0; !finished; ++stop_at) {
    ASSERT_LT(stop_at, 200);
    std::atomic<bool> abort{false};
    int objects = 0;
    {
      Points points;
      points.On("migrate.object", [&] {
        if (objects++ == stop_at) abort.store(true);
      });
      compactor.DrainStep(kNear, MiB(8), MigrateMode::kAsync, &abort);
    }
    finished = !abort.load();
    if (finished) break;
    EXPECT_EQ(compactor.stats().drained.of(MigrateOutcome::kMoved), 0u);
    // Not only the content: the very places, counts and frames.
    const NodeStats now = store_->node_stats(kNear);
    EXPECT_EQ(now.objects, near.objects);
    EXPECT_EQ(now.stored_bytes, near.stored_bytes);
    EXPECT_EQ(now.pool_bytes, near.pool_bytes);
    EXPECT_EQ(store_->node_stats(kFar).pool_bytes, 0u);
    for (size_t i = 0; i < slots_.size(); ++i) {
      ASSERT_EQ(store_->Pin(slots_[i]).value().data(), before[i]) << "stopped at " << stop_at;
      store_->Unpin(slots_[i]);
    }
    ExpectAllThere();
    store_->DebugVerify();
  }
  EXPECT_EQ(CountOn(kFar), slots_.size());
}

TEST_P(Migration, PinnedObjectsStayAndSayWhy) {
  Fill(50);
  const auto bytes = store_->Pin(slots_[7]).value();
  const std::vector<std::byte> content(bytes.begin(), bytes.end());
  Compactor compactor(*store_, {});
  const Compactor::Drain drain = compactor.DrainStep(kNear, MiB(8), MigrateMode::kSyncLight);
  EXPECT_GT(drain.left_bytes, 0u);
  EXPECT_GT(compactor.stats().drained.of(MigrateOutcome::kPinned), 0u);
  EXPECT_EQ(store_->NodeOfObject(slots_[7]), kNear);
  EXPECT_EQ(store_->MoveObject(slots_[7], kFar).error().code, Errc::kBusy);
  EXPECT_TRUE(std::equal(content.begin(), content.end(), bytes.begin()));
  store_->Unpin(slots_[7]);
  EXPECT_EQ(compactor.DrainStep(kNear, MiB(8), MigrateMode::kSync).left_bytes, 0u);
  ExpectAllThere();
}

TEST_P(Migration, FullTargetIsAnOutcome) {
  Fill(500);
  store_->SetNodeCapacity(kFar, KiB(16));
  Compactor compactor(*store_, {});
  EXPECT_GT(compactor.DrainStep(kNear, MiB(8), MigrateMode::kSync).left_bytes, 0u);
  EXPECT_GT(compactor.stats().drained.of(MigrateOutcome::kNoTarget), 0u);
  ExpectAllThere();
  store_->DebugVerify();
  store_->SetNodeAccepts(kNear, true);
}

// A reader has the old place in hand; the mover publishes, and may not punch the frame before the reader has
// copied.
TEST_P(Migration, ReaderThatHasTheOldPlaceIsWaitedFor) {
  Fill(50);
  Compactor compactor(*store_, {});
  Points points;
  std::mutex mu;
  std::condition_variable changed;
  bool located = false;
  bool published = false;
  std::atomic<bool> copied{false};
  std::thread::id reader_id;
  points.On("load.located", [&] {
    std::unique_lock lock(mu);
    if (std::this_thread::get_id() != reader_id) return;
    located = true;
    changed.notify_all();
    changed.wait(lock, [&] { return published; });
    lock.unlock();
    // The mover is behind its publication now, or waits already. It must wait still.
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_EQ(store_->NodeOfObject(slots_[3]), kFar);
    copied.store(true);
  });
  points.On("migrate.published", [&] {
    std::lock_guard lock(mu);
    published = true;
    changed.notify_all();
  });
  std::thread reader([&] {
    {
      std::lock_guard lock(mu);
      reader_id = std::this_thread::get_id();
    }
    PageBuffer page;
    PageBuffer out;
    auto scratch = std::make_unique<Scratch>();
    MakePage(3, 1, 200, &page);
    EXPECT_EQ(store_->Load(slots_[3], out, *scratch), LoadOutcome::kLoaded);
    EXPECT_EQ(page, out);
  });
  {
    std::unique_lock lock(mu);
    changed.wait(lock, [&] { return located; });
  }
  const Compactor::Drain drain = compactor.DrainStep(kNear, MiB(8), MigrateMode::kSync);
  EXPECT_TRUE(copied.load()) << "the mover gave the frame back under the reader";
  EXPECT_EQ(drain.left_bytes, 0u);
  reader.join();
}

// An object is freed between its copy and its publication, or between publication and the end: it is freed
// once.
TEST_P(Migration, ObjectsFreedInTheMiddleAreFreedOnce) {
  Fill(60);
  Compactor compactor(*store_, {});
  Points points;
  int objects = 0;
  points.On("migrate.object", [&] {
    // Objects before and behind the one that is about to move.
    if (objects < 60 && objects % 3 == 0) Drop(static_cast<size_t>(objects));
    ++objects;
  });
  points.On("migrate.published", [&] {
    for (const size_t i : {1, 4, 50}) Drop(i);
  });
  while (compactor.DrainStep(kNear, MiB(8), MigrateMode::kSync).left_bytes != 0) {
  }
  EXPECT_GT(objects, 20);
  ExpectAllThere();
}

TEST_P(Migration, AbortAfterObjectsWereFreedThere) {
  Fill(60, 512);
  Compactor compactor(*store_, {});
  std::atomic<bool> abort{false};
  {
    Points points;
    int objects = 0;
    points.On("migrate.object", [&] {
      if (++objects == 30) {
        for (size_t i = 0; i < slots_.size(); i += 2) Drop(i);
        abort.store(true);
      }
    });
    compactor.DrainStep(kNear, MiB(8), MigrateMode::kAsync, &abort);
  }
  EXPECT_TRUE(abort.load());
  EXPECT_EQ(CountOn(kNear), 30u);
  EXPECT_EQ(store_->node_stats(kFar).pool_bytes, 0u);
  ExpectAllThere();
  store_->DebugVerify();
}

TEST_P(Migration, OneObjectMovesNearItsClient) {
  Fill(10);
  ASSERT_TRUE(store_->MoveObject(slots_[4], kFar).ok());
  EXPECT_EQ(CountOn(kFar), 1u);
  EXPECT_EQ(store_->NodeOfObject(slots_[4]), kFar);
  ExpectAllThere();
  store_->SetNodeAccepts(kFar, false);
  EXPECT_EQ(store_->MoveObject(slots_[5], kFar).error().code, Errc::kNoMemory);
  store_->SetNodeAccepts(kFar, true);
}

TEST_P(Migration, StandbyFramesMoveByTheSameCore) {
  PageBuffer page;
  for (uint64_t i = 0; i < 200; ++i) {
    MakePage(i, 1, noise_, &page);
    slots_.push_back(store_->StoreRaw(page, {1, PageIndex(i)}, kNear).value());
  }
  Compactor compactor(*store_, {});
  EXPECT_EQ(compactor.DrainStep(kNear, MiB(8), MigrateMode::kSync).left_bytes, 0u);
  EXPECT_EQ(CountOn(kFar), 200u);
  ExpectAllThere();
}

TEST_P(Migration, BlocksAtTheEndAreEmptiedFirst) {
  Fill(4000);
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (i % 8 != 0) Drop(i);
  }
  store_->Trim();
  Compactor compactor(*store_, {});
  while (compactor.CompactStep(kNear, MiB(1)) != 0) {
  }
  while (compactor.EmptyBlocksStep(kNear, MiB(1)) != 0) {
  }
  ExpectAllThere();
  store_->DebugVerify();
  EXPECT_EQ(CountOn(kNear), 500u);
}

TEST_P(Migration, WatermarksDecideWhoGivesAndWhoTakes) {
  Fill(2000);
  store_->SetNodeCapacity(kNear, Bytes(store_->node_stats(kNear).pool_bytes));
  Compactor compactor(*store_, {0, 900, 500, 20, {kNear, kFar}});
  while (compactor.DemoteStep(KiB(512)) != 0) {
  }
  const NodeStats near = store_->node_stats(kNear);
  EXPECT_LE(near.pool_bytes * 1000, near.capacity_bytes * 900);
  EXPECT_GT(near.pool_bytes, 0u);
  EXPECT_GT(CountOn(kFar), 0u);
  // Nobody is above the watermark now.
  EXPECT_EQ(compactor.BalanceStep(MiB(1)), 0u);
  ExpectAllThere();
}

TEST_P(Migration, RateLimitsWhatIsCopied) {
  Fill(2000);
  Compactor compactor(*store_, {1 << 20});
  uint64_t moved = 0;
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(300)) {
    moved += compactor.DrainStep(kNear, MiB(16), MigrateMode::kAsync).moved_bytes;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  // A span more than the rate at most, for each time that the allowance was used up.
  EXPECT_LT(static_cast<double>(moved), 1.2e6 * seconds + 600e3);
  EXPECT_GT(moved, 0u);
}

INSTANTIATE_TEST_SUITE_P(Pools, Migration, ::testing::Values(PoolKind::kZsmalloc, PoolKind::kZbud),
                         [](const auto& of) { return kPoolNames[static_cast<size_t>(of.param)]; });

// ---- compaction

class Compaction : public ::testing::Test {
 protected:
  static uint64_t Used(const PageStore& store) { return store.stats().pool_bytes; }
};

TEST_F(Compaction, MakesAShrunkenPoolDenseAgain) {
  auto store = PageStore::Create({Topology::SingleNode(), MiB(64), CodecId::kLz4}).value();
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  std::vector<Slot> slots;
  for (uint64_t i = 0; i < 8000; ++i) {
    MakePage(i, 1, static_cast<unsigned>(200 + i % 8), &page);
    slots.push_back(store->Store(page, {1, PageIndex(i)}, NodeId(0), *scratch).value());
  }
  for (uint64_t i = 0; i < slots.size(); ++i) {
    if (i % 8 != i / 8 % 8) store->Release(slots[i]);
  }
  store->Trim();
  const uint64_t before = Used(*store);
  Compactor compactor(*store, {});
  while (compactor.CompactStep(NodeId(0), MiB(1)) != 0) {
  }
  store->Trim();
  store->DebugVerify();
  const PoolStats stats = store->stats();
  EXPECT_LT(Used(*store), before / 3);
  EXPECT_GT(static_cast<double>(stats.stored_bytes) / static_cast<double>(stats.pool_bytes), .9);
  // Nothing was copied twice.
  EXPECT_LE(compactor.stats().objects, stats.stored_pages);
  PageBuffer out;
  for (uint64_t i = 0; i < slots.size(); ++i) {
    if (i % 8 != i / 8 % 8) continue;
    MakePage(i, 1, static_cast<unsigned>(200 + i % 8), &page);
    ASSERT_EQ(store->Load(slots[i], out, *scratch), LoadOutcome::kLoaded);
    ASSERT_EQ(page, out);
    store->Release(slots[i]);
  }
}

TEST_F(Compaction, DenseAndEmptyPoolsAreLeftAlone) {
  auto store = PageStore::Create({Topology::SingleNode(), MiB(64), CodecId::kLz4}).value();
  Compactor compactor(*store, {});
  EXPECT_EQ(compactor.CompactStep(NodeId(0), MiB(1)), 0u);
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  std::vector<Slot> slots;
  for (uint64_t i = 0; i < 1000; ++i) {
    MakePage(i, 1, 200, &page);
    slots.push_back(store->Store(page, {1, PageIndex(i)}, NodeId(0), *scratch).value());
  }
  EXPECT_EQ(compactor.CompactStep(NodeId(0), MiB(1)), 0u);
  for (const Slot slot : slots) store->Release(slot);
}

// ---- zbud's reclaim

TEST(ZbudReclaim, VacatesAFrameByTwoEvictionsAtMost) {
  FrameBudget budget(1000);
  auto arena = FrameArena::Create({NodeId(0), MiB(4)}, budget).value();
  auto handles = HandleTable::Create(1000).value();
  auto pool = ZbudPool::Create(*arena, *handles).value();
  struct Object {
    uint64_t offset;
    Handle handle;
  };
  std::vector<Object> objects;
  for (int i = 0; i < 40; ++i) {
    Location location;
    location.length = 1500;
    location.offset = pool->Allocate(1500).value();
    const Handle handle = handles->Insert(location, {}, 0).value();
    pool->Bind(location.offset, handle);
    objects.push_back({location.offset, handle});
  }
  EXPECT_EQ(arena->frames_in_use(), 20u);
  class Evictor : public ObjectEvictor {
   public:
    Evictor(ZbudPool& pool, HandleTable& handles) : pool_(pool), handles_(handles) {}
    bool Evict(Handle handle) override {
      ++asked;
      if (!obliging) return false;
      if (!handles_.Unref(handle)) return false;
      const Location location = handles_.Retire(handle);
      pool_.Free(location.offset, location.length);
      handles_.Recycle(handle);
      return true;
    }
    int asked = 0;
    bool obliging = true;

   private:
    ZbudPool& pool_;
    HandleTable& handles_;
  } evictor(*pool, *handles);
  const uint64_t frame = objects[5].offset / kPageBytes;
  evictor.obliging = false;
  EXPECT_EQ(pool->Reclaim(frame, evictor).error().code, Errc::kBusy);
  EXPECT_EQ(arena->frames_in_use(), 20u);
  evictor.obliging = true;
  evictor.asked = 0;
  EXPECT_TRUE(pool->Reclaim(frame, evictor).ok());
  EXPECT_EQ(evictor.asked, 2);
  EXPECT_EQ(arena->frames_in_use(), 19u);
  EXPECT_EQ(pool->Reclaim(frame, evictor).error().code, Errc::kGone);
  EXPECT_EQ(pool->Reclaim(uint64_t{1} << 40, evictor).error().code, Errc::kGone);
  pool->DebugVerify();
  for (const Object& object : objects) {
    if (object.offset / kPageBytes == frame) continue;
    EXPECT_TRUE(handles->Unref(object.handle));
    pool->Free(handles->Retire(object.handle).offset, 1500);
  }
}

}  // namespace
}  // namespace zp

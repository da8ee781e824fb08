// Compaction of zbud: which frames it empties, and what it does to those who store, free and pin meanwhile.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "libzpool/base/epochs.h"
#include "libzpool/pool/zbud_pool.h"
#include "tests/libzpool/one_cpu.h"
#include "tests/libzpool/points.h"

namespace zp {
namespace {

using testing::Points;

class ZbudCompaction : public ::testing::Test {
 protected:
  ZbudCompaction() {
    arena_ = FrameArena::Create({NodeId(2), MiB(64)}, budget_).value();
    handles_ = HandleTable::Create(1 << 20).value();
    pool_ = ZbudPool::Create(*arena_, *handles_).value();
  }
  void TearDown() override {
    for (size_t i = 0; i < objects_.size(); ++i) Drop(i);
    pool_->Trim();
    pool_->DebugVerify();
    EXPECT_EQ(pool_->stats().objects, 0u);
    EXPECT_EQ(arena_->frames_in_use(), 0u);
  }

  struct Object {
    Handle handle;
    uint32_t length = 0;
    uint8_t fill = 0;
  };
  void Put(uint32_t length) {
    Location location;
    location.node = NodeId(2);
    location.length = length;
    location.offset = pool_->Allocate(length).value();
    const uint8_t fill = static_cast<uint8_t>(objects_.size() * 7 + 1);
    std::memset(arena_->At(location.offset), fill, length);
    const Handle handle = handles_->Insert(location, {}, 0).value();
    pool_->Bind(location.offset, handle);
    objects_.push_back({handle, length, fill});
  }
  void Drop(size_t i) {
    const Handle handle = objects_[i].handle;
    if (handle.is_null()) return;
    objects_[i].handle = Handle();
    ASSERT_TRUE(handles_->Unref(handle));
    const Location location = handles_->Retire(handle);
    pool_->Free(location.offset, location.length);
    handles_->Recycle(handle);
  }
  Location LocationOf(size_t i) const { return Location::Decode(handles_->Lookup(objects_[i].handle)); }
  uint64_t FrameOf(size_t i) const { return LocationOf(i).offset / kPageBytes; }
  uint32_t CompactAll(uint32_t waste_permille = 0) {
    uint32_t objects = 0;
    for (unsigned shard = 0; shard < ZbudPool::kShards; ++shard) {
      while (const uint32_t moved = pool_->Compact(shard, waste_permille, epochs_).objects) objects += moved;
    }
    return objects;
  }
  // Chunks by frame.
  std::map<uint64_t, std::vector<uint32_t>> Frames() const {
    std::map<uint64_t, std::vector<uint32_t>> frames;
    for (size_t i = 0; i < objects_.size(); ++i) {
      if (!objects_[i].handle.is_null()) frames[FrameOf(i)].push_back(ZbudPool::ChunksOf(objects_[i].length));
    }
    return frames;
  }
  void Verify() {
    uint64_t bytes = 0;
    uint64_t count = 0;
    for (size_t i = 0; i < objects_.size(); ++i) {
      const Object& object = objects_[i];
      if (object.handle.is_null()) continue;
      const std::byte* at = arena_->At(LocationOf(i).offset);
      const std::byte fill{object.fill};
      ASSERT_TRUE(std::all_of(at, at + object.length, [fill](std::byte b) { return b == fill; })) << i;
      bytes += object.length;
      ++count;
    }
    EXPECT_EQ(pool_->stats().objects, count);
    EXPECT_EQ(pool_->stats().stored_bytes, bytes);
    EXPECT_EQ(pool_->stats().frames, arena_->frames_in_use());
    pool_->DebugVerify();
  }

  FrameBudget budget_{1 << 16};
  Epochs epochs_;
  std::unique_ptr<FrameArena> arena_;
  std::unique_ptr<HandleTable> handles_;
  std::unique_ptr<ZbudPool> pool_;
  std::vector<Object> objects_;
  testing::OneCpu one_cpu_;
};

// As many pairs as there can be, each for one copy of the smaller object; no two frames are left that fit.
TEST_F(ZbudCompaction, MakesAsManyPairsAsThereCanBe) {
  std::mt19937_64 random(21);
  for (int round = 0; round < 12; ++round) {
    const uint32_t shortest = round % 3 == 0 ? 1 : 600;
    const uint32_t longest = round % 2 == 0 ? 4096 : 2500;
    for (int i = 0; i < 600; ++i) Put(shortest + static_cast<uint32_t>(random() % (longest - shortest)));
    for (size_t i = 0; i < objects_.size(); ++i) {
      if (random() % 2 == 0) Drop(i);
    }
    pool_->Trim();
    std::vector<uint32_t> singles;
    for (const auto& [frame, chunks] : Frames()) {
      if (chunks.size() == 1) singles.push_back(chunks[0]);
    }
    // The largest with the smallest, while they fit, is the most that there can be.
    std::sort(singles.begin(), singles.end());
    uint32_t most = 0;
    for (size_t small = 0, large = singles.size(); small + 1 < large;) {
      --large;
      if (singles[small] + singles[large] > ZbudPool::kChunks) continue;
      ++small;
      ++most;
    }
    const uint64_t frames = arena_->frames_in_use();
    std::vector<uint64_t> places;
    for (size_t i = 0; i < objects_.size(); ++i)
      places.push_back(objects_[i].handle.is_null() ? 0 : LocationOf(i).offset);
    EXPECT_EQ(CompactAll(), most);
    EXPECT_GT(most, 50u);
    EXPECT_EQ(arena_->frames_in_use(), frames - most);
    uint32_t moved = 0;
    for (size_t i = 0; i < objects_.size(); ++i) {
      if (objects_[i].handle.is_null() || LocationOf(i).offset == places[i]) continue;
      EXPECT_LE(objects_[i].length, kPageBytes / 2);
      ++moved;
    }
    EXPECT_EQ(moved, most) << "an object was copied that need not have been";
    Verify();
  }
}

TEST_F(ZbudCompaction, LeavesAloneWhatCannotBeBetter) {
  EXPECT_EQ(CompactAll(), 0u);
  for (int i = 0; i < 40; ++i) Put(2500);
  EXPECT_EQ(CompactAll(), 0u);
  for (int i = 0; i < 100; ++i) Put(1500);
  EXPECT_EQ(CompactAll(), 0u);
  // Two of seventy frames could be saved: less than asked for.
  for (const size_t i : {100, 102, 104, 106}) Drop(i);
  pool_->Trim();
  EXPECT_EQ(CompactAll(700), 0u);
  EXPECT_EQ(CompactAll(), 2u);
  Verify();
}

// An object is freed between its copy and its publication, or behind it; a buddy of its target is; the frame
// that it leaves is freed at once.
TEST_F(ZbudCompaction, ObjectsFreedInTheMiddleAreFreedOnce) {
  for (int victim = 0; victim < 3; ++victim) {
    const size_t first = objects_.size();
    for (int i = 0; i < 80; ++i) Put(1000 + static_cast<uint32_t>(i));
    for (size_t i = first; i < objects_.size(); i += 2) Drop(i);
    pool_->Trim();
    int copied = 0;
    {
      Points points;
      const auto drop_some = [&] {
        for (size_t i = first; i < objects_.size(); ++i) {
          if (objects_[i].handle.is_null() || i % 3 != 0) continue;
          Drop(i);
          return;
        }
      };
      points.On("compact.copied", [&] {
        ++copied;
        if (victim != 1) drop_some();
      });
      points.On("compact.published", [&] {
        if (victim == 0) return;
        for (int i = 0; i < 5; ++i) drop_some();
        for (int i = 0; i < 5; ++i) Put(1100);  // into what was freed just now
      });
      CompactAll();
    }
    EXPECT_GT(copied, 10);
    Verify();
  }
}

TEST_F(ZbudCompaction, PinnedObjectsStayAndMovingOnesAreNotPinned) {
  for (int i = 0; i < 40; ++i) Put(1500);
  for (size_t i = 0; i < 40; i += 2) Drop(i);
  const uint64_t pinned = LocationOf(1).offset;
  ASSERT_TRUE(pool_->Pin(pinned, 1500).ok());
  // All lie in one span.
  EXPECT_EQ(CompactAll(), 0u);
  pool_->Unpin(pinned, 1500);
  int tried = 0;
  {
    Points points;
    points.On("compact.published", [&] {
      for (size_t i = 1; i < 40; i += 2) {
        const uint64_t offset = LocationOf(i).offset;
        const Status pin = pool_->Pin(offset, 1500);
        // Those that have moved can be pinned where they are.
        ASSERT_TRUE(pin.ok());
        pool_->Unpin(offset, 1500);
        ++tried;
      }
      const uint32_t span = static_cast<uint32_t>(pinned / kSpanBytes);
      EXPECT_EQ(pool_->Isolate(span, {~uint64_t{0}, pool_->ShapeOf(span)->size_class}),
                MigrateOutcome::kBusy);
    });
    points.On("compact.copied", [&] {
      // The one that is about to move is the first that cannot be pinned.
      uint32_t refused = 0;
      for (size_t i = 1; i < 40; i += 2) {
        const uint64_t offset = LocationOf(i).offset;
        const Status pin = pool_->Pin(offset, 1500);
        if (pin.ok()) pool_->Unpin(offset, 1500);
        refused += pin.ok() ? 0 : 1;
      }
      EXPECT_GE(refused, 1u);
    });
    EXPECT_EQ(CompactAll(), 10u);
  }
  EXPECT_EQ(tried, 20);
  Verify();
}

// Stores, frees and loads of others, and movers that take spans away, while two threads compact.
TEST_F(ZbudCompaction, DisturbsNobody) {
  one_cpu_.Release();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> moved{0};
  std::vector<std::thread> compactors;
  for (int t = 0; t < 2; ++t) {
    compactors.emplace_back([&] {
      for (unsigned i = 0; !stop.load(); ++i)
        moved += pool_->Compact(i % ZbudPool::kShards, 0, epochs_).objects;
    });
  }
  std::thread mover([&] {
    std::mt19937_64 random(5);
    while (!stop.load()) {
      // One at a time, so that others find spans in circulation.
      std::this_thread::yield();
      {
        const uint32_t span = static_cast<uint32_t>(random() % arena_->span_limit());
        const std::optional<SpanShape> shape = pool_->ShapeOf(span);
        if (!shape.has_value()) continue;
        const Result<uint32_t> target = pool_->Reserve(*shape);
        if (!target.ok()) continue;
        if (pool_->Isolate(span, *shape) == MigrateOutcome::kMoved) {
          pool_->Migrate(span, *pool_, *target, nullptr);
          epochs_.Synchronize();
          pool_->Putback(span);
        }
        pool_->Putback(*target);
      }
    }
  });
  std::vector<std::thread> users;
  for (uint64_t t = 0; t < 3; ++t) {
    users.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<Object> mine;
      const auto check = [&](const Object& object) {
        const Epochs::Guard reading = epochs_.Enter();
        const Location location = Location::Decode(handles_->Lookup(object.handle));
        const std::byte* at = arena_->At(location.offset);
        const std::byte fill{object.fill};
        ASSERT_EQ(location.length, object.length);
        ASSERT_TRUE(std::all_of(at, at + object.length, [fill](std::byte b) { return b == fill; }));
      };
      const auto drop = [&](const Object& object) {
        ASSERT_TRUE(handles_->Unref(object.handle));
        const Location location = handles_->Retire(object.handle);
        pool_->Free(location.offset, location.length);
        handles_->Recycle(object.handle);
      };
      for (int i = 0; i < 30000; ++i) {
        if (mine.size() < 100 || random() % 10 < (i / 500 % 2 == 0 ? 8u : 2u)) {  // grow and shrink
          Location location;
          location.node = NodeId(2);
          location.length = static_cast<uint32_t>(1 + random() % 3000);
          location.offset = pool_->Allocate(location.length).value();
          const uint8_t fill = static_cast<uint8_t>(random());
          std::memset(arena_->At(location.offset), fill, location.length);
          const Handle handle = handles_->Insert(location, {}, 0).value();
          pool_->Bind(location.offset, handle);
          mine.push_back({handle, location.length, fill});
          continue;
        }
        std::swap(mine[random() % mine.size()], mine.back());
        check(mine.back());
        drop(mine.back());
        mine.pop_back();
      }
      for (const Object& object : mine) drop(object);
    });
  }
  for (std::thread& user : users) user.join();
  stop.store(true);
  for (std::thread& compactor : compactors) compactor.join();
  mover.join();
  EXPECT_GT(moved.load(), 0u);
}

}  // namespace
}  // namespace zp

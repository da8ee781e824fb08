// What every ObjectPool promises (libzpool/pool/object_pool.h), for each of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "libzpool/pool/zbud_pool.h"
#include "libzpool/pool/zsmalloc_pool.h"

namespace zp {
namespace {

struct Maker {
  const char* name;
  uint32_t shortest;  // standby takes whole frames alone
  std::function<std::unique_ptr<ObjectPool>(FrameArena&, HandleTable&)> make;
};

const Maker kMakers[] = {
    {"zsmalloc", 1, [](FrameArena& a, HandleTable& h) { return ZsmallocPool::Create(a, h).value(); }},
    {"zbud", 1, [](FrameArena& a, HandleTable& h) { return ZbudPool::Create(a, h).value(); }},
    {"standby", kPageBytes,
     [](FrameArena& a, HandleTable& h) { return ZsmallocPool::Create(a, h, FrameOwner::kStandby).value(); }},
};

class PoolContract : public ::testing::TestWithParam<Maker> {
 protected:
  static constexpr uint64_t kFrames = 4096;
  struct Object {
    uint32_t length;
    uint8_t fill;
    Handle handle;
  };

  PoolContract() : budget_(kFrames) {
    arena_ = FrameArena::Create({NodeId(3), Bytes(kFrames * kPageBytes)}, budget_).value();
    handles_ = HandleTable::Create(1 << 20).value();
    pool_ = GetParam().make(*arena_, *handles_);
  }
  uint32_t Length(uint32_t wanted) const { return std::max(wanted, GetParam().shortest); }

  Result<uint64_t> Put(uint32_t length, uint8_t fill) {
    const Result<uint64_t> offset = pool_->Allocate(length);
    if (!offset.ok()) return offset;
    std::memset(arena_->At(*offset), fill, length);
    Location location;
    location.node = NodeId(3);
    location.offset = *offset;
    location.length = length;
    const Handle handle = handles_->Insert(location, {}, 0).value();
    pool_->Bind(*offset, handle);
    objects_[*offset] = {length, fill, handle};
    return offset;
  }
  void Drop(uint64_t offset) {
    const Object object = objects_.at(offset);
    objects_.erase(offset);
    ASSERT_TRUE(handles_->Unref(object.handle));
    const Location location = handles_->Retire(object.handle);
    pool_->Free(location.offset, location.length);
    handles_->Recycle(object.handle);
  }
  void Verify() {
    uint64_t end = 0;
    uint64_t bytes = 0;
    for (const auto& [offset, object] : objects_) {
      ASSERT_GE(offset, end) << "objects overlap";
      ASSERT_EQ(offset % Location::kGranuleBytes, 0u);
      end = offset + object.length;
      bytes += object.length;
      const std::byte* at = arena_->At(offset);
      const std::byte fill{object.fill};
      ASSERT_TRUE(std::all_of(at, at + object.length, [fill](std::byte b) { return b == fill; }));
    }
    const ObjectPoolStats stats = pool_->stats();
    EXPECT_EQ(stats.objects, objects_.size());
    EXPECT_EQ(stats.stored_bytes, bytes);
    EXPECT_EQ(stats.frames, arena_->frames_in_use());
    EXPECT_EQ(budget_.used_frames(), arena_->frames_in_use());
    pool_->DebugVerify();
  }
  void TearDown() override {
    while (!objects_.empty()) Drop(objects_.begin()->first);
    Verify();
    pool_->Trim();
    EXPECT_EQ(arena_->frames_in_use(), 0u);
    EXPECT_EQ(pool_->stats().frames, 0u);
    pool_->DebugVerify();
  }

  FrameBudget budget_;
  std::unique_ptr<FrameArena> arena_;
  std::unique_ptr<HandleTable> handles_;
  std::unique_ptr<ObjectPool> pool_;
  std::map<uint64_t, Object> objects_;
};

TEST_P(PoolContract, ObjectsOfEveryLengthKeepTheirBytes) {
  for (uint32_t length = Length(1); length <= kPageBytes; length += length < 200 ? 1 : 61)
    ASSERT_TRUE(Put(length, static_cast<uint8_t>(length)).ok()) << length;
  ASSERT_TRUE(Put(kPageBytes, 7).ok());
  Verify();
}

TEST_P(PoolContract, RandomTrafficAgreesWithAMap) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 20000; ++i) {
    const bool grow = i / 4000 % 2 == 0;
    if (objects_.empty() || random() % 10 < (grow ? 7u : 3u)) {
      (void)Put(Length(static_cast<uint32_t>(1 + random() % kPageBytes)), static_cast<uint8_t>(random()));
    } else {
      auto at = objects_.lower_bound(random() % (arena_->span_count() * kSpanBytes));
      if (at == objects_.end()) at = objects_.begin();
      Drop(at->first);
    }
    if (i % 997 == 0) Verify();
    if (i % 3001 == 0) pool_->Trim();
  }
  Verify();
}

TEST_P(PoolContract, FullBudgetIsAnOutcomeThatLeavesNothing) {
  for (;;) {
    const Result<uint64_t> offset = Put(Length(2000), 1);
    if (offset.ok()) continue;
    EXPECT_EQ(offset.error().code, Errc::kNoMemory);
    break;
  }
  EXPECT_LE(arena_->frames_in_use(), kFrames);
  EXPECT_GE(arena_->frames_in_use() + 64, kFrames);
  Verify();
  // What is freed can be had again.
  for (int i = 0; i < 100; ++i) Drop(objects_.begin()->first);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(Put(Length(2000), 2).ok()) << i;
  Verify();
}

TEST_P(PoolContract, NodeLimitIsKept) {
  arena_->set_limit_frames(10);
  int stored = 0;
  while (Put(Length(3000), 1).ok()) ++stored;
  EXPECT_GE(stored, 10);
  EXPECT_LE(arena_->frames_in_use(), 10u);
  Verify();
}

TEST_P(PoolContract, PinnedObjectsCannotBeIsolated) {
  const uint64_t offset = Put(Length(1000), 5).value();
  const uint32_t span = static_cast<uint32_t>(offset / kSpanBytes);
  const std::optional<SpanShape> shape = pool_->ShapeOf(span);
  ASSERT_TRUE(shape.has_value());
  ASSERT_TRUE(pool_->Pin(offset, Length(1000)).ok());
  ASSERT_TRUE(pool_->Pin(offset, Length(1000)).ok());
  EXPECT_EQ(pool_->Isolate(span, *shape), MigrateOutcome::kPinned);
  pool_->Unpin(offset, Length(1000));
  EXPECT_EQ(pool_->Isolate(span, *shape), MigrateOutcome::kPinned);
  pool_->Unpin(offset, Length(1000));
  EXPECT_EQ(pool_->Isolate(span, *shape), MigrateOutcome::kMoved);
  // Nothing is stored in it, nobody else isolates it, and it can't be pinned.
  EXPECT_EQ(pool_->Isolate(span, *shape), MigrateOutcome::kBusy);
  EXPECT_EQ(pool_->Pin(offset, Length(1000)).error().code, Errc::kBusy);
  EXPECT_FALSE(pool_->ShapeOf(span).has_value());
  EXPECT_NE(Put(Length(1000), 6).value() / kSpanBytes, span);
  pool_->Putback(span);
  Verify();
}

TEST_P(PoolContract, ObjectWithoutHandleIsBusy) {
  const uint64_t offset = pool_->Allocate(Length(500)).value();
  const uint32_t span = static_cast<uint32_t>(offset / kSpanBytes);
  EXPECT_EQ(pool_->Isolate(span, {~uint64_t{0}, pool_->ShapeOf(span)->size_class}), MigrateOutcome::kBusy);
  pool_->Free(offset, Length(500));
}

TEST_P(PoolContract, WhatIsNotItsSpanIsGone) {
  for (const uint32_t span : {0u, 1u, arena_->span_count() - 1}) {
    EXPECT_FALSE(pool_->ShapeOf(span).has_value());
    EXPECT_EQ(pool_->Isolate(span, {}), MigrateOutcome::kGone);
  }
}

TEST_P(PoolContract, ReservationsThatAreNotUsedLeaveNothing) {
  const SpanShape shape{0xff00ff, GetParam().shortest == kPageBytes ? SizeClassGeometry::kCount - 1 : 3};
  const uint32_t span = pool_->Reserve(shape).value();
  EXPECT_EQ(arena_->frames_in_use(), 16u);
  EXPECT_EQ(pool_->Isolate(span, shape), MigrateOutcome::kBusy);
  pool_->Putback(span);
  EXPECT_EQ(arena_->frames_in_use(), 0u);
  arena_->set_limit_frames(5);
  EXPECT_EQ(pool_->Reserve(shape).error().code, Errc::kNoMemory);
  EXPECT_EQ(arena_->frames_in_use(), 0u);
  EXPECT_EQ(budget_.used_frames(), 0u);
  arena_->set_limit_frames(kFrames);
}

TEST_P(PoolContract, ThreadsDoNotDisturbEachOther) {
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(t);
      std::vector<std::pair<uint64_t, uint32_t>> mine;
      for (int i = 0; i < 5000; ++i) {
        if (mine.size() < 20 || random() % 2 == 0) {
          const uint32_t length = Length(static_cast<uint32_t>(1 + random() % kPageBytes));
          const Result<uint64_t> offset = pool_->Allocate(length);
          ASSERT_TRUE(offset.ok());
          std::memset(arena_->At(*offset), static_cast<int>(t + 1), length);
          mine.emplace_back(*offset, length);
        } else {
          std::swap(mine[random() % mine.size()], mine.back());
          const auto [offset, length] = mine.back();
          const std::byte* at = arena_->At(offset);
          ASSERT_TRUE(std::all_of(at, at + length, [&](std::byte b) { return b == std::byte(t + 1); }));
          pool_->Free(offset, length);
          mine.pop_back();
        }
      }
      for (const auto& [offset, length] : mine) pool_->Free(offset, length);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Spans come and go all the time, and movers look at them.
TEST_P(PoolContract, ThreadsAtAFullBudgetWithMovers) {
  arena_->set_limit_frames(48);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(t);
      std::vector<std::pair<uint64_t, uint32_t>> mine;
      for (int i = 0; i < 20000; ++i) {
        const uint32_t length = Length(static_cast<uint32_t>(1 + random() % kPageBytes));
        const Result<uint64_t> offset = pool_->Allocate(length);
        if (offset.ok()) mine.emplace_back(*offset, length);
        if (!offset.ok() || mine.size() > 20) {
          for (const auto& [at, bytes] : mine) pool_->Free(at, bytes);
          mine.clear();
        }
        if (i % 64 == 0) pool_->Trim();
      }
      for (const auto& [at, bytes] : mine) pool_->Free(at, bytes);
    });
  }
  std::vector<std::thread> movers;
  for (int m = 0; m < 2; ++m) {
    movers.emplace_back([&] {
      while (!stop.load()) {
        for (uint32_t span = 0; span < arena_->span_limit(); ++span) {
          const std::optional<SpanShape> shape = pool_->ShapeOf(span);
          if (!shape.has_value()) continue;
          const Result<uint32_t> target = pool_->Reserve(*shape);
          if (pool_->Isolate(span, *shape) == MigrateOutcome::kMoved) pool_->Putback(span);
          if (target.ok()) pool_->Putback(*target);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop.store(true);
  for (std::thread& mover : movers) mover.join();
  arena_->set_limit_frames(kFrames);
}

TEST_P(PoolContract, WhatWouldBeLostIsNotRefused) {
  arena_->set_limit_frames(1);
  budget_.set_limit_frames(1);
  std::vector<uint64_t> offsets;
  for (int i = 0; i < 10; ++i) offsets.push_back(pool_->Allocate(Length(4000), Limits::kOverLimit).value());
  EXPECT_FALSE(pool_->Allocate(Length(4000)).ok());
  EXPECT_GE(arena_->frames_in_use(), 10u);
  for (const uint64_t offset : offsets) pool_->Free(offset, Length(4000));
  budget_.set_limit_frames(kFrames);
}

using PoolContractDeathTest = PoolContract;

TEST_P(PoolContractDeathTest, FreeingTwiceDies) {
  const uint64_t keep = Put(Length(100), 1).value();
  const uint64_t offset = pool_->Allocate(Length(100)).value();
  pool_->Free(offset, Length(100));
  EXPECT_DEATH(pool_->Free(offset, Length(100)), "freed twice");
  EXPECT_DEATH(pool_->Unpin(keep, Length(100)), "unpinned more often");
  EXPECT_DEATH(pool_->Putback(static_cast<uint32_t>(keep / kSpanBytes)), "not isolated");
}

INSTANTIATE_TEST_SUITE_P(Pools, PoolContract, ::testing::ValuesIn(kMakers),
                         [](const auto& of) { return of.param.name; });
INSTANTIATE_TEST_SUITE_P(Pools, PoolContractDeathTest, ::testing::ValuesIn(kMakers),
                         [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace zp

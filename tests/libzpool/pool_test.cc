#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "libzpool/pool/handle_table.h"
#include "libzpool/pool/location.h"
#include "libzpool/pool/zsmalloc_pool.h"

namespace zp {
namespace {

TEST(Location, EveryFieldSurvivesTheWord) {
  std::mt19937_64 random(5);
  for (int i = 0; i < 1000; ++i) {
    Location in;
    in.node = NodeId(static_cast<uint8_t>(random() % kMaxNodes));
    in.offset = (random() & ((uint64_t{1} << 36) - 1)) * 16;
    in.codec = static_cast<CodecId>(random() % kCodecIdLimit);
    in.length = static_cast<uint32_t>(1 + random() % kPageBytes);
    in.state = static_cast<EntryState>(random() % 3);
    in.generation = static_cast<uint8_t>(random() % 16);
    const Location out = Location::Decode(in.Encode());
    EXPECT_EQ(out.node, in.node);
    EXPECT_EQ(out.offset, in.offset);
    EXPECT_EQ(out.codec, in.codec);
    EXPECT_EQ(out.length, in.length);
    EXPECT_EQ(out.state, in.state);
    EXPECT_EQ(out.generation, in.generation);
    const Owner owner{static_cast<uint32_t>(random() % Owner::kClientLimit),
                      PageIndex(random() % kPageIndexLimit)};
    EXPECT_EQ(Owner::Decode(owner.Encode()), owner);
  }
}

struct Fixture {
  explicit Fixture(uint64_t frames) : budget(frames) {
    arena = FrameArena::Create({NodeId(0), Bytes(frames * kPageBytes)}, budget).value();
    handles = HandleTable::Create(100000).value();
    pool = ZsmallocPool::Create(*arena, *handles).value();
  }
  FrameBudget budget;
  std::unique_ptr<FrameArena> arena;
  std::unique_ptr<HandleTable> handles;
  std::unique_ptr<ZsmallocPool> pool;
};

// The contract of every size class: objects do not overlap, keep their bytes, and all memory comes back.
TEST(ZsmallocPool, EverySizeClassKeepsItsContract) {
  Fixture f(4096);
  for (uint32_t c = 0; c < ZsmallocPool::kClassCount; ++c) {
    const uint32_t length = SizeClassGeometry::ObjectBytes(c) - c % 16;
    const uint32_t count = std::min<uint32_t>(SizeClassGeometry::ObjectsPerZspage(c) + 3, 400);
    std::vector<uint64_t> offsets;
    for (uint32_t i = 0; i < count; ++i) {
      const uint64_t offset = f.pool->Allocate(length).value();
      ASSERT_EQ(offset % 16, 0u);
      std::memset(f.arena->At(offset), static_cast<int>(i % 251), length);
      offsets.push_back(offset);
    }
    std::vector<uint64_t> sorted = offsets;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 1; i < sorted.size(); ++i) ASSERT_GE(sorted[i], sorted[i - 1] + length);
    for (uint32_t i = 0; i < count; ++i) {
      const std::byte* object = f.arena->At(offsets[i]);
      ASSERT_TRUE(std::all_of(object, object + length,
                              [i](std::byte b) { return b == static_cast<std::byte>(i % 251); }));
    }
    const SizeClassStats stats = f.pool->class_stats(c);
    EXPECT_EQ(stats.objects, count);
    EXPECT_EQ(stats.stored_bytes, uint64_t{count} * length);
    // Lazily populated: no more frames than the objects touch, and the one at each zspage's end.
    EXPECT_LE(
        stats.frames,
        (uint64_t{count} * SizeClassGeometry::ObjectBytes(c) + kPageBytes - 1) / kPageBytes + stats.zspages);
    f.pool->DebugVerify();
    for (const uint64_t offset : offsets) f.pool->Free(offset, length);
    f.pool->DebugVerify();
  }
  f.pool->Trim();
  EXPECT_EQ(f.arena->frames_in_use(), 0u);
  EXPECT_EQ(f.budget.used_frames(), 0u);
}

TEST(ZsmallocPool, HolesAreFilledBeforeNewFramesAreTaken) {
  Fixture f(1024);
  std::vector<uint64_t> offsets;
  for (int i = 0; i < 600; ++i) offsets.push_back(f.pool->Allocate(640).value());
  const uint64_t frames = f.arena->frames_in_use();
  std::mt19937_64 random(1);
  std::shuffle(offsets.begin(), offsets.end(), random);
  for (int i = 0; i < 100; ++i) f.pool->Free(offsets[static_cast<size_t>(i)], 640);
  for (int i = 0; i < 100; ++i) offsets[static_cast<size_t>(i)] = f.pool->Allocate(640).value();
  EXPECT_LE(f.arena->frames_in_use(), frames);
  for (const uint64_t offset : offsets) f.pool->Free(offset, 640);
}

TEST(ZsmallocPool, FullBudgetIsAnOutcomeThatLeavesNothing) {
  Fixture f(8);
  std::vector<uint64_t> offsets;
  for (;;) {
    const Result<uint64_t> offset = f.pool->Allocate(1000);
    if (!offset.ok()) {
      EXPECT_EQ(offset.error().code, Errc::kNoMemory);
      break;
    }
    offsets.push_back(*offset);
  }
  EXPECT_EQ(f.budget.used_frames(), 8u);
  f.pool->DebugVerify();
  // Another class fails without leaving an empty zspage behind.
  EXPECT_FALSE(f.pool->Allocate(3000).ok());
  EXPECT_EQ(f.pool->class_stats(SizeClassGeometry::ClassOf(3000)).zspages, 0u);
  f.pool->DebugVerify();
  for (const uint64_t offset : offsets) f.pool->Free(offset, 1000);
  // Idle frames of one class make room for another.
  const uint64_t offset = f.pool->Allocate(3000).value();
  f.pool->Free(offset, 3000);
}

// Marking many slots at once is the same as marking each.
TEST(ZsmallocPool, StandbyTakesWholeFramesAlone) {
  Fixture f(64);
  const auto standby = ZsmallocPool::Create(*f.arena, *f.handles, FrameOwner::kStandby).value();
  EXPECT_EQ(standby->Allocate(kPageBytes - 16).error().code, Errc::kInvalid);
  EXPECT_EQ(f.arena->frames_in_use(), 0u);
  EXPECT_LT(standby->stats().metadata_bytes, f.pool->stats().metadata_bytes / 10);
  const uint64_t offset = standby->Allocate(kPageBytes).value();
  EXPECT_EQ(standby->stats().objects, 1u);
  standby->DebugVerify();
  standby->Free(offset, kPageBytes);
  standby->Trim();
  EXPECT_EQ(f.arena->frames_in_use(), 0u);
}

TEST(Zspage, SetsOfSlotsAgreeWithSingleOnes) {
  std::mt19937_64 random(9);
  for (const uint32_t size_class : {0u, 1u, 2u, 6u, 99u, 127u, 200u, 255u}) {
    const auto make = [&] {
      Zspage* const zspage = Zspage::New(5, size_class);
      zspage->MarkTaken(~uint64_t{0});
      zspage->MarkPresent(~uint64_t{0});
      return zspage;
    };
    Zspage* const one = make();
    Zspage* const many = make();
    std::set<uint32_t> used;
    for (int round = 0; round < 20; ++round) {
      SlotSet set;
      std::vector<uint32_t> chosen;
      const bool occupy = round % 2 == 0;
      for (uint32_t slot = 0; slot < one->objects(); ++slot) {
        if (used.contains(slot) == occupy || random() % 3 == 0) continue;
        chosen.push_back(slot);
        many->Add(slot, &set);
      }
      for (const uint32_t slot : chosen) {
        if (occupy) {
          used.insert(slot);
          one->Occupy(slot);
          one->SetHandle(slot, kMovedAway);
          many->PrepareMovedAway(slot);
        } else {
          used.erase(slot);
          one->Vacate(slot);
        }
      }
      occupy ? many->OccupyAll(set) : many->VacateAll(set);
      ASSERT_EQ(one->live(), many->live());
      ASSERT_EQ(one->idle(), many->idle());
      ASSERT_EQ(one->used_slots(), many->used_slots());
      ASSERT_EQ(one->FindFree(), many->FindFree());
      ASSERT_EQ(one->FindFreePresent(), many->FindFreePresent());
      EXPECT_FALSE(one->HasUnbound() || many->HasUnbound());
      // The lowest, as every frame is there.
      uint32_t lowest = 0;
      while (used.contains(lowest)) ++lowest;
      EXPECT_EQ(one->FindFree(), lowest < one->objects() ? static_cast<int>(lowest) : -1);
      ASSERT_EQ(one->occupied(), many->occupied());
      for (uint32_t frame = 0; frame < kFramesPerSpan; ++frame) {
        bool touched = false;
        for (const uint32_t slot : used) touched = touched || (one->FramesOf(slot) >> frame & 1) != 0;
        ASSERT_EQ(one->HasObject(frame), touched);
        ASSERT_EQ((one->occupied() >> frame & 1) != 0, touched);
      }
    }
    SlotSet rest;
    for (const uint32_t slot : used) many->Add(slot, &rest);
    for (const uint32_t slot : used) one->Vacate(slot);
    many->VacateAll(rest);
    for (Zspage* zspage : {one, many}) {
      EXPECT_EQ(zspage->live(), 0u);
      EXPECT_EQ(zspage->idle(), ~uint64_t{0});
      Zspage::Destroy(zspage);
    }
  }
}

TEST(Zspage, KnowsWhetherAnObjectHasNoHandle) {
  Zspage* const zspage = Zspage::New(5, 3);
  zspage->MarkTaken(~uint64_t{0});
  EXPECT_FALSE(zspage->HasUnbound());
  zspage->Occupy(5);
  zspage->Occupy(9);
  EXPECT_TRUE(zspage->HasUnbound());
  zspage->SetHandle(5, Handle(1));
  EXPECT_TRUE(zspage->HasUnbound());
  zspage->SetHandle(5, Handle(2));
  EXPECT_TRUE(zspage->HasUnbound());
  zspage->Vacate(9);
  EXPECT_FALSE(zspage->HasUnbound());
  zspage->Occupy(9);
  EXPECT_TRUE(zspage->HasUnbound());
  zspage->SetHandle(9, Handle(3));
  EXPECT_FALSE(zspage->HasUnbound());
  zspage->Vacate(5);
  zspage->Vacate(9);
  EXPECT_FALSE(zspage->HasUnbound());
  Zspage::Destroy(zspage);
}

// 16384 objects in a span: all of them move, but for those that are freed meanwhile.
TEST(ZsmallocPool, SpansOfTheSmallestObjectsMove) {
  Fixture f(4096);
  FrameBudget budget(4096);
  auto far_arena = FrameArena::Create({NodeId(1), MiB(16)}, budget).value();
  auto far = ZsmallocPool::Create(*far_arena, *f.handles).value();
  std::vector<Handle> handles;
  const auto put = [&] {
    Location location;
    location.length = 13;
    location.offset = f.pool->Allocate(13).value();
    handles.push_back(f.handles->Insert(location, {}, 0).value());
    std::memcpy(f.arena->At(location.offset), &handles.back(), sizeof(Handle));
    f.pool->Bind(location.offset, handles.back());
    return static_cast<uint32_t>(location.offset / kSpanBytes);
  };
  const auto drop = [&](Handle handle) {
    ASSERT_TRUE(f.handles->Unref(handle));
    const Location location = f.handles->Retire(handle);
    (location.node == NodeId(0) ? *f.pool : *far).Free(location.offset, location.length);
    f.handles->Recycle(handle);
  };
  const uint32_t span = put();
  while (handles.size() < SizeClassGeometry::kMostObjects) ASSERT_EQ(put(), span);
  const SpanShape shape = f.pool->ShapeOf(span).value();
  const uint32_t target = far->Reserve(shape).value();
  ASSERT_EQ(f.pool->Isolate(span, shape), MigrateOutcome::kMoved);
  for (int i = 0; i < 100; ++i) {
    drop(handles.back());
    handles.pop_back();
  }
  EXPECT_EQ(f.pool->Migrate(span, *far, target, nullptr).objects, handles.size());
  for (int i = 0; i < 100; ++i) {
    drop(handles.back());
    handles.pop_back();
  }
  f.pool->Putback(span);
  far->Putback(target);
  f.pool->DebugVerify();
  far->DebugVerify();
  EXPECT_EQ(f.pool->stats().frames, 0u);
  EXPECT_EQ(far->stats().objects, handles.size());
  for (const Handle handle : handles) {
    const Location location = Location::Decode(f.handles->Lookup(handle));
    ASSERT_EQ(location.node, NodeId(1));
    ASSERT_EQ(std::memcmp(far_arena->At(location.offset), &handle, sizeof(handle)), 0);
    drop(handle);
  }
  far->Trim();
  far->DebugVerify();
}

TEST(ZsmallocPoolDeathTest, FreeingTwiceDies) {
  Fixture f(8);
  const uint64_t keep = f.pool->Allocate(100).value();
  const uint64_t offset = f.pool->Allocate(100).value();
  f.pool->Free(offset, 100);
  EXPECT_DEATH(f.pool->Free(offset, 100), "freed twice");
  EXPECT_DEATH(f.pool->Free(offset + 16, 100), "object");
  f.pool->Free(keep, 100);
}

Location At(uint64_t offset) {
  Location location;
  location.offset = offset;
  location.length = 100;
  return location;
}

TEST(HandleTable, StaleHandlesAreSeenByStateAndGeneration) {
  auto table = HandleTable::Create(10000).value();
  EXPECT_EQ(table->Lookup(Handle()), 0u);
  EXPECT_EQ(table->Lookup(Handle(77)), 0u);
  const Handle handle = table->Insert(At(16), {1, PageIndex(2)}, 0xdeadbeef).value();
  const uint64_t word = table->Lookup(handle);
  EXPECT_EQ(Location::Decode(word).offset, 16u);
  EXPECT_EQ(table->checksum(handle), 0xdeadbeefu);
  EXPECT_EQ(table->owner(handle), (Owner{1, PageIndex(2)}));
  EXPECT_TRUE(table->Unref(handle));
  EXPECT_EQ(table->Retire(handle).offset, 16u);
  EXPECT_EQ(Location::Decode(table->Lookup(handle)).state, EntryState::kFree);
  table->Recycle(handle);
  // The same index, place and length again: but not the same word.
  const Handle again = table->Insert(At(16), {1, PageIndex(2)}, 1).value();
  EXPECT_EQ(again, handle);
  EXPECT_NE(table->Lookup(again), word);
}

TEST(HandleTable, FullIsAnOutcome) {
  auto table = HandleTable::Create(5000).value();
  std::vector<Handle> handles;
  for (int i = 0; i < 5000; ++i) handles.push_back(table->Insert(At(16), {}, 0).value());
  EXPECT_EQ(table->Insert(At(16), {}, 0).error().code, Errc::kNoMemory);
  EXPECT_TRUE(table->Unref(handles[7]));
  table->Retire(handles[7]);
  table->Recycle(handles[7]);
  EXPECT_EQ(table->Insert(At(16), {}, 0).value(), handles[7]);
}

TEST(HandleTable, ComesBackWithWhatIsLive) {
  auto table = HandleTable::Create(5000).value();
  std::vector<Handle> handles;
  for (int i = 0; i < 4500; ++i) handles.push_back(table->Insert(At(16), {7, PageIndex(3)}, 99).value());
  for (size_t i = 0; i < 4500; i += 3) {
    EXPECT_TRUE(table->Unref(handles[i]));
    table->Retire(handles[i]);
    if (i % 2 == 0) table->Recycle(handles[i]);  // the others are on their way to the free list
  }
  auto again = HandleTable::Recover(UniqueFd(dup(table->fd()))).value();
  EXPECT_EQ(again->high_water(), table->high_water());
  for (size_t i = 0; i < 4500; ++i) {
    EXPECT_EQ(again->Lookup(handles[i]), table->Lookup(handles[i])) << "generations, too";
    EXPECT_EQ(again->refs(handles[i]), 0u);
    EXPECT_EQ(again->Adopt(handles[i]), i % 3 != 0);
  }
  EXPECT_FALSE(again->Adopt(Handle()));
  EXPECT_FALSE(again->Adopt(Handle(4700)));
  EXPECT_TRUE(again->Adopt(handles[1]));
  EXPECT_EQ(again->refs(handles[1]), 2u);
  EXPECT_EQ(again->checksum(handles[1]), 99u);
  EXPECT_EQ(again->owner(handles[1]), (Owner{7, PageIndex(3)}));
  EXPECT_FALSE(again->Unref(handles[1]));
  again->Drop(handles[2]);
  again->StartAgain();
  // Those that are free are used before fresh ones are, lowest first, each once.
  EXPECT_EQ(again->Insert(At(16), {}, 0).value(), handles[0]);
  EXPECT_EQ(again->Insert(At(16), {}, 0).value(), handles[2]);
  EXPECT_EQ(again->Insert(At(16), {}, 0).value(), handles[3]);
  std::set<uint32_t> used;
  for (;;) {
    const Result<Handle> handle = again->Insert(At(16), {}, 0);
    if (!handle.ok()) break;
    EXPECT_TRUE(used.insert(handle->value()).second);
  }
  EXPECT_EQ(used.size(), again->max_entries() - 3000 + 1 - 3);
}

TEST(HandleTable, TooManyHoldersArePinnedWhenItComesBack) {
  auto table = HandleTable::Create(10).value();
  const Handle handle = table->Insert(At(16), {}, 0).value();
  auto again = HandleTable::Recover(UniqueFd(dup(table->fd()))).value();
  for (int i = 0; i < 70000; ++i) ASSERT_TRUE(again->Adopt(handle));
  for (int i = 0; i < 70000; ++i) ASSERT_FALSE(again->Unref(handle));
}

TEST(HandleTable, NeverHoldsMoreThanSlotsCanName) {
  EXPECT_EQ(HandleTable::Create(5000).value()->max_entries(), 5000u);
  // Address space only, until it is used.
  for (const uint64_t wanted : {uint64_t{Handle::kMax}, uint64_t{Handle::kMax} + 1, ~uint64_t{0}}) {
    EXPECT_EQ(HandleTable::Create(wanted).value()->max_entries(), Handle::kMax);
  }
  EXPECT_EQ(Handle::kMax, (1u << 29) - 1);
}

TEST(HandleTable, TooManyReferencesPinInsteadOfOverflowing) {
  auto table = HandleTable::Create(10).value();
  const Handle handle = table->Insert(At(16), {}, 0).value();
  for (int i = 1; i < 65534; ++i) ASSERT_TRUE(table->Ref(handle).ok());
  EXPECT_FALSE(table->Ref(handle).ok());
  table->RefOrPin(handle);
  for (int i = 0; i < 70000; ++i) ASSERT_FALSE(table->Unref(handle));
  EXPECT_TRUE(Location::Decode(table->Lookup(handle)).is_readable());
}

}  // namespace
}  // namespace zp

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "libzpool/index/index_arena.h"
#include "libzpool/index/offset_index.h"
#include "libzpool/index/slot.h"
#include "tests/libzpool/pages.h"

namespace zp {
namespace {

using Exchange = OffsetIndex::Exchange;
using testing::MakePage;
using testing::PageBuffer;

TEST(Slot, EveryKindSurvivesTheWord) {
  EXPECT_TRUE(Slot().is_empty());
  for (const uint32_t n : {1u, (1u << 29) - 2, (1u << 29) - 1}) {
    const Slot handle = Slot::FromHandle(Handle(n));
    EXPECT_TRUE(handle.is_handle() && handle.is_stored() && handle.is_valid());
    EXPECT_FALSE(handle.is_lost() || handle.is_filling());
    EXPECT_EQ(handle.handle(), Handle(n));
  }
  for (const uint8_t kind : {0, 1, 16, 31}) {
    for (const uint32_t payload : {0u, 511u, (1u << 24) - 1}) {
      const Slot busy = Slot::Busy(kind, payload);
      EXPECT_TRUE(busy.is_busy() && !busy.is_stored() && busy.is_valid());
      EXPECT_EQ(busy.busy_kind(), kind);
      EXPECT_EQ(busy.busy_payload(), payload);
      EXPECT_EQ(Slot::FromRaw(busy.raw()), busy);
    }
  }
}

TEST(Slot, LostIsStoredAndHasNoObject) {
  const Slot lost = Slot::Lost();
  EXPECT_TRUE(lost.is_lost() && lost.is_stored() && lost.is_valid());
  EXPECT_FALSE(lost.is_handle() || lost.is_same_filled() || lost.is_filling() || lost.is_empty());
  EXPECT_TRUE(Slot::FromHandle(Handle()) == lost);
}

constexpr uint64_t kWidest = (uint64_t{1} << 28) - 1;  // of a signed number of 29 bits
constexpr uint64_t kFourTimes = 0x0001000100010001;

void ExpectInline(uint64_t pattern) {
  const std::optional<Slot> slot = Slot::SameFilled(pattern);
  ASSERT_TRUE(slot.has_value()) << std::hex << pattern;
  EXPECT_TRUE(slot->is_same_filled() && slot->is_stored() && slot->is_valid()) << std::hex << pattern;
  EXPECT_EQ(slot->pattern(), pattern);
}

TEST(Slot, NarrowPatternsOfBothSignsAreInline) {
  for (const uint64_t pattern : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 27, kWidest - 1, kWidest}) {
    ExpectInline(pattern);
    ExpectInline(~pattern);
  }
  for (const uint64_t pattern : {kWidest + 1, uint64_t{1} << 29, uint64_t{1} << 31, uint64_t{1} << 32,
                                 uint64_t{1} << 60, uint64_t{1} << 63, (uint64_t{1} << 63) - 1}) {
    EXPECT_FALSE(Slot::SameFilled(pattern).has_value()) << std::hex << pattern;
    EXPECT_FALSE(Slot::SameFilled(~pattern).has_value()) << std::hex << pattern;
  }
}

TEST(Slot, RepeatedUnitsAreInline) {
  for (uint64_t unit = 0; unit < 1 << 16; ++unit) ExpectInline(unit * kFourTimes);
  ExpectInline(0x0101010101010101);
  ExpectInline(0xa5a5a5a5a5a5a5a5);
  for (const uint64_t pattern : {uint64_t{0x0000000100000001}, uint64_t{0x0001000100010000},
                                 uint64_t{0x1234123412341235}, uint64_t{0x1235123412341234}}) {
    EXPECT_FALSE(Slot::SameFilled(pattern).has_value()) << std::hex << pattern;
  }
}

// The filling form of each stored slot is one word of its own, says what it was, and is nothing else.
TEST(Slot, FillingAndBack) {
  std::set<uint32_t> words;
  for (const Slot slot :
       {Slot::Lost(), Slot::FromHandle(Handle(1)), Slot::FromHandle(Handle(Handle::kMax)),
        *Slot::SameFilled(0), *Slot::SameFilled(kWidest), *Slot::SameFilled(~kWidest), *Slot::SameFilled(1),
        *Slot::SameFilled(kFourTimes), *Slot::SameFilled(0xfffe * kFourTimes)}) {
    const Slot filling = slot.Filling();
    EXPECT_TRUE(filling.is_filling() && filling.is_valid()) << std::hex << slot.raw();
    EXPECT_FALSE(filling.is_stored() || filling.is_handle() || filling.is_same_filled() ||
                 filling.is_lost() || filling.is_busy() || filling.is_empty())
        << std::hex << slot.raw();
    EXPECT_EQ(filling.Settled(), slot);
    EXPECT_EQ(slot.Settled(), slot);
    EXPECT_TRUE(words.insert(slot.raw()).second);
    EXPECT_TRUE(words.insert(filling.raw()).second);
  }
  EXPECT_EQ(Slot::Busy(1, 2).Settled(), Slot::Busy(1, 2));
}

TEST(Slot, WhatNoConstructorMakesIsNotValid) {
  for (uint32_t number = 0; number < 1 << 10; ++number) {
    EXPECT_FALSE(Slot::FromRaw(number << 3 | 7).is_valid());
    EXPECT_EQ(Slot::FromRaw(number << 3).is_valid(), number == 0);
  }
  // The second form of patterns that have a first one, and units wider than 16 bits.
  EXPECT_TRUE(Slot::FromRaw(1 << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(0 << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(0xffff << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(0x10001 << 3 | 5).is_valid());
  // The same of the filling form.
  EXPECT_TRUE(Slot::FromRaw(1u << 31 | 1 << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(1u << 31 | 0 << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(1u << 31 | 0x10001 << 3 | 5).is_valid());
  EXPECT_FALSE(Slot::FromRaw(1u << 30 | 1 << 3 | 5).is_valid());
}

TEST(SlotDeathTest, NumbersBeyondTheWordDie) {
  EXPECT_DEATH(Slot::FromHandle(Handle(1u << 29)), "a slot cannot hold");
  EXPECT_DEATH(Slot::Busy(1, 1u << 24), "a slot cannot hold");
  EXPECT_DEATH(Slot::Busy(1, ~0u), "a slot cannot hold");
  EXPECT_DEATH(Slot::Busy(32, 0), "a slot cannot hold");
  EXPECT_DEATH((void)Slot::Busy(1, 1).Filling(), "on its way home");
  EXPECT_DEATH((void)Slot::Empty().Filling(), "on its way home");
  EXPECT_DEATH((void)Slot::Lost().Filling().Filling(), "on its way home");
}

TEST(IndexArena, MoreNodesThanCanBeNumberedAreRefused) {
  EXPECT_EQ(IndexArena::Create(uint32_t{1} << 29).error().code, Errc::kInvalid);
  EXPECT_EQ(IndexArena::Create(~uint32_t{0}).error().code, Errc::kInvalid);
}

struct Fixture {
  std::unique_ptr<PageStore> store =
      PageStore::Create({Topology::SingleNode(), MiB(8), CodecId::kLz4}).value();
  std::unique_ptr<IndexArena> arena = IndexArena::Create(1 << 16).value();
  std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();

  Slot Make(uint64_t page) {
    PageBuffer buffer;
    MakePage(page, 0, 10, &buffer);
    return store->Store(buffer, {1, PageIndex(page)}, NodeId(0), *scratch).value();
  }
  OffsetIndex NewIndex() { return OffsetIndex::Create(*arena, *store).value(); }
};

TEST(OffsetIndex, WholeAddressSpaceIsUsable) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  for (const uint64_t page :
       {uint64_t{0}, uint64_t{63}, uint64_t{64}, uint64_t{1} << 35, kPageIndexLimit - 1}) {
    EXPECT_TRUE(index.Get(PageIndex(page)).is_empty());
    EXPECT_EQ(index.CompareExchange(PageIndex(page), Slot::Empty(), Slot::Busy(1, 1)), Exchange::kDone);
    EXPECT_EQ(index.CompareExchange(PageIndex(page), Slot::Empty(), Slot::Busy(1, 2)), Exchange::kChanged);
    EXPECT_EQ(index.CompareExchange(PageIndex(page), Slot::Busy(1, 1), f.Make(page)), Exchange::kDone);
    EXPECT_TRUE(index.Get(PageIndex(page)).is_handle());
  }
  EXPECT_TRUE(index.Get(PageIndex(kPageIndexLimit)).is_empty());
  EXPECT_EQ(index.stored(), 5u);
  EXPECT_EQ(index.counts().busy, 0u);
  std::vector<Slot> dropped;
  index.DropRange(PageIndex(0), PageIndex(kPageIndexLimit), &dropped);
  EXPECT_EQ(dropped.size(), 5u);
  EXPECT_EQ(index.stored(), 0u);
  EXPECT_EQ(f.arena->nodes_in_use(), 1u) << "only the root stays";
  for (const Slot slot : dropped) f.store->Release(slot);
  EXPECT_EQ(f.store->stats().stored_pages, 0u);
}

TEST(OffsetIndex, ChangedNeedsNoMemory) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  EXPECT_EQ(index.CompareExchange(PageIndex(5), Slot::Busy(1, 1), Slot::Busy(1, 2)), Exchange::kChanged);
  EXPECT_EQ(f.arena->nodes_in_use(), 1u);
}

TEST(OffsetIndex, EnsuredPageCannotFailLater) {
  Fixture f;
  f.arena = IndexArena::Create(9).value();
  OffsetIndex index = f.NewIndex();
  ASSERT_TRUE(index.Ensure(PageIndex(100)).ok());
  EXPECT_FALSE(index.Ensure(PageIndex(uint64_t{1} << 40)).ok());
  EXPECT_EQ(index.CompareExchange(PageIndex(uint64_t{1} << 40), Slot::Empty(), Slot::Busy(1, 1)),
            Exchange::kNoMemory);
  EXPECT_EQ(index.CompareExchange(PageIndex(100), Slot::Empty(), Slot::Busy(1, 1)), Exchange::kDone);
}

TEST(OffsetIndex, CloneSharesUntilWritten) {
  Fixture f;
  OffsetIndex parent = f.NewIndex();
  const Slot slot = f.Make(10);
  ASSERT_EQ(parent.CompareExchange(PageIndex(10), Slot::Empty(), slot), Exchange::kDone);
  const uint64_t nodes = f.arena->nodes_in_use();
  OffsetIndex child = parent.Clone().value();
  EXPECT_EQ(f.arena->nodes_in_use(), nodes);
  EXPECT_EQ(f.store->refs(slot), 1u);
  EXPECT_EQ(child.Get(PageIndex(10)), slot);
  EXPECT_EQ(child.stored(), 1u);

  ASSERT_EQ(child.CompareExchange(PageIndex(10), slot, Slot::Empty()), Exchange::kDone);
  EXPECT_EQ(f.store->refs(slot), 2u) << "the child's own reference came out with the slot";
  f.store->Release(slot);
  EXPECT_EQ(parent.Get(PageIndex(10)), slot);
  EXPECT_TRUE(child.Get(PageIndex(10)).is_empty());
  PageBuffer out;
  EXPECT_EQ(f.store->Load(slot, out, *f.scratch), LoadOutcome::kLoaded);
}

TEST(OffsetIndex, DroppingASharedRangeGivesTheCallerNothing) {
  Fixture f;
  OffsetIndex parent = f.NewIndex();
  for (uint64_t p = 0; p < 256; ++p) {
    ASSERT_EQ(parent.CompareExchange(PageIndex(p), Slot::Empty(), f.Make(p)), Exchange::kDone);
  }
  OffsetIndex child = parent.Clone().value();
  std::vector<Slot> dropped;
  child.DropRange(PageIndex(64), PageIndex(192), &dropped);
  EXPECT_TRUE(dropped.empty());
  EXPECT_EQ(child.stored(), 128u);
  child.DropRange(PageIndex(0), PageIndex(32), &dropped);  // half a leaf: copied first
  EXPECT_EQ(dropped.size(), 32u);
  for (const Slot slot : dropped) f.store->Release(slot);
  EXPECT_EQ(parent.stored(), 256u);
  uint64_t seen = 0;
  parent.ForEach(PageIndex(0), PageIndex(256),
                 [&](PageIndex, Slot slot) { seen += slot.is_handle() ? 1 : 0; });
  EXPECT_EQ(seen, 256u);
}

TEST(OffsetIndex, EdgesOfEveryKindComeBackFromATree) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  const std::vector<Slot> slots = {Slot::Busy(Slot::kMaxBusyKind, Slot::kMaxBusyPayload),
                                   Slot::Busy(0, 0),
                                   Slot::Lost(),
                                   Slot::Lost().Filling(),
                                   *Slot::SameFilled(0),
                                   *Slot::SameFilled(kWidest),
                                   Slot::SameFilled(~kWidest)->Filling(),
                                   *Slot::SameFilled(0xa5a5 * kFourTimes)};
  for (uint64_t p = 0; p < slots.size(); ++p) {
    ASSERT_EQ(index.CompareExchange(PageIndex(p * 63), Slot::Empty(), slots[p]), Exchange::kDone);
  }
  for (uint64_t p = 0; p < slots.size(); ++p) EXPECT_EQ(index.Get(PageIndex(p * 63)), slots[p]);
  EXPECT_EQ(index.counts().busy, 2u);
  EXPECT_EQ(index.counts().lost, 2u);
  EXPECT_EQ(index.counts().same_filled, 4u);
  EXPECT_EQ(index.stored(), 6u) << "a page on its way home is stored still";
}

TEST(OffsetIndex, ForEachEndsWhenItIsTold) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  for (uint64_t p = 0; p < 200; ++p) {
    ASSERT_EQ(index.CompareExchange(PageIndex(p * 3), Slot::Empty(), Slot::Lost()), Exchange::kDone);
  }
  for (const uint64_t wanted : {uint64_t{1}, uint64_t{22}, uint64_t{23}, uint64_t{200}, uint64_t{201}}) {
    uint64_t seen = 0;
    index.ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot) {
      EXPECT_EQ(page.value(), seen * 3);
      return ++seen < wanted;
    });
    EXPECT_EQ(seen, std::min<uint64_t>(wanted, 200));
  }
}

TEST(OffsetIndex, RekeyMovesSlotsAndOwners) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  for (uint64_t p = 100; p < 300; p += 3) {
    ASSERT_EQ(index.CompareExchange(PageIndex(p), Slot::Empty(), f.Make(p)), Exchange::kDone);
  }
  const uint64_t to = (uint64_t{1} << 33) + 17;
  ASSERT_TRUE(index.Rekey(PageIndex(100), PageIndex(to), PageCount(200)).ok());
  uint64_t at = to;
  index.ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
    EXPECT_EQ(page.value(), at);
    EXPECT_EQ(f.store->GetOwner(slot), (Owner{1, page}));
    at += 3;
  });
  EXPECT_EQ(index.stored(), 67u);
}

TEST(OffsetIndex, MoveAssignmentReleasesWhatWasThere) {
  Fixture f;
  OffsetIndex a = f.NewIndex();
  ASSERT_EQ(a.CompareExchange(PageIndex(1), Slot::Empty(), f.Make(1)), Exchange::kDone);
  a = f.NewIndex();
  EXPECT_EQ(f.store->stats().stored_pages, 0u);
  EXPECT_EQ(f.arena->nodes_in_use(), 1u);
}

// Bounds far above what it takes (about a microsecond), far below what a walk over the pages would.
TEST(OffsetIndex, AbsentGigabytesCostNothing) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  ASSERT_EQ(index.CompareExchange(PageIndex(1), Slot::Empty(), f.Make(1)), Exchange::kDone);
  std::vector<Slot> dropped;
  const auto start = std::chrono::steady_clock::now();
  index.DropRange(PageIndex(2), PageIndex(kPageIndexLimit), &dropped);
  uint64_t seen = 0;
  index.ForEach(PageIndex(0), PageIndex(uint64_t{1} << 30), [&](PageIndex, Slot) { ++seen; });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
  EXPECT_TRUE(dropped.empty());
  EXPECT_EQ(seen, 1u);
}

}  // namespace
}  // namespace zp

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
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
  EXPECT_EQ(Slot::FromHandle(Handle(0xfffffffe)).handle(), Handle(0xfffffffe));
  EXPECT_EQ(Slot::Standby(0).standby(), 0u);
  EXPECT_FALSE(Slot::Standby(0).is_empty());
  const Slot busy = Slot::Busy(255, 0xffffffff);
  EXPECT_TRUE(busy.is_busy());
  EXPECT_EQ(busy.busy_kind(), 255);
  EXPECT_EQ(busy.busy_payload(), 0xffffffffu);
  for (const uint64_t pattern :
       {uint64_t{0}, uint64_t{1}, ~uint64_t{0}, (uint64_t{1} << 60) - 1, ~uint64_t{0} << 60}) {
    ASSERT_TRUE(Slot::SameFilled(pattern).has_value()) << pattern;
    EXPECT_EQ(Slot::SameFilled(pattern)->pattern(), pattern);
    EXPECT_TRUE(Slot::SameFilled(pattern)->is_valid());
  }
  EXPECT_FALSE(Slot::SameFilled(uint64_t{1} << 60).has_value());
  EXPECT_FALSE(Slot::SameFilled(uint64_t{1} << 63).has_value());
  EXPECT_FALSE(Slot::FromRaw(7).is_valid());
  EXPECT_FALSE(Slot::FromRaw(8).is_valid());
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

TEST(OffsetIndex, ForEachEndsWhenItIsTold) {
  Fixture f;
  OffsetIndex index = f.NewIndex();
  for (uint64_t p = 0; p < 200; ++p) {
    ASSERT_EQ(index.CompareExchange(PageIndex(p * 3), Slot::Empty(), Slot::Standby(1)), Exchange::kDone);
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

// A store and its indexes come back from their files.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "libzpool/base/pause_point.h"
#include "libzpool/compact/compactor.h"
#include "tests/libzpool/mortal.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

using testing::Content;
using testing::ExpectAllComesBack;
using testing::ExpectNothingDropped;
using testing::ExpectPages;
using testing::kDomain;
using testing::kFar;
using testing::kKinds;
using testing::kNear;
using testing::kRaw;
using testing::kSmall;
using testing::Model;
using testing::PageBuffer;
using testing::Process;
using testing::Remains;
using testing::Revive;
using testing::Revived;
using testing::TwoNodes;
using Exchange = OffsetIndex::Exchange;

TEST(Recovery, EveryWayToKeepAPageComesBack) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 700; ++n) {
    const uint64_t page = n * 37;
    p.Put(0, page, n);
    model[page] = n;
  }
  const PoolStats before = p.store->stats();
  Revived r = Revive(p.options, p.Die());
  ExpectPages(r, 0, model);
  ExpectNothingDropped(r.stats);
  EXPECT_TRUE(r.unsettled.empty());
  const PoolStats after = r.store->stats();
  EXPECT_EQ(after.stored_pages, before.stored_pages);
  EXPECT_EQ(after.stored_bytes, before.stored_bytes);
  EXPECT_EQ(after.raw_pages, before.raw_pages);
  EXPECT_EQ(after.capacity_bytes, before.capacity_bytes);
  EXPECT_LE(after.pool_bytes, before.pool_bytes);
  EXPECT_EQ(r.stats.objects, before.stored_pages);
  EXPECT_EQ(r.stats.slots, model.size());
  EXPECT_EQ(r.stats.orphans, 0u);
  EXPECT_EQ(r.stats.nodes, p.arena->nodes_in_use());
  EXPECT_EQ(r.arena->nodes_in_use(), p.arena->nodes_in_use());
  EXPECT_EQ(r.index(0).counts().handles, p.indexes[0].counts().handles);
  EXPECT_EQ(r.index(0).counts().same_filled, p.indexes[0].counts().same_filled);
  r.index(0).ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
    if (slot.is_handle()) {
      EXPECT_EQ(r.store->GetOwner(slot), (Owner{1, page}));
    }
  });
  ExpectAllComesBack(r);
}

TEST(Recovery, EmptyFilesComeBackEmpty) {
  Process p;
  Revived r = Revive(p.options, p.Die());
  ExpectPages(r, 0, {});
  EXPECT_EQ(r.stats.objects, 0u);
  ExpectAllComesBack(r);
}

// What came back works as before, and comes back once more.
TEST(Recovery, GoesOnAndComesBackAgain) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 300; ++n) {
    p.Put(0, n, n);
    model[n] = n;
  }
  for (uint64_t page = 0; page < 300; page += 3) {  // holes in the pools and in the table
    const Slot slot = p.indexes[0].Get(PageIndex(page));
    ASSERT_EQ(p.indexes[0].CompareExchange(PageIndex(page), slot, Slot::Empty()), Exchange::kDone);
    p.store->Release(slot);
    model.erase(page);
  }
  const uint64_t most_handles = 300 / kKinds * 5 + 5;  // as many as there were objects at a time
  Remains remains = p.Die();
  uint64_t n = 1000;
  auto scratch = std::make_unique<Scratch>();
  for (int life = 0; life < 4; ++life) {
    const Remains again = remains.Share();
    Revived r = Revive(p.options, std::move(remains));
    ExpectPages(r, 0, model);
    for (int i = 0; i < 200; ++i, ++n) {
      const uint64_t page = n * 7919 % 500;
      PageBuffer buffer;
      Content(n, &buffer);
      const Slot slot = r.store->Store(buffer, {1, PageIndex(page), kDomain}, NodeId(0), *scratch).value();
      if (life == 0 && i < 20 && slot.is_handle()) {
        EXPECT_LE(slot.handle().value(), most_handles) << "entries that were free are used again";
      }
      const Slot before = r.index(0).Get(PageIndex(page));
      ASSERT_EQ(r.index(0).CompareExchange(PageIndex(page), before, slot), Exchange::kDone);
      r.store->Release(before);
      model[page] = n;
    }
    ExpectPages(r, 0, model);
    r.store->DebugVerify();
    // It dies in its turn.
    remains = again.Share();
    for (size_t i = 0; i < testing::kMostRoots; ++i) (*remains.roots)[i] = (*r.roots)[i].load();
    r.arena->Abandon();
    r.store->Abandon();
  }
}

// Five-level page tables: addresses of 57 bits, so page numbers of 45, in the index, in the owner's word, and
// after a recovery.
TEST(Recovery, AddressesOf57BitsAreAsGoodAsOthers) {
  static_assert(kPageIndexLimit * kPageBytes == uint64_t{1} << 57);
  Process p(TwoNodes());
  Model model;
  for (const uint64_t address :
       {uint64_t{0x1000}, (uint64_t{1} << 47) - kPageBytes, uint64_t{1} << 47, uint64_t{1} << 48,
        (uint64_t{1} << 56) - kPageBytes, uint64_t{1} << 56, (uint64_t{1} << 57) - kPageBytes}) {
    const uint64_t n = PageIndex::FromAddress(address).value();
    ASSERT_EQ(n * kPageBytes, address);
    const uint64_t content = model.size() * kKinds;  // an object, so that it has an owner
    p.Put(0, n, content);
    model[n] = content;
    EXPECT_EQ(p.store->GetOwner(p.indexes[0].Get(PageIndex(n))).page, PageIndex(n));
  }
  Revived r = Revive(p.options, p.Die());
  ExpectNothingDropped(r.stats);
  ExpectPages(r, 0, model);
  for (const auto& [n, content] : model)
    EXPECT_EQ(r.store->GetOwner(r.index(0).Get(PageIndex(n))).page, PageIndex(n)) << content;
  ExpectAllComesBack(r);
}

TEST(Recovery, PagesThatWereOnTheirWayAreTold) {
  Process p;
  Model model;
  std::vector<std::pair<uint64_t, Slot>> expected;
  const auto change = [&](uint64_t page, Slot from, Slot to) {
    ASSERT_EQ(p.indexes[0].CompareExchange(PageIndex(page), from, to), Exchange::kDone);
  };
  for (uint64_t n = 0; n < 2 * kKinds; ++n) {
    const Slot slot = p.Put(0, n * 100, n);
    model[n * 100] = n;
    if (n % 2 == 0) continue;
    change(n * 100, slot, slot.Filling());
    expected.emplace_back(n * 100, slot.Filling());
  }
  for (const uint32_t payload : {0u, 511u, Slot::kMaxBusyPayload}) {
    const uint64_t page = 5000 + payload;
    change(page, Slot::Empty(), Slot::Busy(2, payload));
    expected.emplace_back(page, Slot::Busy(2, payload));
  }
  Revived r = Revive(p.options, p.Die());
  ExpectNothingDropped(r.stats);
  ASSERT_EQ(r.unsettled.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(r.unsettled[i].page, PageIndex(expected[i].first));
    EXPECT_EQ(r.unsettled[i].slot, expected[i].second);
    EXPECT_EQ(r.index(0).Get(r.unsettled[i].page), expected[i].second);
  }
  EXPECT_EQ(r.stats.filling, kKinds);
  EXPECT_EQ(r.stats.busy, 3u);
  EXPECT_EQ(r.index(0).stored(), 2 * kKinds);
  EXPECT_EQ(r.index(0).counts().busy, 3u);
  // As their owner settles them.
  for (const auto& [root, page, slot] : r.unsettled) {
    const Slot settled = slot.is_busy() ? Slot::Empty() : slot.Settled();
    EXPECT_EQ(r.index(root).CompareExchange(page, slot, settled), Exchange::kDone);
  }
  ExpectPages(r, 0, model);
  ExpectAllComesBack(r);
}

TEST(Recovery, ClonesShareWhatTheyShared) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 400; ++n) {
    p.Put(0, n * 11, n);
    model[n * 11] = n;
  }
  p.Clone(0);
  p.Clone(0);
  Model child = model;
  for (uint64_t n = 1000; n < 1040; ++n) {
    p.Put(1, (n - 1000) * 11, n);
    child[(n - 1000) * 11] = n;
  }
  Revived r = Revive(p.options, p.Die());
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(r.arena->nodes_in_use(), p.arena->nodes_in_use());
  ExpectPages(r, 0, model);
  ExpectPages(r, 1, child);
  ExpectPages(r, 2, model);
  for (const auto& [page, n] : model) {
    const Slot slot = p.indexes[0].Get(PageIndex(page));
    EXPECT_EQ(r.index(0).Get(PageIndex(page)), slot);
    if (slot.is_handle()) {
      EXPECT_EQ(r.store->refs(slot), p.store->refs(slot)) << "page " << page;
    }
  }
  // One's changes are not the others'.
  for (uint64_t page = 0; page < 2000; page += 11) {
    const Slot slot = r.index(2).Get(PageIndex(page));
    ASSERT_EQ(r.index(2).CompareExchange(PageIndex(page), slot, Slot::Empty()), Exchange::kDone);
    r.store->Release(slot);
  }
  ExpectPages(r, 0, model);
  ExpectPages(r, 1, child);
  r.indexes[0].reset();
  EXPECT_EQ((*r.roots)[0].load(), 0u);
  ExpectPages(r, 1, child);
  ExpectAllComesBack(r);
}

// A root is named by two words when a process dies between a clone's record and its settling, say.
TEST(Recovery, OneTreeUnderTwoRoots) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 100; ++n) {
    p.Put(0, n, n);
    model[n] = n;
  }
  (*p.roots)[3] = (*p.roots)[0].load();
  Revived r = Revive(p.options, p.Die());
  ExpectPages(r, 0, model);
  ExpectPages(r, 3, model);
  r.indexes[0].reset();
  ExpectPages(r, 3, model);
  ExpectAllComesBack(r);
}

TEST(Recovery, ObjectsThatNobodyHoldsAreFreed) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 200; ++n) {
    p.Put(0, n, n);
    model[n] = n;
  }
  uint64_t orphans = 0;
  for (uint64_t n = 200; n < 300; ++n) orphans += p.Keep(n, n).is_handle() ? 1 : 0;
  Revived r = Revive(p.options, p.Die());
  EXPECT_EQ(r.stats.orphans, orphans);
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(r.store->stats().stored_pages, p.store->stats().stored_pages - orphans);
  ExpectPages(r, 0, model);
  ExpectAllComesBack(r);
  p.arena->Abandon();
  p.store->Abandon();
}

TEST(Recovery, ALowerCapacityIsALimitForWhatComes) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 400; ++n) {
    p.Put(0, n, n * kKinds + kRaw);
    model[n] = n * kKinds + kRaw;
  }
  PageStore::Options less = p.options;
  less.capacity = MiB(1);
  Revived r = Revive(less, p.Die());
  ExpectPages(r, 0, model);
  EXPECT_GT(r.store->pool_bytes(), MiB(1).value());
  PageBuffer page;
  Content(kRaw, &page);
  EXPECT_EQ(r.store->Store(page, {1, PageIndex(1), 0}, NodeId(0), *p.scratch).error().code, Errc::kNoMemory);
  std::vector<Slot> dropped;
  r.index(0).DropRange(PageIndex(0), PageIndex(200), &dropped);
  for (const Slot slot : dropped) r.store->Release(slot);
  r.store->Trim();
  const Slot slot = r.store->Store(page, {1, PageIndex(1), 0}, NodeId(0), *p.scratch).value();
  r.store->Release(slot);
  ExpectAllComesBack(r);
}

TEST(Recovery, MovedAndPackedObjectsAreWhereTheyWent) {
  Process p(TwoNodes());
  Model model;
  for (uint64_t n = 0; n < 3000; ++n) {
    p.Put(0, n, n, n % 3 == 0 ? kFar : kNear);
    model[n] = n;
  }
  for (uint64_t page = 0; page < 3000; ++page) {
    if (page % 8 < 3) continue;
    const Slot slot = p.indexes[0].Get(PageIndex(page));
    ASSERT_EQ(p.indexes[0].CompareExchange(PageIndex(page), slot, Slot::Empty()), Exchange::kDone);
    p.store->Release(slot);
    model.erase(page);
  }
  Compactor compactor(*p.store, {});
  EXPECT_GT(compactor.CompactStep(kNear, MiB(8)), 0u);
  EXPECT_GT(compactor.EmptyBlocksStep(kNear, MiB(8)) + compactor.CompactStep(kFar, MiB(8)), 0u);
  for (uint64_t page = 0; page < 1000; page += 8) {
    const Slot slot = p.indexes[0].Get(PageIndex(page));
    if (slot.is_handle()) {
      ASSERT_TRUE(p.store->MoveObject(slot, kFar).ok());
    }
  }
  p.store->DebugVerify();
  Revived r = Revive(p.options, p.Die());
  ExpectNothingDropped(r.stats);
  ExpectPages(r, 0, model);
  for (const NodeId node : {kNear, kFar}) {
    EXPECT_EQ(r.store->node_stats(node).objects, p.store->node_stats(node).objects);
    EXPECT_EQ(r.store->node_stats(node).stored_bytes, p.store->node_stats(node).stored_bytes);
  }
  // Movers work on what came back.
  Compactor next(*r.store, {});
  r.store->SetNodeAccepts(kFar, false);
  EXPECT_EQ(next.DrainStep(kFar, MiB(64), MigrateMode::kSync).left_bytes, 0u);
  while (next.CompactStep(kNear, MiB(8)) != 0) continue;
  ExpectPages(r, 0, model);
  ExpectAllComesBack(r);
}

TEST(Recovery, NodesComeAndGo) {
  Process p(TwoNodes());
  Model model;
  for (uint64_t n = 0; n < 500; ++n) {
    p.Put(0, n, n, n % 2 == 0 ? kFar : kNear);
    model[n] = n;
  }
  // kFar is gone from the machine, and a node is new.
  const NodeId fresh(9);
  PageStore::Options options = p.options;
  options.topology = Topology::Made({fresh, kNear}, {{10, 20}, {20, 10}}).value();
  Revived r = Revive(options, p.Die());
  ExpectNothingDropped(r.stats);
  ExpectPages(r, 0, model);
  EXPECT_FALSE(r.store->NodeAccepts(kFar));
  EXPECT_TRUE(r.store->NodeAccepts(kNear));
  PageBuffer page;
  Content(kSmall, &page);
  const Slot slot = r.store->Store(page, {1, PageIndex(1), 0}, fresh, *p.scratch).value();
  EXPECT_EQ(r.store->NodeOfObject(slot), fresh);
  r.store->Release(slot);
  const Slot other = r.store->Store(page, {1, PageIndex(1), 0}, kFar, *p.scratch).value();
  EXPECT_NE(r.store->NodeOfObject(other), kFar);
  r.store->Release(other);
  // It can be emptied.
  Compactor compactor(*r.store, {});
  EXPECT_EQ(compactor.DrainStep(kFar, MiB(64), MigrateMode::kSync).left_bytes, 0u);
  ExpectPages(r, 0, model);
  std::vector<std::string> names;
  r.store->ForEachMemfd([&](const char* name, int) { names.emplace_back(name); });
  EXPECT_EQ(names, (std::vector<std::string>{"handles", "frames-9", "frames-0", "frames-5"}));
  ExpectAllComesBack(r);
}

// ---- interrupted operations: the handler copies the files at the n-th pause point of that name

struct Moment {
  static inline const char* name = nullptr;
  static inline int countdown = 0;
  static inline const Process* process = nullptr;
  static inline std::unique_ptr<Remains> remains;

  static void Handler(const char* at) {
    if (std::string(at) != name || --countdown != 0) return;
    remains = std::make_unique<Remains>(process->Die());
  }
  // What is left if `operation` is interrupted at the n-th passing of the point. Null: it is not passed so
  // often.
  template <typename Fn>
  static std::unique_ptr<Remains> At(const Process& p, const char* point, int n, Fn&& operation) {
    process = &p;
    name = point;
    countdown = n;
    SetPauseHandler(&Handler);
    operation();
    SetPauseHandler(nullptr);
    return std::move(remains);
  }
};

TEST(Recovery, RekeyIsFinishedByTheNextProcess) {
  constexpr uint64_t kFrom = 90, kTo = 5000, kCount = 100;
  int interrupted = 0;
  for (int n = 1;; n += 5) {
    Process p;
    Model moved;
    for (uint64_t i = 0; i < 200; i += 2) {
      p.Put(0, i, i);
      moved[i >= kFrom && i < kFrom + kCount ? i - kFrom + kTo : i] = i;
    }
    const Slot filling = p.Put(0, 101, 1);
    moved[101 - kFrom + kTo] = 1;
    ASSERT_EQ(p.indexes[0].CompareExchange(PageIndex(101), filling, filling.Filling()), Exchange::kDone);
    const auto rekey = [&](OffsetIndex& index) {
      return index.Rekey(PageIndex(kFrom), PageIndex(kTo), PageCount(kCount));
    };
    const auto remains = Moment::At(p, "rekey.published", n, [&] { ASSERT_TRUE(rekey(p.indexes[0]).ok()); });
    if (remains == nullptr) break;
    ++interrupted;
    Revived r = Revive(p.options, std::move(*remains));
    ExpectNothingDropped(r.stats);
    ASSERT_TRUE(rekey(r.index(0)).ok());
    const PageIndex arrived(101 - kFrom + kTo);
    ASSERT_EQ(r.index(0).CompareExchange(arrived, filling.Filling(), filling), Exchange::kDone);
    ExpectPages(r, 0, moved);
    r.index(0).ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
      if (!slot.is_handle()) return;
      EXPECT_EQ(r.store->refs(slot), 1u);
      if (page != arrived) {
        EXPECT_EQ(r.store->GetOwner(slot).page, page);
      }
    });
    ExpectAllComesBack(r);
  }
  EXPECT_EQ(interrupted, 11);
}

TEST(Recovery, DropRangeIsFinishedByTheNextProcess) {
  int interrupted = 0;
  for (const char* point : {"index.unlinked", "index.slot_dropped", "index.node_made", "index.node_linked"}) {
    for (int n = 1;; n += 3 * testing::Stride()) {
      Process p;
      Model parent;
      for (uint64_t i = 0; i < 1000; ++i) {
        p.Put(0, i * 7, i);
        parent[i * 7] = i;
      }
      p.Clone(0);
      Model child = parent;
      child.erase(child.lower_bound(100), child.lower_bound(6000));
      std::vector<Slot> dropped;
      const auto remains =
          Moment::At(p, point, n, [&] { p.indexes[1].DropRange(PageIndex(100), PageIndex(6000), &dropped); });
      for (const Slot slot : dropped) p.store->Release(slot);
      if (remains == nullptr) break;
      ++interrupted;
      Revived r = Revive(p.options, std::move(*remains));
      ExpectNothingDropped(r.stats);
      ExpectPages(r, 0, parent);
      dropped.clear();
      r.index(1).DropRange(PageIndex(100), PageIndex(6000), &dropped);
      for (const Slot slot : dropped) r.store->Release(slot);
      ExpectPages(r, 0, parent);
      ExpectPages(r, 1, child);
      ExpectAllComesBack(r);
    }
  }
  EXPECT_GT(interrupted, 30 / testing::Stride());
}

// Whoever gives a node up lets others use it: so nothing may name it any more. At each point on the way
// another tree, which shares everything, goes, and a third one takes nodes.
TEST(Recovery, WhatIsGivenUpIsNamedNoMore) {
  static Process* process = nullptr;
  static Model* third = nullptr;
  static const char* name = nullptr;
  static int countdown = 0;
  static std::unique_ptr<Remains> remains;
  const PauseHandler handler = [](const char* at) {
    if (std::string(at) != name || --countdown != 0) return;
    SetPauseHandler(nullptr);
    { const OffsetIndex other(std::move(process->indexes[1])); }
    for (uint64_t i = 0; i < 40; ++i) {
      const uint64_t page = i << 20;
      process->Put(2, page, 3000 + i);
      (*third)[page] = 3000 + i;
    }
    remains = std::make_unique<Remains>(process->Die());
  };
  int interrupted = 0;
  for (const bool drops : {true, false}) {
    for (const char* point :
         {"index.node_made", "index.node_linked", "index.unlinked", "index.slot_dropped"}) {
      for (int n = 1;; n += testing::Stride()) {
        SCOPED_TRACE(std::string(point) + " number " + std::to_string(n));
        Process p;
        Model model;
        for (uint64_t i = 0; i < 300; ++i) {
          p.Put(0, i * 50, i);
          model[i * 50] = i;
        }
        p.Clone(0);
        p.indexes.push_back(OffsetIndex::Create(*p.arena, *p.store, &(*p.roots)[2]).value());
        Model of_third;
        process = &p;
        third = &of_third;
        name = point;
        countdown = n;
        remains = nullptr;
        const auto drop = [](PageStore& store, OffsetIndex& index) {
          std::vector<Slot> dropped;
          index.DropRange(PageIndex(90), PageIndex(9000), &dropped);
          for (const Slot slot : dropped) store.Release(slot);
        };
        SetPauseHandler(handler);
        if (drops) {
          drop(*p.store, p.indexes[0]);
          model.erase(model.lower_bound(90), model.lower_bound(9000));
        } else {
          p.Put(0, 5000, 9999);
          model[5000] = 9999;
        }
        SetPauseHandler(nullptr);
        if (remains == nullptr) break;
        ++interrupted;
        Revived r = Revive(p.options, std::move(*remains));
        ExpectNothingDropped(r.stats);
        ExpectPages(r, 2, of_third);
        if (drops) {
          drop(*r.store, r.index(0));
        } else {
          const Slot before = r.index(0).Get(PageIndex(5000));
          ASSERT_FALSE(before.is_empty());
          PageBuffer page;
          Content(9999, &page);
          const Slot slot = r.store->Store(page, {1, PageIndex(1), kDomain}, kNear, *p.scratch).value();
          ASSERT_EQ(r.index(0).CompareExchange(PageIndex(5000), before, slot), Exchange::kDone);
          r.store->Release(before);
        }
        ExpectPages(r, 0, model);
        ExpectAllComesBack(r);
      }
    }
  }
  EXPECT_GT(interrupted, 50 / testing::Stride());
}

TEST(Recovery, ACloneIsThereOrNot) {
  Process p;
  Model model;
  for (uint64_t n = 0; n < 100; ++n) {
    p.Put(0, n, n);
    model[n] = n;
  }
  Revived before = Revive(p.options, std::move(*Moment::At(p, "index.clone", 1, [&] { p.Clone(0); })));
  EXPECT_EQ(before.indexes[1], nullptr);
  ExpectPages(before, 0, model);
  ExpectAllComesBack(before);
  Revived gone =
      Revive(p.options, std::move(*Moment::At(p, "index.unlinked", 1, [&] { p.indexes.pop_back(); })));
  EXPECT_EQ(gone.indexes[1], nullptr);
  ExpectPages(gone, 0, model);
  ExpectAllComesBack(gone);
}

}  // namespace
}  // namespace zp

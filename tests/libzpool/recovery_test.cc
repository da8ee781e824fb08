// A store and its indexes come back from their files, whole or damaged.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "libzpool/base/pause_point.h"
#include "libzpool/compact/compactor.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/remains.h"

namespace zp {

namespace {

using testing::CopyRemains;
using testing::MakePage;
using testing::PageBuffer;
using testing::Remains;
using testing::Revive;
using testing::Revived;
using testing::Roots;
using testing::TryRevive;
using Exchange = OffsetIndex::Exchange;
using Model = std::map<uint64_t, uint64_t>;  // page -> content

constexpr NodeId kNear(0), kFar(5);
constexpr uint32_t kDomain = 77;

// Contents by number: every way to keep a page has its turn.
enum Kind : uint64_t { kSmall, kLarge, kZbudKind, kRaw, kStandbyKind, kNarrow, kRepeated, kKinds };

void Content(uint64_t n, PageBuffer* page) {
  switch (n % kKinds) {
    case kNarrow:
      return FillPage(n % 2 == 0 ? n : ~n, *page);
    case kRepeated:
      return FillPage((n & 0x7fff) * 0x0001000100010001 | 0x8000800080008000, *page);
    case kLarge:
      return MakePage(n, 0, 250, page);
    case kRaw:
      return MakePage(n, 0, 512, page);
    default:
      return MakePage(n, 0, 5 + static_cast<unsigned>(n % 60), page);
  }
}

Topology TwoNodes() { return Topology::Made({kNear, kFar}, {{10, 20}, {20, 10}}).value(); }

// A process that is going to die.
struct Process {
  explicit Process(Topology topology = Topology::SingleNode(), Bytes capacity = MiB(64))
      : options{std::move(topology), capacity, CodecId::kLz4},
        store(PageStore::Create(options).value()),
        arena(IndexArena::Create(1 << 14).value()) {
    indexes.push_back(OffsetIndex::Create(*arena, *store, &(*roots)[0]).value());
  }

  Slot Keep(uint64_t n, uint64_t page, NodeId node = kNear) {
    PageBuffer buffer;
    Content(n, &buffer);
    const Owner owner{1, PageIndex(page), kDomain};
    if (n % kKinds == kStandbyKind) return store->StoreRaw(buffer, owner, node).value();
    store->set_pool(n % kKinds == kZbudKind ? PoolKind::kZbud : PoolKind::kZsmalloc);
    return store->Store(buffer, owner, node, *scratch).value();
  }
  Slot Put(size_t index, uint64_t page, uint64_t n, NodeId node = kNear) {
    const Slot slot = Keep(n, page, node);
    const Slot before = indexes[index].Get(PageIndex(page));
    EXPECT_EQ(indexes[index].CompareExchange(PageIndex(page), before, slot), Exchange::kDone);
    store->Release(before);
    return slot;
  }
  void Clone(size_t index) { indexes.push_back(indexes[index].Clone(&(*roots)[indexes.size()]).value()); }
  Remains Die() const { return CopyRemains(*store, *arena, *roots); }

  PageStore::Options options;
  std::unique_ptr<Roots> roots = std::make_unique<Roots>();
  std::unique_ptr<PageStore> store;
  std::unique_ptr<IndexArena> arena;
  std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  std::vector<OffsetIndex> indexes;
};

// Just the pages of the model are there, with their content.
void ExpectPages(PageStore& store, const OffsetIndex& index, const Model& model) {
  auto scratch = std::make_unique<Scratch>();
  PageBuffer expected;
  PageBuffer actual;
  auto next = model.begin();
  index.ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
    ASSERT_NE(next, model.end());
    ASSERT_EQ(page.value(), next->first);
    Content(next->second, &expected);
    ASSERT_EQ(store.Load(slot, actual, *scratch, kDomain), LoadOutcome::kLoaded) << "page " << page.value();
    ASSERT_EQ(expected, actual) << "page " << page.value();
    ++next;
  });
  EXPECT_EQ(next, model.end());
  EXPECT_EQ(index.stored(), model.size());
}

void ExpectPages(Revived& revived, size_t root, const Model& model) {
  ExpectPages(*revived.store, revived.index(root), model);
}

// What a store that works can do: everything is dropped, and all memory comes back.
void ExpectAllComesBack(Revived& revived) {
  revived.store->DebugVerify();
  revived.indexes.clear();
  EXPECT_EQ(revived.arena->nodes_in_use(), 0u);
  revived.store->Trim();
  revived.store->DebugVerify();
  EXPECT_EQ(revived.store->stats().stored_pages, 0u);
  EXPECT_EQ(revived.store->pool_bytes(), 0u);
}

void ExpectNothingDropped(const RecoveryStats& stats) {
  EXPECT_EQ(stats.bad_location, 0u);
  EXPECT_EQ(stats.no_memory, 0u);
  EXPECT_EQ(stats.overlaps, 0u);
  EXPECT_EQ(stats.lost_slots, 0u);
  EXPECT_EQ(stats.cut_branches, 0u);
}

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
    for (int n = 1;; n += 3) {
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
  EXPECT_GT(interrupted, 30);
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
      for (int n = 1;; ++n) {
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
  EXPECT_GT(interrupted, 50);
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

// ---- damaged files

template <typename T>
T Get(const UniqueFd& fd, uint64_t at) {
  T value{};
  EXPECT_EQ(pread(fd.get(), &value, sizeof(value), static_cast<off_t>(at)),
            static_cast<ssize_t>(sizeof(value)));
  return value;
}
template <typename T>
void Put(const UniqueFd& fd, uint64_t at, T value) {
  EXPECT_EQ(pwrite(fd.get(), &value, sizeof(value), static_cast<off_t>(at)),
            static_cast<ssize_t>(sizeof(value)));
}
void PunchHole(const UniqueFd& fd, uint64_t at, uint64_t bytes) {
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                      static_cast<off_t>(bytes)),
            0);
}
uint64_t BytesHeld(int fd) {
  struct stat st {};
  EXPECT_EQ(fstat(fd, &st), 0);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

// Where things are in the files, see DESIGN.md, "The bits".
uint64_t EntryAt(Slot slot) { return kPageBytes + slot.Settled().handle().value() * sizeof(HandleEntry); }
uint64_t TagAt(uint64_t span) { return kPageBytes + span * sizeof(uint16_t); }
uint64_t NodeAt(const Remains& remains, uint32_t node) {
  const uint64_t nodes = Get<uint64_t>(remains.index, offsetof(FileHeader, params));
  return kPageBytes + nodes * sizeof(uint64_t) + node * kIndexNodeBytes;
}
Location LocationOf(const Remains& remains, Slot slot) {
  return Location::Decode(Get<uint64_t>(remains.files.handles, EntryAt(slot)));
}
void Relocate(Remains& remains, Slot slot, const Location& location) {
  Put(remains.files.handles, EntryAt(slot), location.Encode());
}
// Where the word for `page` lies, in the node of that level on the way to it.
uint64_t WordAt(const Remains& remains, size_t root, uint64_t page, unsigned level) {
  uint32_t node = (*remains.roots)[root];
  for (unsigned at = 7;; --at) {
    const uint64_t word = NodeAt(remains, node) + (page >> (6 * at) & 63) * sizeof(uint32_t);
    if (at == level) return word;
    node = Get<uint32_t>(remains.index, word) >> 3;
  }
}

// A store with 20 pages of each kind under root 0, page n of content n.
struct Damaged {
  Damaged() {
    for (uint64_t n = 0; n < 20 * kKinds; ++n) {
      p.Put(0, n, n);
      model[n] = n;
    }
  }
  Slot SlotOf(uint64_t page) const { return p.indexes[0].Get(PageIndex(page)); }

  // What comes back, all of which must be right, but for pages that are lost; how many.
  uint64_t ExpectRestIsRight(Revived& r) {
    std::vector<uint64_t> lost;
    r.index(0).ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
      if (slot.is_lost()) lost.push_back(page.value());
    });
    PageBuffer out;
    for (const uint64_t page : lost) {
      model.erase(page);
      EXPECT_EQ(r.store->Load(r.index(0).Get(PageIndex(page)), out, *p.scratch, kDomain),
                LoadOutcome::kCorrupt);
      EXPECT_EQ(r.index(0).CompareExchange(PageIndex(page), Slot::Lost(), Slot::Empty()), Exchange::kDone);
    }
    EXPECT_EQ(r.index(0).counts().lost, 0u);
    ExpectPages(r, 0, model);
    return lost.size();
  }

  Process p;
  Model model;
};

TEST(RecoveryOfDamage, EntriesThatMakeNoSenseAreDropped) {
  using Reason = uint64_t RecoveryStats::*;
  struct Case {
    const char* what;
    uint64_t kind;
    std::function<void(Location*)> damage;
    Reason reason;
  };
  const Case cases[] = {
      {"unknown node", kSmall, [](Location* l) { l->node = NodeId(63); }, &RecoveryStats::bad_location},
      {"outside of the arena", kSmall, [](Location* l) { l->offset = uint64_t{1} << 39; },
       &RecoveryStats::bad_location},
      {"in the header", kSmall, [](Location* l) { l->offset = 64; }, &RecoveryStats::bad_location},
      {"a span of nobody", kLarge, [](Location* l) { l->offset += 100 * kSpanBytes; },
       &RecoveryStats::bad_location},
      {"between two slots", kLarge, [](Location* l) { l->offset += 16; }, &RecoveryStats::bad_location},
      {"another class", kLarge, [](Location* l) { l->length += 16; }, &RecoveryStats::bad_location},
      {"no frame there", kLarge, [](Location* l) { l->offset += (l->length + 15) / 16 * 16 * 60; },
       &RecoveryStats::no_memory},
      {"unknown codec", kLarge, [](Location* l) { l->codec = static_cast<CodecId>(9); },
       &RecoveryStats::bad_location},
      {"raw and short", kLarge, [](Location* l) { l->codec = CodecId::kRaw; }, &RecoveryStats::bad_location},
      {"encoded and long", kRaw, [](Location* l) { l->codec = CodecId::kLz4; }, &RecoveryStats::bad_location},
      {"encoded and standby", kStandbyKind, [](Location* l) { l->codec = CodecId::kLz4; },
       &RecoveryStats::bad_location},
      {"between two buddies", kZbudKind, [](Location* l) { l->offset += 64; }, &RecoveryStats::bad_location},
      {"no frame of zbud there", kZbudKind,
       [](Location* l) { l->offset = (l->offset / kSpanBytes + 1) * kSpanBytes - kPageBytes; },
       &RecoveryStats::no_memory},
      {"free", kSmall, [](Location* l) { l->state = EntryState::kFree; }, nullptr},
      {"reserved", kSmall, [](Location* l) { l->state = EntryState::kReserved; }, nullptr},
      {"no state", kSmall, [](Location* l) { l->state = static_cast<EntryState>(3); }, nullptr},
  };
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    Remains remains = d.p.Die();
    const Slot slot = d.SlotOf(damage.kind);
    Location location = LocationOf(remains, slot);
    damage.damage(&location);
    Relocate(remains, slot, location);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.dropped(), damage.reason == nullptr ? 0u : 1u);
    if (damage.reason != nullptr) {
      EXPECT_EQ(r.stats.*damage.reason, 1u);
    }
    EXPECT_EQ(r.stats.lost_slots, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

TEST(RecoveryOfDamage, TwoObjectsAtOnePlaceAreOne) {
  for (const uint64_t kind : {kSmall, kZbudKind, kStandbyKind}) {
    Damaged d;
    Remains remains = d.p.Die();
    const Location of_first = LocationOf(remains, d.SlotOf(kind));
    Location location = of_first;
    location.generation = LocationOf(remains, d.SlotOf(kind + kKinds)).generation;
    Relocate(remains, d.SlotOf(kind + kKinds), location);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.overlaps, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

// A first buddy that reaches into the last one.
TEST(RecoveryOfDamage, BuddiesThatOverlapAreOne) {
  Damaged d;
  Remains remains = d.p.Die();
  std::map<uint64_t, std::vector<Slot>> by_frame;
  for (uint64_t page = kZbudKind; page < 20 * kKinds; page += kKinds)
    by_frame[LocationOf(remains, d.SlotOf(page)).offset / kPageBytes].push_back(d.SlotOf(page));
  bool damaged = false;
  for (const auto& [frame, slots] : by_frame) {
    if (slots.size() != 2 || damaged) continue;
    Location first = LocationOf(remains, slots[0]);
    Location last = LocationOf(remains, slots[1]);
    const bool swapped = first.offset % kPageBytes != 0;
    if (swapped) std::swap(first, last);
    if (last.length <= kPageBytes - kMaxEncodedBytes) continue;
    first.length = kMaxEncodedBytes;
    Relocate(remains, slots[swapped ? 1 : 0], first);
    damaged = true;
  }
  ASSERT_TRUE(damaged);
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.overlaps, 1u);
  EXPECT_EQ(r.stats.lost_slots, 1u);
  r.store->DebugVerify();
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, FramesThatAreGoneTakeTheirObjectsAlong) {
  Damaged d;
  Remains remains = d.p.Die();
  const uint64_t frame = LocationOf(remains, d.SlotOf(kSmall)).offset / kPageBytes;
  uint64_t gone = 0;
  for (uint64_t page = 0; page < 20 * kKinds; ++page) {
    if (!d.SlotOf(page).is_handle()) continue;
    const Location location = LocationOf(remains, d.SlotOf(page));
    if (location.offset / kPageBytes <= frame &&
        (location.offset + location.length - 1) / kPageBytes >= frame)
      ++gone;
  }
  ASSERT_GT(gone, 0u);
  PunchHole(remains.files.frames[0], frame * kPageBytes, kPageBytes);
  Revived r = Revive(d.p.options, std::move(remains));
  // Where nothing else is in the span it is given back whole.
  EXPECT_EQ(r.stats.dropped(), gone);
  EXPECT_EQ(d.ExpectRestIsRight(r), gone);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, TagsThatLieTakeTheirSpanAlong) {
  for (const uint16_t tag : {0x0000, 0x0401, 0xff01, 0x0003, 0x0402, 0x0004, 0x00ff}) {
    SCOPED_TRACE(tag);
    Damaged d;
    Remains remains = d.p.Die();
    const uint64_t span = LocationOf(remains, d.SlotOf(kLarge)).offset / kSpanBytes;
    uint64_t gone = 0;
    for (uint64_t page = 0; page < 20 * kKinds; ++page) {
      if (d.SlotOf(page).is_handle() && LocationOf(remains, d.SlotOf(page)).offset / kSpanBytes == span)
        ++gone;
    }
    Put(remains.files.frames[0], TagAt(span), tag);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.bad_location, gone);
    EXPECT_EQ(d.ExpectRestIsRight(r), gone);
    ExpectAllComesBack(r);
  }
}

// Memory that no tag speaks for, and tags of spans without memory: what a crash in AllocateSpan, Populate,
// Punch or FreeSpan leaves.
TEST(RecoveryOfDamage, SpansWithoutObjectsAreGivenBack) {
  Damaged d;
  Remains remains = d.p.Die();
  const uint64_t spans =
      Get<uint64_t>(remains.files.frames[0], offsetof(FileHeader, file_bytes)) / kSpanBytes;
  const UniqueFd& frames = remains.files.frames[0];
  Put<uint64_t>(frames, 100 * kSpanBytes + 5 * kPageBytes, 1);  // memory without tag
  Put<uint64_t>(frames, (spans - 1) * kSpanBytes + 63 * kPageBytes, 1);
  Put<uint16_t>(frames, TagAt(101), 0x0101);  // tag without memory
  Put<uint16_t>(frames, TagAt(102), 0x0101);  // both, and no object
  Put<uint64_t>(frames, 102 * kSpanBytes, 1);
  Put<uint16_t>(frames, TagAt(103), 0x0302);
  Put<uint64_t>(frames, 103 * kSpanBytes, 1);
  Put<uint16_t>(frames, TagAt(0), 0x0101);  // where no span is
  const int fd = remains.files.frames[0].get();
  Revived r = Revive(d.p.options, std::move(remains));
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  const uint64_t tag_bytes = (spans * sizeof(uint16_t) + kPageBytes - 1) / kPageBytes * kPageBytes;
  EXPECT_EQ(BytesHeld(fd), kPageBytes + tag_bytes + r.store->pool_bytes());
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, AGrowthThatWasNotFinishedIsUndone) {
  Damaged d;
  Remains remains = d.p.Die();
  // The step's entries have memory, their parallel words do not; and words, but half of the nodes.
  const std::vector<std::byte> zeros(64 << 10);
  constexpr uint64_t kStepEntries = 4096, kStepNodes = 512;
  const int handles = remains.files.handles.get();
  const int index = remains.index.get();
  const uint64_t before = BytesHeld(handles);
  const uint64_t index_before = BytesHeld(index);
  ASSERT_EQ(pwrite(handles, zeros.data(), zeros.size(),
                   static_cast<off_t>(kPageBytes + kStepEntries * sizeof(HandleEntry))),
            static_cast<ssize_t>(zeros.size()));
  ASSERT_EQ(pwrite(index, zeros.data(), kPageBytes, static_cast<off_t>(2 * kPageBytes)),
            static_cast<ssize_t>(kPageBytes));
  ASSERT_EQ(pwrite(index, zeros.data(), zeros.size(), static_cast<off_t>(NodeAt(remains, kStepNodes))),
            static_cast<ssize_t>(zeros.size()));
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(BytesHeld(handles), before);
  EXPECT_EQ(BytesHeld(index), index_before);
  ExpectNothingDropped(r.stats);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, SlotsThatMakeNoSenseAreLost) {
  struct Case {
    const char* what;
    uint32_t word;
  };
  const Case cases[] = {{"an inner word", 5 << 3 | 7},
                        {"an empty slot that is not empty", 1 << 3},
                        {"a pattern in the wrong form", 0 << 3 | 5},
                        {"a handle that never was", 3000 << 3 | 2},
                        {"the last handle", ~7u | 2}};
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    Remains remains = d.p.Die();
    Put(remains.index, WordAt(remains, 0, kLarge, 0), damage.word);
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.stats.lost_slots, 1u);
    EXPECT_EQ(r.stats.orphans, 1u);
    EXPECT_TRUE(r.index(0).Get(PageIndex(kLarge)).is_lost());
    EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
    ExpectAllComesBack(r);
  }
}

// The page may be home already: its owner finds out, and must be told.
TEST(RecoveryOfDamage, AFillingSlotThatIsLostStaysFilling) {
  Damaged d;
  Remains remains = d.p.Die();
  Put(remains.index, WordAt(remains, 0, kLarge, 0), Slot::FromHandle(Handle(3000)).Filling().raw());
  Revived r = Revive(d.p.options, std::move(remains));
  ASSERT_EQ(r.unsettled.size(), 1u);
  EXPECT_EQ(r.unsettled[0].slot, Slot::Lost().Filling());
  EXPECT_EQ(r.index(0).Get(PageIndex(kLarge)), Slot::Lost().Filling());
  EXPECT_EQ(r.index(0).CompareExchange(PageIndex(kLarge), Slot::Lost().Filling(), Slot::Lost()),
            Exchange::kDone);
  EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
  ExpectAllComesBack(r);
}

// There are none, by contract. If there are, each tree has its own from the first change on.
TEST(RecoveryOfDamage, UnsettledSlotsInSharedLeavesAreEachTreesOwn) {
  Damaged d;
  d.p.Clone(0);
  Remains remains = d.p.Die();
  const Slot slot = d.SlotOf(kLarge);
  const Slot busy = Slot::Busy(1, 1);
  Put(remains.index, WordAt(remains, 0, kLarge, 0), slot.Filling().raw());
  Put(remains.index, WordAt(remains, 0, kNarrow, 0), busy.raw());
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.busy, 1u);
  EXPECT_EQ(r.stats.filling, 1u);
  ASSERT_EQ(r.unsettled.size(), 4u);
  for (const size_t root : {0, 1}) {
    ASSERT_EQ(r.index(root).CompareExchange(PageIndex(kLarge), slot.Filling(), slot), Exchange::kDone);
    ASSERT_EQ(r.index(root).CompareExchange(PageIndex(kNarrow), busy, Slot::Lost()), Exchange::kDone);
  }
  EXPECT_EQ(r.store->refs(slot), 2u);
  EXPECT_EQ(r.index(1).counts().lost, 1u);
  r.indexes[1].reset();
  EXPECT_EQ(r.store->refs(slot), 1u);
  EXPECT_EQ(d.ExpectRestIsRight(r), 1u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, BranchesThatMakeNoSenseAreCutOff) {
  constexpr uint64_t kFarPage = uint64_t{1} << 30;
  struct Case {
    const char* what;
    unsigned level;  // of the node in which the word lies
    std::function<uint32_t(const Remains&)> word;
  };
  const auto child = [](uint32_t node) { return node << 3 | 7; };
  const Case cases[] = {
      {"a slot", 1, [](const Remains&) { return Slot::FromHandle(Handle(1)).raw(); }},
      {"a node that never was", 3, [&](const Remains&) { return child(400); }},
      {"a node beyond the arena", 1, [&](const Remains&) { return child((1u << 29) - 1); }},
      {"no node", 1, [&](const Remains&) { return child(0); }},
      {"the root", 3, [&](const Remains& r) { return child((*r.roots)[0]); }},
      {"itself", 4, [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, kFarPage, 5)); }},
      {"another's place at the same level", 1,
       [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, 0, 1)); }},
      {"a leaf where an inner node belongs", 2,
       [&](const Remains& r) { return Get<uint32_t>(r.index, WordAt(r, 0, 0, 1)); }},
  };
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Damaged d;
    d.p.Put(0, kFarPage, kLarge);
    Remains remains = d.p.Die();
    Put(remains.index, WordAt(remains, 0, kFarPage, damage.level), damage.word(remains));
    Revived r = Revive(d.p.options, std::move(remains));
    // A node that was never used is one of zeros: an empty branch.
    EXPECT_EQ(r.stats.cut_branches, std::string(damage.what) == "a node that never was" ? 0u : 1u);
    EXPECT_EQ(r.stats.orphans, 1u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
    ExpectAllComesBack(r);
  }
}

TEST(RecoveryOfDamage, RootsThatMakeNoSenseAreEmptyTrees) {
  for (const uint32_t root : {400u, 1u << 20, ~0u}) {
    Damaged d;
    Remains remains = d.p.Die();
    (*remains.roots)[1] = root;
    Revived r = Revive(d.p.options, std::move(remains));
    EXPECT_EQ(r.index(1).stored(), 0u);
    EXPECT_TRUE(r.index(1).Get(PageIndex(0)).is_empty());
    const Slot slot = *Slot::SameFilled(1);
    EXPECT_EQ(r.index(1).CompareExchange(PageIndex(7), Slot::Empty(), slot), Exchange::kDone);
    EXPECT_EQ(r.index(1).Get(PageIndex(7)), slot);
    EXPECT_NE((*r.roots)[1].load(), 0u);
    EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
    ExpectAllComesBack(r);
  }
}

// A word of the root behind the last page that there can be.
TEST(RecoveryOfDamage, PagesBeyondTheAddressSpaceAreCutOff) {
  Damaged d;
  Remains remains = d.p.Die();
  Put(remains.index, NodeAt(remains, (*remains.roots)[0]) + 8 * sizeof(uint32_t), 400u << 3 | 7);
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.stats.cut_branches, 1u);
  EXPECT_EQ(d.ExpectRestIsRight(r), 0u);
  ExpectAllComesBack(r);
}

TEST(RecoveryOfDamage, AnotherDomainsObjectIsCorrupt) {
  Damaged d;
  PageBuffer page;
  Content(kLarge, &page);
  const Slot others = d.p.store->Store(page, {2, PageIndex(3), kDomain + 1}, NodeId(0), *d.p.scratch).value();
  Remains remains = d.p.Die();
  Put(remains.index, WordAt(remains, 0, kLarge, 0), others.raw());
  Revived r = Revive(d.p.options, std::move(remains));
  EXPECT_EQ(r.index(0).Get(PageIndex(kLarge)), others);
  PageBuffer out;
  EXPECT_EQ(r.store->Load(others, out, *d.p.scratch, kDomain), LoadOutcome::kCorrupt);
  EXPECT_EQ(r.store->Load(others, out, *d.p.scratch, kDomain + 1), LoadOutcome::kLoaded);
  ExpectAllComesBack(r);
  d.p.store->Release(others);
}

TEST(RecoveryOfDamage, FilesThatAreNoneAreRefusedAndLeftAlone) {
  struct Case {
    const char* what;
    std::function<void(Remains*)> damage;
    Errc code;
  };
  constexpr uint64_t kVersion = offsetof(FileHeader, layout_version), kMagic = offsetof(FileHeader, magic);
  constexpr uint64_t kParams = offsetof(FileHeader, params);
  const Case cases[] = {
      {"handles of another version", [](Remains* r) { Put(r->files.handles, kVersion, 99u); },
       Errc::kUnsupported},
      {"frames of another version", [](Remains* r) { Put(r->files.frames[1], kVersion, 99u); },
       Errc::kUnsupported},
      {"index of another version", [](Remains* r) { Put(r->index, kVersion, 2u); }, Errc::kUnsupported},
      {"no handles", [](Remains* r) { Put(r->files.handles, kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"no frames", [](Remains* r) { Put(r->files.frames[0], kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"no index", [](Remains* r) { Put(r->index, kMagic, uint64_t{1}); }, Errc::kInvalid},
      {"header of handles punched", [](Remains* r) { PunchHole(r->files.handles, 0, kPageBytes); },
       Errc::kInvalid},
      {"number of handles", [](Remains* r) { Put(r->files.handles, kParams, uint64_t{4096}); },
       Errc::kInvalid},
      {"handles beyond number", [](Remains* r) { Put(r->files.handles, kParams, ~uint64_t{0} << 12); },
       Errc::kInvalid},
      {"number of nodes", [](Remains* r) { Put(r->index, kParams, uint64_t{512}); }, Errc::kInvalid},
      {"nodes beyond number", [](Remains* r) { Put(r->index, kParams, ~uint64_t{0} << 9); }, Errc::kInvalid},
      {"node of frames", [](Remains* r) { Put(r->files.frames[0], kParams, uint64_t{64}); }, Errc::kInvalid},
      {"two files of a node", [](Remains* r) { Put(r->files.frames[1], kParams, uint64_t{0}); },
       Errc::kInvalid},
      {"size of spans", [](Remains* r) { Put(r->files.frames[0], kParams + 8, uint64_t{4096}); },
       Errc::kInvalid},
      {"place of tags", [](Remains* r) { Put(r->files.frames[0], kParams + 16, uint64_t{0}); },
       Errc::kInvalid},
      {"handles cut short", [](Remains* r) { EXPECT_EQ(ftruncate(r->files.handles.get(), 1 << 20), 0); },
       Errc::kInvalid},
      {"frames cut short", [](Remains* r) { EXPECT_EQ(ftruncate(r->files.frames[0].get(), 1 << 20), 0); },
       Errc::kInvalid},
      {"files exchanged", [](Remains* r) { std::swap(r->files.handles, r->index); }, Errc::kInvalid},
      {"no descriptor", [](Remains* r) { r->files.handles.reset(); }, Errc::kSystem},
  };
  Process p(TwoNodes());
  Model model;
  for (uint64_t n = 0; n < 100; ++n) {
    p.Put(0, n, n, n % 2 == 0 ? kNear : kFar);
    model[n] = n;
  }
  for (const Case& damage : cases) {
    SCOPED_TRACE(damage.what);
    Remains remains = p.Die();
    const Remains untouched = p.Die();
    damage.damage(&remains);
    RecoveryStats stats;
    const Remains shared = remains.Share();
    const auto store = PageStore::Recover(p.options, std::move(remains.files), &stats);
    const auto arena = IndexArena::Recover(std::move(remains.index));
    ASSERT_FALSE(store.ok() && arena.ok());
    EXPECT_EQ((store.ok() ? arena.error() : store.error()).code, damage.code);
  }
  // A refusal changed nothing: the same files without the damage.
  Remains remains = p.Die();
  const Remains shared = remains.Share();
  const uint32_t version = Get<uint32_t>(remains.index, kVersion);
  Put(remains.index, kVersion, 99u);
  EXPECT_EQ(TryRevive(p.options, std::move(remains)), nullptr);
  Put(shared.index, kVersion, version);
  Revived r = Revive(p.options, shared.Share());
  ExpectNothingDropped(r.stats);
  ExpectPages(r, 0, model);
  ExpectAllComesBack(r);
}

}  // namespace
}  // namespace zp

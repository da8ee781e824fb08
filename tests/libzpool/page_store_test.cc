#include "libzpool/store/page_store.h"
#include "libzpool/compact/compactor.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "tests/libzpool/pages.h"

namespace zp {

// Reaches into the pool to damage it.
class PageStoreTestPeer {
 public:
  static std::byte* ObjectOf(PageStore& store, Slot slot) {
    const Location location = Location::Decode(store.handles_->Lookup(slot.handle()));
    return store.NodeOf(location.node)->arena->At(location.offset);
  }
  static NodeId NodeOf(PageStore& store, Slot slot) {
    return Location::Decode(store.handles_->Lookup(slot.handle())).node;
  }
};

namespace {

using testing::MakePage;
using testing::PageBuffer;

std::unique_ptr<PageStore> NewStore(Bytes capacity, Topology topology = Topology::SingleNode()) {
  return PageStore::Create({std::move(topology), capacity, CodecId::kLz4}).value();
}

// Bytes of memory behind the frames of all nodes, but for the headers and the tags of the spans.
uint64_t FrameFileBytes(const PageStore& store) {
  uint64_t bytes = 0;
  store.ForEachMemfd([&](const char* name, int fd) {
    if (std::string(name).rfind("frames-", 0) != 0) return;
    struct stat st {};
    ASSERT_EQ(fstat(fd, &st), 0);
    const uint64_t tags = static_cast<uint64_t>(st.st_size) / kSpanBytes * sizeof(uint16_t);
    bytes += static_cast<uint64_t>(st.st_blocks) * 512 - kPageBytes -
             (tags + kPageBytes - 1) / kPageBytes * kPageBytes;
  });
  return bytes;
}

TEST(PageStore, GivesBackWhatWasStored) {
  auto store = NewStore(MiB(16));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  for (const unsigned noise : {1u, 64u, 256u, 400u, 512u}) {
    MakePage(7, noise, noise, &page);
    const Slot slot = store->Store(page, {3, PageIndex(7)}, NodeId(0), *scratch).value();
    ASSERT_TRUE(slot.is_handle());
    EXPECT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kLoaded);
    EXPECT_EQ(page, out);
    EXPECT_EQ(store->GetOwner(slot), (Owner{3, PageIndex(7)}));
    store->Release(slot);
    EXPECT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kCorrupt) << "a stale slot is caught";
  }
  EXPECT_EQ(store->stats().stored_pages, 0u);
}

TEST(PageStore, SameFilledPagesTakeNoObject) {
  auto store = NewStore(MiB(1));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  for (const uint64_t pattern : {uint64_t{0}, ~uint64_t{0}, uint64_t{0x0101010101010101}}) {
    for (size_t at = 0; at < kPageBytes; at += 8) std::memcpy(page.data() + at, &pattern, 8);
    const Slot slot = store->Store(page, {1, PageIndex(1)}, NodeId(0), *scratch).value();
    EXPECT_TRUE(slot.is_same_filled());
    ASSERT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kLoaded);
    EXPECT_EQ(page, out);
  }
  EXPECT_EQ(store->stats().pool_bytes, 0u);
  // A pattern that does not fit beside the tag is an object like any other.
  const uint64_t wide = 0x8123456789abcdef;
  for (size_t at = 0; at < kPageBytes; at += 8) std::memcpy(page.data() + at, &wide, 8);
  const Slot slot = store->Store(page, {1, PageIndex(1)}, NodeId(0), *scratch).value();
  EXPECT_TRUE(slot.is_handle());
  ASSERT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kLoaded);
  EXPECT_EQ(page, out);
  store->Release(slot);
}

// A slot that came to name another domain's object, as a damaged index may do.
TEST(PageStore, AnotherDomainsPageIsCorrupt) {
  auto store = NewStore(MiB(1));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  const uint32_t domains[] = {0, 1, 2, 0x80000000, 0xdeadbeef, ~uint32_t{0}};
  for (const uint32_t of : domains) {
    MakePage(of, 1, 100, &page);
    const Slot slots[] = {store->Store(page, {1, PageIndex(1), of}, NodeId(0), *scratch).value(),
                          store->StoreAlways(page, {1, PageIndex(1), of}, NodeId(0), *scratch).value(),
                          store->StoreRaw(page, {1, PageIndex(1), of}, NodeId(0)).value()};
    for (const Slot slot : slots) {
      for (const uint32_t asked : domains) {
        const LoadOutcome expected = asked == of ? LoadOutcome::kLoaded : LoadOutcome::kCorrupt;
        EXPECT_EQ(store->Load(slot, out, *scratch, asked), expected) << of << " as " << asked;
        if (asked == of) {
          EXPECT_EQ(page, out);
        }
      }
      store->Release(slot);
    }
  }
}

TEST(PageStore, LostSlotsAreCorruptAndHaveNoObject) {
  auto store = NewStore(MiB(1));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer out;
  EXPECT_EQ(store->Load(Slot::Lost(), out, *scratch), LoadOutcome::kCorrupt);
  EXPECT_TRUE(store->Ref(Slot::Lost()).ok());
  store->RefOrPin(Slot::Lost());
  store->SetOwner(Slot::Lost(), {1, PageIndex(1)});
  store->Release(Slot::Lost());
  EXPECT_EQ(store->object_bytes(Slot::Lost()), 0u);
}

TEST(PageStore, DamagedObjectIsCorruptNeverWrong) {
  auto store = NewStore(MiB(16));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  for (const unsigned noise : {20u, 512u}) {
    MakePage(1, 2, noise, &page);
    const Slot slot = store->Store(page, {1, PageIndex(1)}, NodeId(0), *scratch).value();
    const uint32_t length = store->object_bytes(slot);
    std::byte* object = PageStoreTestPeer::ObjectOf(*store, slot);
    for (uint32_t at = 0; at < length; at += 7) {
      object[at] ^= std::byte{0x41};
      EXPECT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kCorrupt) << "byte " << at << " of " << length;
      object[at] ^= std::byte{0x41};
    }
    EXPECT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kLoaded);
    store->Release(slot);
  }
}

TEST(PageStore, ExhaustionLeavesNothingBehindAndMemoryComesBack) {
  auto store = NewStore(MiB(2));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  for (int round = 0; round < 3; ++round) {
    std::vector<Slot> slots;
    for (uint64_t i = 0;; ++i) {
      MakePage(i, 1, static_cast<unsigned>(100 + i % 400), &page);
      const Result<Slot> slot = store->Store(page, {1, PageIndex(i)}, NodeId(0), *scratch);
      if (!slot.ok()) {
        EXPECT_EQ(slot.error().code, Errc::kNoMemory);
        break;
      }
      slots.push_back(*slot);
    }
    EXPECT_GT(slots.size(), 500u);
    EXPECT_EQ(store->stats().stored_pages, slots.size());
    EXPECT_LE(store->stats().pool_bytes, MiB(2).value());
    EXPECT_LE(FrameFileBytes(*store), store->stats().pool_bytes);
    store->DebugVerify();
    for (uint64_t i = 0; i < slots.size(); ++i) {
      MakePage(i, 1, static_cast<unsigned>(100 + i % 400), &page);
      ASSERT_EQ(store->Load(slots[i], out, *scratch), LoadOutcome::kLoaded);
      ASSERT_EQ(page, out);
    }
    for (const Slot slot : slots) store->Release(slot);
    store->DebugVerify();
    store->Trim();
    store->DebugVerify();
    EXPECT_EQ(store->stats().pool_bytes, 0u);
    EXPECT_EQ(FrameFileBytes(*store), 0u);
  }
  EXPECT_EQ(store->stats().store_failures, 3u);
}

TEST(PageStore, ReferencesKeepTheObjectUntilTheLast) {
  auto store = NewStore(MiB(1));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  MakePage(1, 1, 50, &page);
  const Slot slot = store->Store(page, {1, PageIndex(1)}, NodeId(0), *scratch).value();
  for (uint32_t i = 1; i < 65534; ++i) ASSERT_TRUE(store->Ref(slot).ok());
  const Status full = store->Ref(slot);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, Errc::kNoMemory);
  for (uint32_t i = 1; i < 65534; ++i) store->Release(slot);
  EXPECT_EQ(store->refs(slot), 1u);
  EXPECT_EQ(store->Load(slot, out, *scratch), LoadOutcome::kLoaded);
  EXPECT_EQ(page, out);
  store->Release(slot);
  EXPECT_EQ(store->stats().stored_pages, 0u);
}

TEST(PageStore, GoesToThePreferredNodeWhateverItsNumber) {
  Topology topology = Topology::Made({NodeId(2), NodeId(5)}, {{10, 20}, {20, 10}}).value();
  auto store = NewStore(MiB(4), topology);
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  MakePage(1, 1, 50, &page);
  std::vector<Slot> slots;
  for (const uint8_t node : {2, 5}) {
    slots.push_back(store->Store(page, {1, PageIndex(1)}, NodeId(node), *scratch).value());
    EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots.back()), NodeId(node));
  }
  // A node that does not exist is served by the first.
  slots.push_back(store->Store(page, {1, PageIndex(1)}, NodeId(40), *scratch).value());
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots.back()), NodeId(2));
  for (const Slot slot : slots) store->Release(slot);
}

// A machine whose node 1 has no memory and node 2 no CPU: pages go to 0, 2 and 7, clients run on 0, 1 and 7.
TEST(PageStore, NodesWithoutMemoryOrCpusAreServed) {
  const std::vector<NodeId> nodes = {NodeId(0), NodeId(2), NodeId(7)};
  Topology topology = Topology::Made(nodes, {{10, 40, 20}, {40, 10, 40}, {20, 40, 10}}).value();
  auto store = NewStore(MiB(4), topology);
  auto scratch = std::make_unique<Scratch>();
  Compactor compactor(*store, {0, 950, 850, 20, {NodeId(0), NodeId(7), NodeId(2)}});
  PageBuffer page, out;
  std::vector<Slot> slots;
  // Clients run on each node, and their pages are wherever the first has them.
  const NodeId homes[] = {NodeId(0), NodeId(1), NodeId(7)};
  for (uint32_t client = 0; client < 3; ++client) {
    MakePage(client, 1, 50, &page);
    slots.push_back(store->Store(page, {client, PageIndex(client)}, homes[client], *scratch).value());
  }
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots[1]), NodeId(0)) << "no memory there";
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots[2]), NodeId(7));
  // Nobody runs on node 2; it takes what is demoted, and gives it back to where its client runs.
  for (const Slot slot : slots) EXPECT_TRUE(store->MoveObject(slot, NodeId(2)).ok());
  const auto home = [&](uint32_t client) { return homes[client]; };
  while (!compactor.LocalityStep(NodeId(2), home, MiB(1)).round_ended) {
  }
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots[0]), NodeId(0));
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots[1]), NodeId(2)) << "its home takes nothing: it stays";
  EXPECT_EQ(PageStoreTestPeer::NodeOf(*store, slots[2]), NodeId(7));
  for (uint32_t client = 0; client < 3; ++client) {
    MakePage(client, 1, 50, &page);
    ASSERT_EQ(store->Load(slots[client], out, *scratch), LoadOutcome::kLoaded);
    EXPECT_EQ(page, out);
    store->Release(slots[client]);
  }
}

TEST(PageStore, KeepsEachPageAsItIsTold) {
  auto store = NewStore(MiB(16));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  std::vector<Slot> slots;
  for (const bool always : {false, true}) {
    for (const PoolKind pool : {PoolKind::kZsmalloc, PoolKind::kZbud}) {
      for (const CodecId codec : {CodecId::kRaw, CodecId::kLz4}) {
        MakePage(slots.size(), 1, 100, &page);
        const Owner owner{1, PageIndex(slots.size())};
        const StoreAs as{codec, pool};
        slots.push_back(always ? store->StoreAlways(page, owner, NodeId(0), as, *scratch).value()
                               : store->Store(page, owner, NodeId(0), as, *scratch).value());
        EXPECT_EQ(store->object_bytes(slots.back()) == kPageBytes, codec == CodecId::kRaw);
      }
    }
  }
  uint64_t in_zsmalloc = 0;
  for (const SizeClassStats& size_class : store->stats().classes) in_zsmalloc += size_class.objects;
  EXPECT_EQ(in_zsmalloc, slots.size() / 2);
  EXPECT_EQ(store->stats().stored_pages, slots.size());
  EXPECT_EQ(store->stats().raw_pages, slots.size() / 2);
  // Not told, it is as the options say.
  EXPECT_EQ(store->store_as(), (StoreAs{CodecId::kLz4, PoolKind::kZsmalloc}));
  for (size_t i = 0; i < slots.size(); ++i) {
    MakePage(i, 1, 100, &page);
    ASSERT_EQ(store->Load(slots[i], out, *scratch), LoadOutcome::kLoaded);
    EXPECT_EQ(page, out);
    store->Release(slots[i]);
  }
  store->DebugVerify();
}

// What a caller must not do: a slot that is no longer held.
TEST(PageStoreDeathTest, StaleHandlesDie) {
  auto store = NewStore(MiB(1));
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  MakePage(1, 2, 100, &page);
  const Slot slot = store->Store(page, {1, PageIndex(1)}, NodeId(0), *scratch).value();
  ASSERT_TRUE(store->Ref(slot).ok());
  store->Release(slot);
  store->Release(slot);
  EXPECT_DEATH(store->Release(slot), "release of a stale handle");
  EXPECT_DEATH((void)store->Ref(slot), "reference to a stale handle");
  EXPECT_DEATH(store->RefOrPin(slot), "reference to a stale handle");
  EXPECT_DEATH((void)store->Pin(slot), "pin of a stale handle");
  EXPECT_DEATH((void)store->MoveObject(slot, NodeId(0)), "move of a stale handle");
  const Slot never = Slot::FromHandle(Handle(Handle::kMax));
  EXPECT_DEATH(store->Release(never), "a handle that never was");
  EXPECT_DEATH((void)store->Ref(never), "a handle that never was");
}

}  // namespace
}  // namespace zp

// A process that is going to die, and what its successor must have, for the tests of recovery.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "tests/libzpool/pages.h"
#include "tests/libzpool/remains.h"

namespace zp::testing {

using Model = std::map<uint64_t, uint64_t>;  // page -> content

inline constexpr NodeId kNear(0), kFar(5);
inline constexpr uint32_t kDomain = 77;

// Contents by number: every way to keep a page has its turn.
enum Kind : uint64_t { kSmall, kLarge, kZbudKind, kRaw, kStandbyKind, kNarrow, kRepeated, kKinds };
void Content(uint64_t n, PageBuffer* page);

Topology TwoNodes();

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
    EXPECT_EQ(indexes[index].CompareExchange(PageIndex(page), before, slot), OffsetIndex::Exchange::kDone);
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
void ExpectPages(PageStore& store, const OffsetIndex& index, const Model& model);
void ExpectPages(Revived& revived, size_t root, const Model& model);
// What a store that works can do: everything is dropped, and all memory comes back.
void ExpectAllComesBack(Revived& revived);
// As after a crash alone.
void ExpectNothingDropped(const RecoveryStats& stats);

}  // namespace zp::testing

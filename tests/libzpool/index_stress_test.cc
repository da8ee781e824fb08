// Threads on clones that share leaves: what each index says must be its own, at every moment.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "libzpool/index/offset_index.h"
#include "tests/libzpool/pages.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;

constexpr uint64_t kPages = 256;

// One page in four is same-filled, up to the widest pattern that a slot holds; the others are objects.
void MakeContent(uint64_t page, uint64_t writer, PageBuffer* out) {
  if (page % 4 != 0) return MakePage(page, writer, 8, out);
  const uint64_t narrow = (uint64_t{1} << 28) - 1 - page - writer;
  FillPage(page % 8 == 0 ? narrow : ~narrow, *out);
}

// Busy states to the last bit of their payload, apart by thread.
Slot BusyOf(uint64_t thread) {
  return Slot::Busy(Slot::kMaxBusyKind, Slot::kMaxBusyPayload - static_cast<uint32_t>(thread));
}

// Content of page p: (p, writer), writer 0 before the clone. Content may change within an index, but an index
// never shows what another one wrote.
TEST(OffsetIndexStress, UnsharingUnderReadersShowsNoForeignPage) {
  for (int round = 0; round < 8; ++round) {
    auto store = PageStore::Create({Topology::SingleNode(), MiB(64), CodecId::kLz4}).value();
    auto arena = IndexArena::Create(1 << 16).value();
    auto scratch = std::make_unique<Scratch>();
    std::vector<OffsetIndex> indexes;
    indexes.push_back(OffsetIndex::Create(*arena, *store).value());
    PageBuffer page;
    for (uint64_t p = 0; p < kPages; ++p) {
      MakeContent(p, 0, &page);
      const Slot slot = store->Store(page, {0, PageIndex(p)}, NodeId(0), *scratch).value();
      ASSERT_EQ(indexes[0].CompareExchange(PageIndex(p * 17), Slot::Empty(), slot),
                OffsetIndex::Exchange::kDone);
    }
    for (int i = 1; i < 3; ++i) indexes.push_back(indexes[0].Clone().value());

    std::vector<std::thread> threads;
    std::atomic<bool> wrong{false};
    for (uint64_t t = 0; t < 6; ++t) {
      threads.emplace_back([&, t] {
        const uint64_t writer = 1 + t % 3;
        OffsetIndex& index = indexes[t % 3];
        std::mt19937_64 random(t * 1000 + static_cast<uint64_t>(round));
        auto own = std::make_unique<Scratch>();
        PageBuffer mine;
        PageBuffer out;
        PageBuffer expected;
        for (int i = 0; i < 1500; ++i) {
          const uint64_t p = random() % kPages;
          const PageIndex at(p * 17);
          // Taking the slot out makes this thread its only user, as the daemon's protocol does.
          const Slot slot = index.Get(at);
          if (slot.is_busy()) continue;
          if (index.CompareExchange(at, slot, BusyOf(t)) != OffsetIndex::Exchange::kDone) continue;
          if (store->Load(slot, out, *own) != LoadOutcome::kLoaded) wrong = true;
          MakeContent(p, 0, &expected);
          bool known = expected == out;
          MakeContent(p, writer, &expected);
          known = known || expected == out;
          if (!known) wrong = true;
          Slot next = slot;
          if (random() % 2 == 0) {
            MakeContent(p, writer, &mine);
            next = store->Store(mine, {static_cast<uint32_t>(writer), at}, NodeId(0), *own).value();
            store->Release(slot);
          }
          if (index.CompareExchange(at, BusyOf(t), next) != OffsetIndex::Exchange::kDone) wrong = true;
          if (i % 64 == 0) {
            // Every page is something at every moment, so the walk meets as many as it asks for.
            uint64_t seen = 0;
            const uint64_t wanted = 1 + random() % kPages;
            index.ForEach(PageIndex(0), PageIndex(kPages * 17), [&](PageIndex met, Slot met_slot) {
              if (met.value() != seen * 17 || !met_slot.is_valid()) wrong = true;
              return ++seen < wanted;
            });
            if (seen != wanted) wrong = true;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_FALSE(wrong);
    for (const OffsetIndex& index : indexes) EXPECT_EQ(index.stored(), kPages);
    // Three dying at once: the last one to leave a node frees what is in it.
    std::vector<std::thread> enders;
    enders.reserve(indexes.size());
    for (OffsetIndex& index : indexes) {
      enders.emplace_back([&index] { OffsetIndex dying(std::move(index)); });
    }
    for (std::thread& thread : enders) thread.join();
    indexes.clear();
    EXPECT_EQ(arena->nodes_in_use(), 0u);
    EXPECT_EQ(store->stats().stored_pages, 0u);
    store->DebugVerify();
  }
}

}  // namespace
}  // namespace zp

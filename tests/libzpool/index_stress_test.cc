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
      MakePage(p, 0, 8, &page);
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
          if (index.CompareExchange(at, slot, Slot::Busy(1, static_cast<uint32_t>(t))) !=
              OffsetIndex::Exchange::kDone)
            continue;
          if (store->Load(slot, out, *own) != LoadOutcome::kLoaded) wrong = true;
          MakePage(p, 0, 8, &expected);
          bool known = expected == out;
          MakePage(p, writer, 8, &expected);
          known = known || expected == out;
          if (!known) wrong = true;
          Slot next = slot;
          if (random() % 2 == 0) {
            MakePage(p, writer, 8, &mine);
            next = store->Store(mine, {static_cast<uint32_t>(writer), at}, NodeId(0), *own).value();
            store->Release(slot);
          }
          if (index.CompareExchange(at, Slot::Busy(1, static_cast<uint32_t>(t)), next) !=
              OffsetIndex::Exchange::kDone)
            wrong = true;
          if (i % 64 == 0) index.ForEach(PageIndex(0), PageIndex(kPages * 17), [](PageIndex, Slot) {});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    ASSERT_FALSE(wrong);
    for (const OffsetIndex& index : indexes) EXPECT_EQ(index.stored(), kPages);
    // Three dying at once: the last one to leave a node frees what is in it.
    std::vector<std::thread> enders;
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

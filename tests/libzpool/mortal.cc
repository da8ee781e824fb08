#include "tests/libzpool/mortal.h"

namespace zp::testing {

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

}  // namespace zp::testing

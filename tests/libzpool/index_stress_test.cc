// Threads on clones that share leaves and objects, beside movers: what each index says must be its own, at
// every moment.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/index/offset_index.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/test_size.h"

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
  for (int round = 0; round < static_cast<int>(testing::Rounds(8, 100)); ++round) {
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

// Whole trees of pages and what each should hold, of one thread. Clones share objects, which others move.
class Trees {
 public:
  Trees(PageStore& store, IndexArena& arena, uint64_t seed) : store_(store), arena_(arena), random_(seed) {
    Plant();
  }

  void Step() {
    const uint64_t kind = random_() % 64;
    Tree& tree = trees_[random_() % trees_.size()];
    if (kind < 40) {
      Put(tree, random_() % kSpread);
    } else if (kind < 58) {
      ExpectPage(tree, random_() % kSpread);
    } else if (kind < 60) {
      DropRange(tree);
    } else if (kind < 62) {
      Clone(tree);
    } else if (kind == 62 && trees_.size() > 1) {
      trees_.erase(trees_.begin() + static_cast<ptrdiff_t>(random_() % trees_.size()));
    } else {
      ExpectAll(tree);
    }
  }
  void ExpectAll() {
    for (Tree& tree : trees_) ExpectAll(tree);
  }
  bool wrong() const { return wrong_; }

 private:
  // Dense at the start, and apart behind.
  static constexpr uint64_t kSpread = 256;
  static PageIndex At(uint64_t p) { return PageIndex(p < kSpread / 2 ? p : p * 4099); }

  struct Tree {
    OffsetIndex index;
    std::map<uint64_t, uint64_t> content;
  };

  void Plant() { trees_.push_back({OffsetIndex::Create(arena_, store_).value(), {}}); }

  void Put(Tree& tree, uint64_t p) {
    const uint64_t content = random_();
    testing::MakePage(content, 1, static_cast<unsigned>(content % 513), &page_);
    const Result<Slot> slot = store_.Store(page_, {1, At(p)}, NodeId(0), *scratch_);
    if (!slot.ok()) {
      if (slot.error().code != Errc::kNoMemory) wrong_ = true;
      return;
    }
    const Slot before = tree.index.Get(At(p));
    if (before.is_empty() != (tree.content.count(p) == 0)) wrong_ = true;
    if (tree.index.CompareExchange(At(p), before, *slot) != OffsetIndex::Exchange::kDone) wrong_ = true;
    store_.Release(before);
    tree.content[p] = content;
  }

  void ExpectPage(Tree& tree, uint64_t p) {
    const Slot slot = tree.index.Get(At(p));
    const auto expected = tree.content.find(p);
    if (slot.is_empty() != (expected == tree.content.end())) wrong_ = true;
    if (slot.is_empty() || expected == tree.content.end()) return;
    testing::MakePage(expected->second, 1, static_cast<unsigned>(expected->second % 513), &page_);
    if (store_.Load(slot, out_, *scratch_) != LoadOutcome::kLoaded || page_ != out_) wrong_ = true;
  }

  void ExpectAll(Tree& tree) {
    for (uint64_t p = 0; p < kSpread; ++p) ExpectPage(tree, p);
    if (tree.index.stored() != tree.content.size()) wrong_ = true;
  }

  void DropRange(Tree& tree) {
    const uint64_t begin = random_() % kSpread;
    const uint64_t end = begin + random_() % (kSpread - begin) / 4 + 1;
    std::vector<Slot> dropped;
    tree.index.DropRange(At(begin), At(end - 1) + PageCount(1), &dropped);
    for (const Slot slot : dropped) store_.Release(slot);
    tree.content.erase(tree.content.lower_bound(begin), tree.content.lower_bound(end));
  }

  void Clone(Tree& tree) {
    Result<OffsetIndex> clone = tree.index.Clone();
    if (!clone.ok()) {
      wrong_ = true;
      return;
    }
    Tree copy{std::move(clone).value(), tree.content};  // `tree` may move when the list grows
    trees_.push_back(std::move(copy));
    if (trees_.size() > 4) trees_.erase(trees_.begin());
  }

  PageStore& store_;
  IndexArena& arena_;
  std::mt19937_64 random_;
  std::vector<Tree> trees_;
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  PageBuffer page_, out_;
  bool wrong_ = false;
};

TEST(OffsetIndexStress, TreesAndTheirClonesAgreeWithMapsWhileObjectsMove) {
  const char* const fixed = std::getenv("ZP_SEED");
  const uint64_t seed = fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : 1;
  SCOPED_TRACE("replay: ZP_SEED=" + std::to_string(seed));
  const int steps = static_cast<int>(testing::Rounds(4000, 100000));
  const std::vector<NodeId> nodes = {NodeId(0), NodeId(3), NodeId(4)};
  for (const PoolKind kind : {PoolKind::kZsmalloc, PoolKind::kZbud}) {
    PageStore::Options options;
    options.topology = Topology::Made(nodes, {{10, 20, 40}, {20, 10, 40}, {40, 40, 10}}).value();
    options.capacity = MiB(32);
    options.pool = kind;
    auto store = PageStore::Create(options).value();
    auto arena = IndexArena::Create(1 << 16).value();
    Compactor compactor(*store, {0, 100, 50, 0, nodes});
    std::atomic<bool> stop{false};
    std::atomic<bool> wrong{false};
    std::vector<std::thread> growers;
    for (uint64_t t = 0; t < 3; ++t) {
      growers.emplace_back([&, t] {
        Trees trees(*store, *arena, seed * 16 + t);
        for (int i = 0; i < steps; ++i) trees.Step();
        trees.ExpectAll();
        if (trees.wrong()) wrong = true;
      });
    }
    std::vector<std::thread> movers;
    for (uint64_t t = 0; t < 2; ++t) {
      movers.emplace_back([&, t] {
        std::mt19937_64 random(seed * 16 + 8 + t);
        while (!stop) {
          const NodeId node = nodes[random() % nodes.size()];
          const std::atomic<bool> abort{random() % 4 == 0};
          compactor.CompactStep(node, KiB(256));
          store->SetNodeAccepts(node, false);
          compactor.DrainStep(node, MiB(1), MigrateMode::kAsync, &abort);
          store->SetNodeAccepts(node, true);
          compactor.LocalityStep(
              node, [&](uint32_t) { return nodes[random() % nodes.size()]; }, KiB(64));
        }
      });
    }
    for (std::thread& grower : growers) grower.join();
    stop = true;
    for (std::thread& mover : movers) mover.join();
    EXPECT_FALSE(wrong);
    const CompactorStats stats = compactor.stats();
    EXPECT_GT(stats.drained.of(MigrateOutcome::kMoved), 0u);
    EXPECT_GT(stats.followed_objects, 0u);
    EXPECT_EQ(arena->nodes_in_use(), 0u);
    EXPECT_EQ(store->stats().stored_pages, 0u);
    store->Trim();
    store->DebugVerify();
  }
}

}  // namespace
}  // namespace zp

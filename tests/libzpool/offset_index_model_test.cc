// OffsetIndex against std::map: several clones, random operations, every difference printed with its seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "libzpool/index/offset_index.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;

class World {
 public:
  // What a page holds: the number that its content was made from.
  using Model = std::map<uint64_t, uint64_t>;
  struct Client {
    OffsetIndex index;
    Model model;
  };

  explicit World(uint64_t seed, uint32_t max_nodes) : random_(seed) {
    store_ = PageStore::Create({Topology::SingleNode(), MiB(32), CodecId::kLz4}).value();
    arena_ = IndexArena::Create(max_nodes).value();
    clients_.push_back(Client{OffsetIndex::Create(*arena_, *store_).value(), {}});
  }

  void Step() {
    Client& client = clients_[random_() % clients_.size()];
    switch (random_() % 12) {
      case 0:
        Clone(client);
        break;
      case 1:
        Kill();
        break;
      case 2:
        DropRange(client);
        break;
      case 3:
        Rekey(client);
        break;
      case 4:
      case 5:
        Remove(client);
        break;
      default:
        Put(client);
        break;
    }
  }

  void Verify() {
    uint64_t objects = 0;
    for (const Client& client : clients_) {
      auto expected = client.model.begin();
      client.index.ForEach(PageIndex(0), PageIndex(kPageIndexLimit), [&](PageIndex page, Slot slot) {
        ASSERT_NE(expected, client.model.end());
        ASSERT_EQ(page.value(), expected->first);
        ExpectContent(slot, expected->second);
        ++expected;
      });
      ASSERT_EQ(expected, client.model.end());
      ASSERT_EQ(client.index.stored(), client.model.size());
      const uint64_t wanted = 1 + random_() % 300;
      uint64_t seen = 0;
      client.index.ForEach(PageIndex(0), PageIndex(kPageIndexLimit),
                           [&](PageIndex, Slot) { return ++seen < wanted; });
      ASSERT_EQ(seen, std::min<uint64_t>(wanted, client.model.size()));
      objects += client.model.size();
    }
    EXPECT_LE(store_->stats().stored_pages, objects);
    store_->DebugVerify();
  }

  void End() {
    clients_.clear();
    EXPECT_EQ(arena_->nodes_in_use(), 0u);
    EXPECT_EQ(store_->stats().stored_pages, 0u) << "references leaked";
    store_->Trim();
    EXPECT_EQ(store_->stats().pool_bytes, 0u);
  }

 private:
  // Pages lie in a few clusters far apart, so that leaves, inner nodes and the root are all shared and
  // copied.
  uint64_t RandomPage() {
    static constexpr uint64_t kBases[] = {
        0, 60, 5000, uint64_t{1} << 24, (uint64_t{1} << 35) - 100, kPageIndexLimit - 300};
    return kBases[random_() % 6] + random_() % 200;
  }

  // One in four repeats a word: the widest numbers of either sign that a slot holds, a unit of two bytes, or
  // a number that is too wide.
  static void MakeContent(uint64_t content, PageBuffer* page) {
    if (content % 4 != 0) return MakePage(content, 0, 30, page);
    const uint64_t n = content / 4;
    const uint64_t narrow = (uint64_t{1} << 28) - 1 - n;
    const uint64_t patterns[] = {narrow, ~narrow, n * 0x0001000100010001, n << 28};
    FillPage(patterns[n % 4], *page);
  }

  Slot MakeSlot(uint64_t content) {
    PageBuffer page;
    MakeContent(content, &page);
    return store_->Store(page, {1, PageIndex(content)}, NodeId(0), *scratch_).value();
  }

  void ExpectContent(Slot slot, uint64_t content) {
    PageBuffer expected;
    PageBuffer actual;
    MakeContent(content, &expected);
    ASSERT_EQ(store_->Load(slot, actual, *scratch_), LoadOutcome::kLoaded);
    ASSERT_EQ(expected, actual);
  }

  void Put(Client& client) {
    const uint64_t page = RandomPage();
    const Slot before = client.index.Get(PageIndex(page));
    ASSERT_EQ(before.is_empty(), client.model.count(page) == 0) << "page " << page;
    const uint64_t content = ++last_content_;
    const Slot slot = MakeSlot(content);
    EXPECT_EQ(client.index.CompareExchange(PageIndex(page), Slot::Busy(1, 2), slot),
              OffsetIndex::Exchange::kChanged);
    const auto outcome = client.index.CompareExchange(PageIndex(page), before, slot);
    if (outcome == OffsetIndex::Exchange::kNoMemory) {
      store_->Release(slot);
      ASSERT_EQ(client.index.Get(PageIndex(page)), before);
      return;
    }
    ASSERT_EQ(outcome, OffsetIndex::Exchange::kDone);
    store_->Release(before);
    client.model[page] = content;
  }

  void Remove(Client& client) {
    const uint64_t page = RandomPage();
    const Slot before = client.index.Get(PageIndex(page));
    ASSERT_EQ(before.is_empty(), client.model.count(page) == 0);
    if (before.is_empty()) return;
    const auto outcome = client.index.CompareExchange(PageIndex(page), before, Slot::Empty());
    if (outcome == OffsetIndex::Exchange::kNoMemory) return;
    ASSERT_EQ(outcome, OffsetIndex::Exchange::kDone);
    store_->Release(before);
    client.model.erase(page);
  }

  void DropRange(Client& client) {
    const uint64_t begin = RandomPage();
    const uint64_t end = random_() % 4 == 0 ? RandomPage() : begin + random_() % 150;
    std::vector<Slot> dropped;
    client.index.DropRange(PageIndex(begin), PageIndex(end), &dropped);
    for (const Slot slot : dropped) store_->Release(slot);
    if (begin < end) client.model.erase(client.model.lower_bound(begin), client.model.lower_bound(end));
  }

  void Rekey(Client& client) {
    const uint64_t n = 1 + random_() % 150;
    const uint64_t from = RandomPage();
    const uint64_t to = RandomPage();
    if (from + n > kPageIndexLimit || to + n > kPageIndexLimit || (from < to + n && to < from + n)) return;
    std::vector<Slot> dropped;
    client.index.DropRange(PageIndex(to), PageIndex(to + n), &dropped);
    for (const Slot slot : dropped) store_->Release(slot);
    client.model.erase(client.model.lower_bound(to), client.model.lower_bound(to + n));
    if (!client.index.Rekey(PageIndex(from), PageIndex(to), PageCount(n)).ok()) return;
    World::Model moved;
    for (auto it = client.model.lower_bound(from); it != client.model.end() && it->first < from + n;) {
      const Slot slot = client.index.Get(PageIndex(it->first - from + to));
      if (slot.is_handle() && store_->refs(slot) == 1) {
        EXPECT_EQ(store_->GetOwner(slot).page.value(), it->first - from + to);
      }
      moved[it->first - from + to] = it->second;
      it = client.model.erase(it);
    }
    client.model.merge(moved);
  }

  void Clone(Client& client) {
    if (clients_.size() >= 5) return;
    Client copy{client.index.Clone().value(), client.model};
    clients_.push_back(std::move(copy));
  }

  void Kill() {
    if (clients_.size() < 2) return;
    std::swap(clients_[random_() % clients_.size()], clients_.back());
    clients_.pop_back();
  }

  std::mt19937_64 random_;
  std::unique_ptr<PageStore> store_;
  std::unique_ptr<IndexArena> arena_;
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  std::vector<Client> clients_;
  uint64_t last_content_ = 0;
};

void RunSeed(uint64_t seed, uint32_t max_nodes, int steps) {
  SCOPED_TRACE("replay: ZP_SEED=" + std::to_string(seed) + " max_nodes=" + std::to_string(max_nodes));
  World world(seed, max_nodes);
  for (int i = 0; i < steps; ++i) {
    SCOPED_TRACE("step " + std::to_string(i));
    world.Step();
    if (::testing::Test::HasFatalFailure()) return;
    if (i % 64 == 0) world.Verify();
    if (::testing::Test::HasFatalFailure()) return;
  }
  world.Verify();
  world.End();
}

TEST(OffsetIndexModel, AgreesWithMapUnderRandomOperations) {
  const char* fixed = std::getenv("ZP_SEED");
  const uint64_t first = fixed != nullptr ? std::strtoull(fixed, nullptr, 0) : 1;
  for (uint64_t seed = first; seed < first + (fixed != nullptr ? 1 : testing::Rounds(12, 200)); ++seed) {
    RunSeed(seed, IndexArena::kDefaultMaxNodes, 2000);
    if (HasFatalFailure()) return;
  }
}

TEST(OffsetIndexModel, AgreesWithMapWhereNodesRunOut) {
  for (uint64_t seed = 100; seed < 100 + testing::Rounds(8, 100); ++seed) {
    RunSeed(seed, 60, 1500);
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace zp

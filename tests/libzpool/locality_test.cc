// Objects follow their client from node to node, and come back from where they were demoted to. With both
// pools.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/points.h"
#include "tests/libzpool/test_size.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;
using testing::Points;

constexpr NodeId kLeft(0);   // programs run here
constexpr NodeId kRight(1);  // and here
constexpr NodeId kSlow(5);   // memory alone
constexpr unsigned kNoise = 200;

class Locality : public ::testing::TestWithParam<PoolKind> {
 protected:
  struct Held {
    Slot slot;
    uint32_t client;
    uint64_t page;
  };

  Locality() {
    PageStore::Options options;
    options.topology =
        Topology::Made({kLeft, kRight, kSlow}, {{10, 20, 40}, {20, 10, 40}, {40, 40, 10}}).value();
    options.capacity = MiB(64);
    options.pool = GetParam();
    store_ = PageStore::Create(options).value();
  }
  void TearDown() override {
    for (Held& held : held_) Drop(held);
    store_->Trim();
    store_->DebugVerify();
    EXPECT_EQ(store_->stats().pool_bytes, 0u);
    EXPECT_EQ(store_->stats().stored_pages, 0u);
  }

  void Put(uint32_t client, NodeId node) {
    PageBuffer page;
    const uint64_t number = held_.size();
    MakePage(number, client, kNoise, &page);
    held_.push_back(
        {store_->Store(page, {client, PageIndex(number)}, node, *scratch_).value(), client, number});
  }
  void Drop(Held& held) {
    if (!held.slot.is_empty()) store_->Release(held.slot);
    held.slot = Slot::Empty();
  }
  // One of all rounds' steps, until a whole round has moved nothing.
  uint64_t FollowAll(Compactor& compactor, NodeId node, const Compactor::HomeOf& home, Bytes step = KiB(64)) {
    uint64_t all = 0;
    for (uint64_t in_round = 0;;) {
      const Compactor::Locality done = compactor.LocalityStep(node, home, step);
      // An object more than asked for, and what was listed with it.
      EXPECT_LE(done.moved_bytes, step.value() + ObjectMover::kBatch * kPageBytes);
      all += done.moved_bytes;
      in_round += done.moved_bytes;
      if (!done.round_ended) continue;
      if (in_round == 0) return all;
      in_round = 0;
    }
  }
  uint64_t CountOn(NodeId node, uint32_t client) const {
    return static_cast<uint64_t>(std::count_if(held_.begin(), held_.end(), [&](const Held& held) {
      return !held.slot.is_empty() && held.client == client && store_->NodeOfObject(held.slot) == node;
    }));
  }
  void ExpectAllThere() {
    PageBuffer page;
    PageBuffer out;
    for (const Held& held : held_) {
      if (held.slot.is_empty()) continue;
      MakePage(held.page, held.client, kNoise, &page);
      ASSERT_EQ(store_->Load(held.slot, out, *scratch_), LoadOutcome::kLoaded) << held.page;
      ASSERT_EQ(page, out) << held.page;
    }
  }
  uint64_t PermilleOf(NodeId node) const {
    const NodeStats stats = store_->node_stats(node);
    return stats.pool_bytes * 1000 / stats.capacity_bytes;
  }

  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  std::vector<Held> held_;
};

// Client 1 is at home on the left, client 2 on the right; of client 3 nobody knows.
std::optional<NodeId> HomeByNumber(uint32_t client) {
  if (client == 1) return kLeft;
  if (client == 2) return kRight;
  return std::nullopt;
}

TEST_P(Locality, ObjectsFollowTheirClientAndOthersStay) {
  for (int i = 0; i < 900; ++i) Put(static_cast<uint32_t>(1 + i % 3), kLeft);
  Compactor compactor(*store_, {});
  const uint64_t bytes = store_->stats().stored_bytes;
  const uint64_t moved = FollowAll(compactor, kLeft, HomeByNumber);
  EXPECT_EQ(CountOn(kLeft, 1), 300u);
  EXPECT_EQ(CountOn(kRight, 2), 300u);
  EXPECT_EQ(CountOn(kLeft, 3), 300u);
  const CompactorStats stats = compactor.stats();
  EXPECT_EQ(stats.followed_objects, 300u);
  EXPECT_EQ(stats.followed_bytes[kRight.value()], moved);
  EXPECT_EQ(stats.followed_bytes_of_all(), moved);
  EXPECT_EQ(store_->node_stats(kRight).stored_bytes, moved);
  EXPECT_EQ(store_->stats().stored_bytes, bytes);
  EXPECT_EQ(FollowAll(compactor, kRight, HomeByNumber), 0u);
  ExpectAllThere();
  store_->DebugVerify();
}

TEST_P(Locality, StandbyFramesFollow) {
  PageBuffer page;
  for (uint64_t i = 0; i < 200; ++i) {
    MakePage(i, 2, kNoise, &page);
    held_.push_back({store_->StoreRaw(page, {2, PageIndex(i)}, kLeft).value(), 2, i});
  }
  Compactor compactor(*store_, {});
  FollowAll(compactor, kLeft, HomeByNumber);
  EXPECT_EQ(CountOn(kRight, 2), 200u);
  ExpectAllThere();
}

TEST_P(Locality, NodesThatAreClosedOrUnknownTakeNothing) {
  for (int i = 0; i < 200; ++i) Put(2, kLeft);
  Compactor compactor(*store_, {});
  store_->SetNodeAccepts(kRight, false);
  EXPECT_EQ(FollowAll(compactor, kLeft, HomeByNumber), 0u);
  store_->SetNodeAccepts(kRight, true);
  EXPECT_EQ(FollowAll(compactor, kLeft, [](uint32_t) { return NodeId(7); }), 0u);
  EXPECT_EQ(FollowAll(compactor, kLeft, [](uint32_t) { return NodeId(200); }), 0u);
  EXPECT_EQ(CountOn(kLeft, 2), 200u);
  EXPECT_GT(FollowAll(compactor, kLeft, HomeByNumber), 0u);
}

TEST_P(Locality, PinnedObjectsStay) {
  for (int i = 0; i < 20; ++i) Put(2, kLeft);
  const auto bytes = store_->Pin(held_[7].slot).value();
  const std::vector<std::byte> content(bytes.begin(), bytes.end());
  Compactor compactor(*store_, {});
  FollowAll(compactor, kLeft, HomeByNumber);
  EXPECT_EQ(store_->NodeOfObject(held_[7].slot), kLeft);
  EXPECT_TRUE(std::equal(content.begin(), content.end(), bytes.begin()));
  store_->Unpin(held_[7].slot);
  FollowAll(compactor, kLeft, HomeByNumber);
  EXPECT_EQ(CountOn(kRight, 2), 20u);
}

TEST_P(Locality, RateLimitsWhatIsCopied) {
  for (int i = 0; i < 600; ++i) Put(2, kLeft);
  Compactor compactor(*store_, {1});
  EXPECT_EQ(compactor.LocalityStep(kLeft, HomeByNumber, MiB(1)).moved_bytes, 0u);
}

// What is demoted comes back when there is room again, and not before: the two don't play with each other.
TEST_P(Locality, DemotedObjectsComeBackWhenThereIsRoomAndDoNotGoRound) {
  for (int i = 0; i < 3000; ++i) Put(1, kLeft);
  store_->SetNodeCapacity(kLeft, Bytes(store_->node_stats(kLeft).pool_bytes));
  Compactor::Options options;
  options.demotion_order = {kLeft, kSlow};
  Compactor compactor(*store_, options);
  const auto settle = [&] {
    for (;;) {
      uint64_t moved = FollowAll(compactor, kSlow, HomeByNumber);
      while (const uint64_t demoted = compactor.DemoteStep(MiB(1))) moved += demoted;
      while (const uint64_t packed = compactor.CompactStep(kLeft, MiB(1))) moved += packed;
      while (const uint64_t packed = compactor.CompactStep(kSlow, MiB(1))) moved += packed;
      store_->Trim();
      if (moved == 0) return;
    }
  };
  settle();
  const uint64_t demoted = CountOn(kSlow, 1);
  EXPECT_GT(demoted, 300u);
  EXPECT_EQ(compactor.stats().followed_objects, 0u) << "the node is at its low watermark: nothing may return";
  // Objects come and go; the node stays between the watermarks.
  std::mt19937_64 random(3);
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 100; ++i) {
      Held* held = nullptr;
      do held = &held_[random() % held_.size()];
      while (held->slot.is_empty() || store_->NodeOfObject(held->slot) != kLeft);
      Drop(*held);
      Put(1, kLeft);
    }
    settle();
  }
  EXPECT_EQ(compactor.stats().followed_objects, 0u);
  // Now there is room.
  for (Held& held : held_) {
    if (!held.slot.is_empty() && held.page % 3 != 0 && store_->NodeOfObject(held.slot) == kLeft) Drop(held);
  }
  settle();
  EXPECT_EQ(CountOn(kSlow, 1), 0u);
  EXPECT_EQ(compactor.stats().followed_bytes[kLeft.value()], compactor.stats().followed_bytes_of_all());
  ExpectAllThere();
}

TEST_P(Locality, ReturnStopsAtItsWatermark) {
  for (int i = 0; i < 2000; ++i) Put(1, kSlow);
  store_->SetNodeCapacity(kLeft, Bytes(store_->node_stats(kSlow).pool_bytes / 2));
  Compactor compactor(*store_, {});
  FollowAll(compactor, kSlow, HomeByNumber);
  EXPECT_GE(PermilleOf(kLeft), 700u);
  EXPECT_LT(PermilleOf(kLeft), 850u);
  EXPECT_GT(CountOn(kSlow, 1), 500u);
}

TEST_P(Locality, FullTargetIsAskedOnceAndLosesNothing) {
  for (int i = 0; i < 500; ++i) Put(2, kLeft);
  store_->SetNodeCapacity(kRight, KiB(64));
  Compactor::Options options;
  options.return_permille = 5000;  // so that the limit is met, not the watermark
  Compactor compactor(*store_, options);
  FollowAll(compactor, kLeft, HomeByNumber);
  EXPECT_LE(store_->node_stats(kRight).pool_bytes, 64u << 10);
  EXPECT_GT(CountOn(kLeft, 2), 300u);
  ExpectAllThere();
  store_->DebugVerify();
}

// An object is freed between its copy and its publication, or behind it: it is freed once.
TEST_P(Locality, ObjectsFreedInTheMiddleAreFreedOnce) {
  for (int i = 0; i < 60; ++i) Put(2, kLeft);
  Compactor compactor(*store_, {});
  int copied = 0;
  {
    Points points;
    points.On("object.copied", [&] {
      if (copied % 3 == 0) Drop(held_[static_cast<size_t>(copied)]);
      ++copied;
    });
    points.On("object.published", [&] {
      for (const size_t i : {1, 4, 50}) Drop(held_[i]);
    });
    FollowAll(compactor, kLeft, HomeByNumber);
  }
  EXPECT_GT(copied, 20);
  ExpectAllThere();
  store_->DebugVerify();
  EXPECT_EQ(store_->stats().stored_pages, CountOn(kRight, 2) + CountOn(kLeft, 2));
}

TEST_P(Locality, FollowersDisturbNobody) {
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> turn{0};
  Compactor compactor(*store_, {});
  const auto swinging = [&](uint32_t client) -> std::optional<NodeId> {
    return (client + turn.load()) % 2 == 0 ? kLeft : kRight;
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (uint64_t i = 0; !stop.load(); ++i) {
        const NodeId node = i % 2 == 0 ? kLeft : kRight;
        if (compactor.LocalityStep(node, swinging, KiB(64)).round_ended) turn.fetch_add(1);
        if (i % 7 == 0) compactor.CompactStep(node, KiB(64));
      }
    });
  }
  std::vector<std::thread> users;
  for (uint32_t t = 0; t < 2; ++t) {
    users.emplace_back([&, t] {
      std::mt19937_64 random(t);
      auto scratch = std::make_unique<Scratch>();
      std::vector<std::pair<Slot, uint64_t>> mine;
      PageBuffer page;
      PageBuffer out;
      const uint64_t rounds = testing::Rounds(20000, 200000);
      for (uint64_t i = 0; i < rounds; ++i) {
        if (mine.size() < 400 || random() % 2 == 0) {
          const uint64_t number = (uint64_t{t} << 32) + i;
          MakePage(number, 1, static_cast<unsigned>(number * 37 % 513), &page);
          mine.emplace_back(
              store_->Store(page, {static_cast<uint32_t>(i % 5), PageIndex(i)}, kLeft, *scratch).value(),
              number);
          continue;
        }
        std::swap(mine[random() % mine.size()], mine.back());
        const auto [slot, number] = mine.back();
        MakePage(number, 1, static_cast<unsigned>(number * 37 % 513), &page);
        ASSERT_EQ(store_->Load(slot, out, *scratch), LoadOutcome::kLoaded);
        ASSERT_EQ(page, out);
        store_->Release(slot);
        mine.pop_back();
      }
      for (const auto& [slot, number] : mine) store_->Release(slot);
    });
  }
  for (std::thread& thread : users) thread.join();
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(compactor.stats().followed_objects, 0u);
}

INSTANTIATE_TEST_SUITE_P(Pools, Locality, ::testing::Values(PoolKind::kZsmalloc, PoolKind::kZbud),
                         [](const auto& of) { return kPoolNames[static_cast<size_t>(of.param)]; });

}  // namespace
}  // namespace zp

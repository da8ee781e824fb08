#include "daemon/pool/pool_keeper.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "daemon/client/home_node.h"
#include "tests/libzpool/pages.h"

namespace uzswap {
namespace {

// Waits for what the keeper's thread does.
bool Becomes(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!condition() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  return condition();
}

TEST(PoolKeeper, PacksAPoolThatShrankAndThenLeavesItAlone) {
  zp::PageStore::Options options;
  options.capacity = zp::MiB(64);
  auto store = std::move(*zp::PageStore::Create(options));
  auto scratch = std::make_unique<zp::Scratch>();
  zp::testing::PageBuffer page;
  std::vector<zp::Slot> slots;
  for (uint64_t i = 0; i < 6000; ++i) {
    zp::testing::MakePage(i, 1, 200, &page);
    slots.push_back(store->Store(page, {1, zp::PageIndex(i)}, zp::NodeId(0), *scratch).value());
  }
  PoolKeeper keeper(*store);
  keeper.Start();
  for (uint64_t i = 0; i < slots.size(); ++i) {
    if (i % 8 != 0) store->Release(slots[i]);
  }
  const auto density = [&] {
    const zp::PoolStats stats = store->stats();
    return static_cast<double>(stats.stored_bytes) / static_cast<double>(stats.pool_bytes);
  };
  EXPECT_LT(density(), .6);
  EXPECT_TRUE(Becomes([&] { return density() >= .9; })) << density();
  keeper.Stop();
  zp::testing::PageBuffer out;
  for (uint64_t i = 0; i < slots.size(); i += 8) {
    zp::testing::MakePage(i, 1, 200, &page);
    ASSERT_EQ(store->Load(slots[i], out, *scratch), zp::LoadOutcome::kLoaded);
    ASSERT_EQ(page, out);
    store->Release(slots[i]);
  }
}

TEST(PoolKeeper, ObjectsFollowClientsThatMove) {
  zp::PageStore::Options options;
  options.capacity = zp::MiB(64);
  options.topology = zp::Topology::Made({zp::NodeId(0), zp::NodeId(2), zp::NodeId(5)},
                                        {{10, 20, 40}, {20, 10, 40}, {40, 40, 10}})
                         .value();
  auto store = std::move(*zp::PageStore::Create(options));
  auto scratch = std::make_unique<zp::Scratch>();
  zp::testing::PageBuffer page;
  std::vector<zp::Slot> slots;
  for (uint64_t i = 0; i < 1200; ++i) {
    zp::testing::MakePage(i, 1, 200, &page);
    const auto client = static_cast<uint32_t>(1 + i % 3);
    slots.push_back(store->Store(page, {client, zp::PageIndex(i)}, zp::NodeId(0), *scratch).value());
  }
  const auto on = [&](uint8_t node) { return store->node_stats(zp::NodeId(node)).objects; };
  std::atomic<uint8_t> second{0};
  PoolKeeper keeper(*store, [&] {
    return PoolKeeper::Homes{{1, zp::NodeId(0)}, {2, zp::NodeId(second.load())}};
  });
  keeper.Start();
  second.store(2);
  EXPECT_TRUE(Becomes([&] { return on(2) == 400; }));
  second.store(0);
  EXPECT_TRUE(Becomes([&] { return on(0) == 1200; }));
  keeper.Stop();
  EXPECT_EQ(on(5), 0u);
  EXPECT_EQ(keeper.stats().followed_objects, 800u);
  zp::testing::PageBuffer out;
  for (uint64_t i = 0; i < slots.size(); ++i) {
    zp::testing::MakePage(i, 1, 200, &page);
    ASSERT_EQ(store->Load(slots[i], out, *scratch), zp::LoadOutcome::kLoaded);
    ASSERT_EQ(page, out);
    store->Release(slots[i]);
  }
}

TEST(HomeNode, IsWhereAllLooksOfAWhileFoundIt) {
  constexpr uint64_t kSecond = 1'000'000'000;
  constexpr uint64_t kBegin = 50 * kSecond;
  HomeNode home;
  EXPECT_FALSE(home.Settled(kBegin).has_value());
  EXPECT_EQ(home.now(), zp::NodeId(0));
  home.Observe(zp::NodeId(3), kBegin);
  EXPECT_EQ(home.now(), zp::NodeId(3));
  EXPECT_FALSE(home.Settled(kBegin + 9 * kSecond).has_value());
  home.Observe(zp::NodeId(3), kBegin + 9 * kSecond);
  EXPECT_EQ(home.Settled(kBegin + 10 * kSecond), zp::NodeId(3));
  // To and fro: nowhere at home.
  home.Observe(zp::NodeId(0), kBegin + 11 * kSecond);
  EXPECT_EQ(home.now(), zp::NodeId(0));
  home.Observe(zp::NodeId(3), kBegin + 12 * kSecond);
  EXPECT_EQ(home.now(), zp::NodeId(3));
  EXPECT_FALSE(home.Settled(kBegin + 21 * kSecond).has_value());
  EXPECT_EQ(home.Settled(kBegin + 22 * kSecond), zp::NodeId(3));
}

}  // namespace
}  // namespace uzswap

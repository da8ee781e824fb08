#include "daemon/pool/pool_keeper.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/libzpool/pages.h"

namespace uzswap {
namespace {

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
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (density() < .9 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_GE(density(), .9);
  keeper.Stop();
  zp::testing::PageBuffer out;
  for (uint64_t i = 0; i < slots.size(); i += 8) {
    zp::testing::MakePage(i, 1, 200, &page);
    ASSERT_EQ(store->Load(slots[i], out, *scratch), zp::LoadOutcome::kLoaded);
    ASSERT_EQ(page, out);
    store->Release(slots[i]);
  }
}

}  // namespace
}  // namespace uzswap

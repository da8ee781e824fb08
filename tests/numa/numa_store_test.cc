// A PageStore on the nodes of a real machine (a guest, see README.md): frames lie where they should.
//
// UZSWAP_TEST_NODES says which nodes have memory ("0,2"), told by who made the machine.
#include <gtest/gtest.h>
#include <numa.h>
#include <numaif.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/frame/topology.h"
#include "libzpool/store/page_store.h"
#include "tests/libzpool/pages.h"
#include "tests/numa/frame_places.h"

namespace zp {
namespace {

using testing::FramePlaces;
using testing::FramesByNode;
using testing::MakePage;
using testing::PageBuffer;

int Number(NodeId node) { return node.value(); }  // a uint8_t would be printed as a character

// A store on all nodes of the machine, and what was put into it.
class NumaStore : public ::testing::Test {
 protected:
  struct Stored {
    Slot slot;
    uint64_t page;
    unsigned noise;
  };

  ~NumaStore() override { ReleaseAll(); }

  const std::vector<NodeId>& nodes() const { return topology_.nodes(); }

  // Stores one more page, which is nobody else's. `noise` as MakePage has it: how much does not compress.
  bool StoreOne(NodeId preferred, unsigned noise) {
    const uint64_t page = stored_.size();
    PageBuffer content;
    MakePage(page, 1, noise, &content);
    const Result<Slot> slot = store_->Store(content, {1, PageIndex(page)}, preferred, *scratch_);
    if (slot.ok()) stored_.push_back({*slot, page, noise});
    return slot.ok();
  }
  void StoreMany(NodeId preferred, int count) {
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(StoreOne(preferred, static_cast<unsigned>(20 + i * 37 % 480))) << "page " << i;
    }
  }

  void ReleaseAll() {
    for (const Stored& stored : stored_) store_->Release(stored.slot);
    stored_.clear();
  }

  // Every page reads back, and the frames that are counted are there, and no others.
  void VerifyAll() {
    uint64_t wrong = 0;
    PageBuffer expected;
    PageBuffer loaded;
    for (const Stored& stored : stored_) {
      MakePage(stored.page, 1, stored.noise, &expected);
      const LoadOutcome outcome = store_->Load(stored.slot, loaded, *scratch_);
      wrong += outcome != LoadOutcome::kLoaded || loaded != expected;
    }
    EXPECT_EQ(wrong, 0u) << "of " << stored_.size() << " pages";
    uint64_t frames = 0;
    for (const NodeId node : nodes()) frames += FramesAt(node);
    EXPECT_EQ(frames * kPageBytes, store_->pool_bytes());
    store_->DebugVerify();
  }

  // How many frames lie on the arena's own node; frames of it elsewhere are failures.
  uint64_t FramesAt(NodeId home) {
    const std::map<int, FramesByNode> places = FramePlaces(*store_);
    uint64_t at_home = 0;
    for (const auto& [node, frames] : places.at(Number(home))) {
      EXPECT_EQ(node, Number(home)) << "the place of " << frames << " frames of node " << Number(home);
      if (node == Number(home)) at_home += frames;
    }
    return at_home;
  }

  const Topology topology_ = Topology::Detect();
  // More than the machine has: no node is spared by the budget.
  const std::unique_ptr<PageStore> store_ = PageStore::Create({topology_, MiB(4096), CodecId::kLz4}).value();
  const std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  std::vector<Stored> stored_;
};

// Memory of one node that can't be reclaimed, so that little of it is left for others.
class Hog {
 public:
  Hog(NodeId node, Bytes leave) {
    const unsigned long mask = 1UL << node.value();
    long long free_bytes = 0;
    while (numa_node_size64(node.value(), &free_bytes) > 0 &&
           static_cast<uint64_t>(free_bytes) > leave.value() + kStep) {
      void* const at = mmap(nullptr, kStep, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (at == MAP_FAILED) break;
      taken_.push_back(at);
      if (mbind(at, kStep, MPOL_BIND, &mask, sizeof(mask) * 8 + 1, 0) != 0) break;
      if (madvise(at, kStep, MADV_POPULATE_WRITE) != 0) break;
    }
  }
  ~Hog() {
    for (void* const at : taken_) munmap(at, kStep);
  }
  Hog(const Hog&) = delete;
  Hog& operator=(const Hog&) = delete;

 private:
  static constexpr size_t kStep = size_t{1} << 20;
  std::vector<void*> taken_;
};

TEST_F(NumaStore, DetectFindsTheNodesThatHaveMemory) {
  const char* const expected = std::getenv("UZSWAP_TEST_NODES");
  if (expected == nullptr) GTEST_SKIP() << "UZSWAP_TEST_NODES is not set";
  std::string found;
  for (const NodeId node : nodes()) found += (found.empty() ? "" : ",") + std::to_string(Number(node));
  EXPECT_EQ(found, expected);
  EXPECT_TRUE(topology_.is_real());
}

TEST_F(NumaStore, FallbackGoesByTheKernelsDistances) {
  for (const NodeId node : nodes()) {
    const std::vector<uint8_t>& order = topology_.FallbackOrder(node);
    ASSERT_EQ(order.size(), nodes().size());
    EXPECT_EQ(nodes()[order[0]], node);
    for (size_t i = 1; i < order.size(); ++i) {
      EXPECT_LE(numa_distance(Number(node), Number(nodes()[order[i - 1]])),
                numa_distance(Number(node), Number(nodes()[order[i]])));
    }
  }
}

// From a CPU of each node, so that "where the thread runs" is mostly the wrong answer.
TEST_F(NumaStore, FramesLieOnThePreferredNode) {
  for (int from = 0; from <= numa_max_node(); ++from) {
    if (numa_run_on_node(from) != 0) continue;  // no CPU
    for (const NodeId preferred : nodes()) {
      const uint64_t before = FramesAt(preferred);
      ASSERT_NO_FATAL_FAILURE(StoreMany(preferred, 500));
      EXPECT_GT(FramesAt(preferred), before + 100) << "stored from node " << from;
    }
  }
  numa_run_on_node(-1);
  VerifyAll();
}

TEST_F(NumaStore, FreedFramesComeBackOnTheSameNode) {
  for (int round = 0; round < 3; ++round) {
    for (const NodeId node : nodes()) {
      ASSERT_NO_FATAL_FAILURE(StoreMany(node, 300));
      EXPECT_GT(FramesAt(node), 0u);
    }
    VerifyAll();
    ReleaseAll();
    store_->Trim();
    for (const NodeId node : nodes()) EXPECT_EQ(FramesAt(node), 0u);
  }
}

TEST_F(NumaStore, DrainLeavesNoFrameAndKeepsEveryHandle) {
  if (nodes().size() < 2) GTEST_SKIP() << "one node";
  Compactor compactor(*store_, {});
  for (const PoolKind pool : {PoolKind::kZsmalloc, PoolKind::kZbud}) {
    store_->set_pool(pool);
    for (const NodeId node : nodes()) {
      ASSERT_NO_FATAL_FAILURE(StoreMany(node, 600));
      EXPECT_GT(FramesAt(node), 100u);
      store_->SetNodeAccepts(node, false);
      Compactor::Drain drain;
      for (int steps = 0; steps < 1000; ++steps) {
        drain = compactor.DrainStep(node, MiB(1), MigrateMode::kSync);
        if (drain.left_bytes == 0) break;
      }
      EXPECT_EQ(drain.left_bytes, 0u);
      // None of any arena, by the kernel's word.
      for (const auto& [home, places] : FramePlaces(*store_)) {
        EXPECT_EQ(places.count(Number(node)), 0u) << "frames of arena " << home;
      }
      VerifyAll();
      store_->SetNodeAccepts(node, true);
    }
  }
}

TEST_F(NumaStore, ObjectsFollowTheirClient) {
  if (nodes().size() < 2) GTEST_SKIP() << "one node";
  ASSERT_NO_FATAL_FAILURE(StoreMany(nodes()[0], 300));
  for (const Stored& stored : stored_) {
    ASSERT_TRUE(!stored.slot.is_handle() || store_->MoveObject(stored.slot, nodes()[1]).ok());
  }
  store_->Trim();
  EXPECT_EQ(FramesAt(nodes()[0]), 0u);
  EXPECT_GT(FramesAt(nodes()[1]), 50u);
  VerifyAll();
}

TEST_F(NumaStore, ObjectsOfAClientThatMovesFollow) {
  if (nodes().size() < 2) GTEST_SKIP() << "one node";
  Compactor compactor(*store_, {});
  for (const PoolKind pool : {PoolKind::kZsmalloc, PoolKind::kZbud}) {
    store_->set_pool(pool);
    ASSERT_NO_FATAL_FAILURE(StoreMany(nodes()[0], 600));
    // To each node in turn, those without CPU included.
    for (size_t to = 1; to <= nodes().size(); ++to) {
      const NodeId from = nodes()[to - 1];
      const NodeId home = nodes()[to % nodes().size()];
      for (bool ended = false; !ended;) {
        ended = compactor
                    .LocalityStep(
                        from, [&](uint32_t) { return home; }, MiB(1))
                    .round_ended;
      }
      store_->Trim();
      EXPECT_EQ(FramesAt(from), 0u);
      EXPECT_GT(FramesAt(home), 100u);
      VerifyAll();
    }
  }
}

TEST_F(NumaStore, FullNodeFallsBackToTheNearest) {
  if (nodes().size() < 2) GTEST_SKIP() << "one node";
  for (const NodeId full : nodes()) {
    const NodeId next = nodes()[topology_.FallbackOrder(full)[1]];
    const Hog hog(full, MiB(48));
    const uint64_t before = FramesAt(next);
    // 160 MiB that don't compress.
    for (int i = 0; i < 40 * 1024 && FramesAt(next) < before + 1000; ++i) {
      for (int j = 0; j < 1024; ++j, ++i) ASSERT_TRUE(StoreOne(full, 512)) << "page " << i;
    }
    EXPECT_GE(FramesAt(next), before + 1000) << "node " << Number(full) << " never was full";
    EXPECT_GT(FramesAt(full), 1000u);
    VerifyAll();
    ReleaseAll();
    store_->Trim();
  }
}

}  // namespace
}  // namespace zp

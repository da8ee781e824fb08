// Exact interleavings of loads, stores and frees with whatever moves objects: an own thread, or the same one,
// acts where the other has reached a pause point. Each way to move is one row.
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "libzpool/compact/compactor.h"
#include "libzpool/store/page_store.h"
#include "tests/libzpool/one_cpu.h"
#include "tests/libzpool/pages.h"
#include "tests/libzpool/points.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;
using testing::Points;

constexpr NodeId kNear(0);
constexpr NodeId kFar(5);

struct Way {
  const char* name;
  PoolKind pool;
  uint64_t pages;
  // Which pages are released before, so that there is something to move.
  std::function<bool(uint64_t)> released;
  std::function<void(PageStore&, Compactor&, Slot)> move;
  const char* copied;     // the pause point behind a copy
  const char* published;  // and that behind all publications, before readers are waited for
};

// What is busy stays: who waited for it here, in its own thread, would wait for ever.
void Drain(PageStore& store, Compactor& compactor, Slot) {
  store.SetNodeAccepts(kNear, false);
  while (compactor.DrainStep(kNear, MiB(8), MigrateMode::kAsync).moved_bytes != 0) {
  }
  store.SetNodeAccepts(kNear, true);
}
void Compact(PageStore&, Compactor& compactor, Slot) {
  int steps = 0;
  while (compactor.CompactStep(kNear, MiB(8)) != 0) ASSERT_LT(++steps, 1000) << "the same again and again";
}
void Follow(PageStore& store, Compactor&, Slot slot) { (void)store.MoveObject(slot, kFar); }

const Way kWays[] = {
    {"DrainOfZsmalloc", PoolKind::kZsmalloc, 100, [](uint64_t) { return false; }, Drain, "move.copied",
     "migrate.published"},
    {"DrainOfZbud", PoolKind::kZbud, 100, [](uint64_t) { return false; }, Drain, "move.copied",
     "migrate.published"},
    // Two full zspages of 150 objects, of the last some: they go into the few holes of the others.
    {"HolesOfZsmalloc", PoolKind::kZsmalloc, 330,
     [](uint64_t i) { return i < 300 ? i % 10 == 0 : i % 10 != 0; }, Compact, "move.copied",
     "compact.published"},
    {"MergeOfZsmalloc", PoolKind::kZsmalloc, 600, [](uint64_t i) { return i % 10 != 0; }, Compact,
     "move.copied", "compact.published"},
    {"PairsOfZbud", PoolKind::kZbud, 100, [](uint64_t i) { return i % 2 == 0; }, Compact, "compact.copied",
     "compact.published"},
    {"OneObjectOfZsmalloc", PoolKind::kZsmalloc, 100, [](uint64_t) { return false; }, Follow, "object.copied",
     "object.published"},
    {"OneObjectOfZbud", PoolKind::kZbud, 100, [](uint64_t) { return false; }, Follow, "object.copied",
     "object.published"},
};
void PrintTo(const Way& way, std::ostream* out) { *out << way.name; }

class Interleaving : public ::testing::TestWithParam<Way> {
 protected:
  static constexpr unsigned kNoise = 200;

  Interleaving() {
    const testing::OneCpu one_cpu;
    PageStore::Options options;
    options.topology = Topology::Made({kNear, kFar}, {{10, 20}, {20, 10}}).value();
    options.capacity = MiB(16);
    options.pool = GetParam().pool;
    store_ = PageStore::Create(options).value();
    compactor_ = std::make_unique<Compactor>(*store_, Compactor::Options{});
    for (uint64_t i = 0; i < GetParam().pages; ++i) Store();
    for (uint64_t i = 0; i < slots_.size(); ++i) {
      if (GetParam().released(i)) Drop(i);
    }
    for (uint64_t i = 0; i < slots_.size(); ++i) places_.push_back(PlaceOf(i));
  }

  void Store() {
    PageBuffer page;
    MakePage(slots_.size(), 1, kNoise, &page);
    slots_.push_back(store_->Store(page, {1, PageIndex(slots_.size())}, kNear, *scratch_).value());
  }
  void Drop(uint64_t i) {
    store_->Release(slots_[i]);
    slots_[i] = Slot::Empty();
  }
  void Move(uint64_t i) { GetParam().move(*store_, *compactor_, slots_[i]); }
  // Moves everything once, where some thread comes to `point`; sets `reached` then.
  void MoveAt(Points& points, const char* point, bool* reached) {
    points.On(point, [this, reached] {
      if (*reached) return;
      *reached = true;
      uint64_t some = 0;
      while (slots_[some].is_empty()) ++some;
      Move(some);
    });
  }
  // Null where it can't be told.
  const std::byte* PlaceOf(uint64_t i) {
    if (slots_[i].is_empty()) return nullptr;
    const auto pinned = store_->Pin(slots_[i]);
    if (!pinned.ok()) return nullptr;
    store_->Unpin(slots_[i]);
    return pinned->data();
  }
  bool IsRight(uint64_t i) {
    PageBuffer page, out;
    auto scratch = std::make_unique<Scratch>();
    MakePage(i, 1, kNoise, &page);
    return store_->Load(slots_[i], out, *scratch) == LoadOutcome::kLoaded && page == out;
  }
  // Page that a dry run, in a store made alike, moves; the first such.
  static uint64_t OneThatMoves() {
    struct Dry : Interleaving {
      void TestBody() override {}
    } dry;
    uint64_t some = 0;
    while (dry.slots_[some].is_empty()) ++some;
    dry.Move(some);
    for (uint64_t i = 0; i < dry.slots_.size(); ++i) {
      if (!dry.slots_[i].is_empty() && dry.PlaceOf(i) != dry.places_[i]) return i;
    }
    return ~uint64_t{0};
  }
  ~Interleaving() override {
    for (uint64_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].is_empty()) continue;
      EXPECT_TRUE(IsRight(i)) << i;
      Drop(i);
    }
    store_->Trim();
    store_->DebugVerify();
    EXPECT_EQ(store_->stats().pool_bytes, 0u);
    EXPECT_EQ(store_->stats().stored_pages, 0u);
  }

  std::unique_ptr<PageStore> store_;
  std::unique_ptr<Compactor> compactor_;
  std::unique_ptr<Scratch> scratch_ = std::make_unique<Scratch>();
  std::vector<Slot> slots_;
  std::vector<const std::byte*> places_;
};

// A reader has the old place; the object is moved and published; the mover has to wait for the reader, which
// then reads bytes that still are there. Only after that the frame goes, which a reader of the word sees.
TEST_P(Interleaving, ReaderOfTheOldPlaceIsWaitedFor) {
  const uint64_t page = OneThatMoves();
  ASSERT_LT(page, slots_.size());
  Points points;
  std::mutex mu;
  std::condition_variable changed;
  std::thread::id reader_id;
  bool located = false, published = false;
  std::atomic<bool> read{false}, moved{false};
  points.On("load.located", [&] {
    std::unique_lock lock(mu);
    if (std::this_thread::get_id() != reader_id) return;
    located = true;
    changed.notify_all();
    changed.wait(lock, [&] { return published; });
    lock.unlock();
    // The mover is behind its publication, and waits or is about to.
    for (int i = 0; i < 1000; ++i) sched_yield();
    EXPECT_FALSE(moved.load()) << "the mover gave the place back under the reader";
    read.store(true);
  });
  points.On(GetParam().published, [&] {
    std::lock_guard lock(mu);
    published = true;
    changed.notify_all();
  });
  std::thread reader([&] {
    {
      std::lock_guard lock(mu);
      reader_id = std::this_thread::get_id();
    }
    EXPECT_TRUE(IsRight(page));
  });
  {
    std::unique_lock lock(mu);
    changed.wait(lock, [&] { return located; });
  }
  Move(page);
  moved.store(true);
  EXPECT_TRUE(read.load()) << "the mover did not wait";
  reader.join();
  EXPECT_NE(PlaceOf(page), places_[page]);
}

// Freed between copy and publication, or between publication and the end: once, wherever it then was.
TEST_P(Interleaving, ObjectsFreedWhileTheyMoveAreFreedOnce) {
  const uint64_t page = OneThatMoves();
  ASSERT_LT(page, slots_.size());
  const uint64_t before = store_->stats().stored_pages;
  uint64_t freed[2] = {};
  {
    Points points;
    // The one that moves, and others, which were moved, or are about to be, or stay.
    const auto drop = [&](uint64_t first, uint64_t* count) {
      for (uint64_t i = first; i < slots_.size() && *count < 5; ++i) {
        if (slots_[i].is_empty()) continue;
        Drop(i);
        ++*count;
      }
    };
    points.On(GetParam().copied, [&] { drop(page, &freed[0]); });
    points.On(GetParam().published, [&] { drop(0, &freed[1]); });
    Move(page);
  }
  ASSERT_EQ(freed[0], 5u) << "nothing moved";
  ASSERT_EQ(freed[1], 5u) << "nothing moved";
  EXPECT_EQ(store_->stats().stored_pages, before - freed[0] - freed[1]);
  store_->DebugVerify();
}

// A mover comes to an object of which nobody knows yet, or that is about to go: at each step of a store and
// of a release everything is moved.
TEST_P(Interleaving, StoresAndReleasesStandMovesAtEveryStep) {
  for (const char* const point : {"store.placed", "handles.taken", "store.published"}) {
    SCOPED_TRACE(point);
    bool reached = false;
    {
      Points points;
      MoveAt(points, point, &reached);
      Store();
    }
    EXPECT_TRUE(reached);
    EXPECT_TRUE(IsRight(slots_.size() - 1));
    store_->DebugVerify();
  }
  for (const char* const point : {"release.unreferenced", "release.retired", "release.freed"}) {
    SCOPED_TRACE(point);
    bool reached = false;
    uint64_t last = slots_.size() - 1;
    while (slots_[last].is_empty()) --last;
    const Slot slot = slots_[last];
    {
      Points points;
      MoveAt(points, point, &reached);
      slots_[last] = Slot::Empty();
      store_->Release(slot);
    }
    EXPECT_TRUE(reached);
    store_->DebugVerify();
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, Interleaving, ::testing::ValuesIn(kWays),
                         [](const auto& of) { return std::string(of.param.name); });

}  // namespace
}  // namespace zp

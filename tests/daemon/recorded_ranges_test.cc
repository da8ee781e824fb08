// RecordedRanges against a RangeSet: what a successor finds after a death at any step.
#include "daemon/state/recorded_ranges.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

#include "libzpool/base/pause_point.h"

namespace uzswap {
namespace {

constexpr uint64_t kPage = 4096;

class RecordedRangesTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { table_ = new ClientTable(ClientTable::Create().value()); }
  static void TearDownTestSuite() {
    delete table_;
    table_ = nullptr;
  }

  void SetUp() override {
    record_ = table_->Allocate().value();
    current_ = this;
    zp::SetPauseHandler([](const char*) { current_->AtPoint(); });
  }
  void TearDown() override {
    zp::SetPauseHandler(nullptr);
    table_->Free(record_);
  }

  // What a successor finds that goes on from here.
  struct Remains {
    uint32_t used;
    std::vector<AddressRange> slots;
  };
  Remains Now() const {
    const auto slots = table_->ranges(record_).first(record_->ranges_used);
    return {record_->ranges_used, {slots.begin(), slots.end()}};
  }
  void AtPoint() {
    if (collecting_) remains_.push_back(Now());
  }

  // Another record with what remained, and its set.
  struct Successor {
    Successor(const Remains& remains) : record(table_->Allocate().value()), ranges(*table_, record) {
      EXPECT_TRUE(remains.used == 0 || table_->PopulateRanges(record, 1));
      std::copy(remains.slots.begin(), remains.slots.end(), table_->ranges(record).begin());
      record->ranges_used = remains.used;
      ranges.Recover();
    }
    ~Successor() { table_->Free(record); }
    ClientRecord* record;
    RecordedRanges ranges;
  };

  static inline ClientTable* table_ = nullptr;
  static inline RecordedRangesTest* current_ = nullptr;
  ClientRecord* record_ = nullptr;
  bool collecting_ = false;
  std::vector<Remains> remains_;
};

TEST_F(RecordedRangesTest, EveryDeathLeavesTheSetBeforeOrAfterOrBoth) {
  const char* fixed = getenv("UZSWAP_TEST_SEED");
  const auto seed =
      fixed == nullptr ? std::random_device()() : static_cast<unsigned>(strtoul(fixed, nullptr, 10));
  SCOPED_TRACE("replay: UZSWAP_TEST_SEED=" + std::to_string(seed));
  std::mt19937 random(seed);
  RecordedRanges ranges(*table_, record_);
  RangeSet model;
  size_t deaths = 0;
  for (int step = 0; step < 1500; ++step) {
    const uint64_t start = random() % 96 * kPage;
    const uint64_t end = start + random() % 9 * kPage;
    const bool add = random() % 2 == 0;
    const RangeSet before = model;
    const auto apply = [&](auto& set) { add ? set.Add(start, end) : set.Remove(start, end); };
    apply(model);
    remains_.clear();
    collecting_ = true;
    apply(ranges);
    collecting_ = false;
    remains_.push_back(Now());
    ASSERT_EQ(ranges.set().All(), model.All()) << "step " << step;
    for (size_t i = 0; i < remains_.size(); ++i) {
      Successor successor(remains_[i]);
      const RangeSet& found = successor.ranges.set();
      for (uint64_t page = 0; page < 112 * kPage; page += kPage) {
        if (before.Contains(page) == model.Contains(page)) {
          ASSERT_EQ(found.Contains(page), model.Contains(page))
              << "step " << step << " page " << page / kPage;
        }
      }
      if (i + 1 == remains_.size()) {
        ASSERT_EQ(found.All(), model.All()) << "step " << step;
      }
      // The event is applied again; and a successor of the successor finds the same.
      apply(successor.ranges);
      ASSERT_EQ(found.All(), model.All()) << "step " << step;
      const auto slots = table_->ranges(successor.record).first(successor.record->ranges_used);
      Successor next({successor.record->ranges_used, {slots.begin(), slots.end()}});
      ASSERT_EQ(next.ranges.set().All(), model.All()) << "step " << step;
      ++deaths;
    }
  }
  EXPECT_GT(deaths, 3000u);
}

TEST_F(RecordedRangesTest, FullRecordKeepsTheSetAndForgetsItForTheSuccessor) {
  RecordedRanges ranges(*table_, record_);
  for (uint64_t i = 0; i < kRangesPerClient + 10; ++i) ranges.Add(2 * i * kPage, (2 * i + 1) * kPage);
  EXPECT_EQ(ranges.set().size(), kRangesPerClient + 10);
  EXPECT_EQ(record_->ranges_used, kRangesPerClient);
  {
    RecordedRanges successor(*table_, record_);
    successor.Recover();
    EXPECT_EQ(successor.set().size(), kRangesPerClient);
    EXPECT_FALSE(successor.set().Contains(2 * (kRangesPerClient + 5) * kPage));
  }
  // Room again: places that were freed are used.
  ranges.Remove(0, 20 * kPage);
  ranges.Add(1 << 30, (1 << 30) + kPage);
  RecordedRanges successor(*table_, record_);
  successor.Recover();
  EXPECT_TRUE(successor.set().Contains(1 << 30));
  EXPECT_FALSE(successor.set().Contains(0));
}

TEST_F(RecordedRangesTest, DamageIsLeftOut) {
  RecordedRanges ranges(*table_, record_);
  for (uint64_t i = 1; i <= 4; ++i) ranges.Add(10 * i * kPage, (10 * i + 5) * kPage);
  table_->ranges(record_)[1].start = ~uint64_t{0};
  table_->ranges(record_)[2].end += 1;
  record_->ranges_used = 4;
  RecordedRanges successor(*table_, record_);
  successor.Recover();
  EXPECT_EQ(successor.set().All(),
            (std::vector<AddressRange>{{10 * kPage, 15 * kPage}, {40 * kPage, 45 * kPage}}));
}

}  // namespace
}  // namespace uzswap

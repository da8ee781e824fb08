// RangeSet against a bitmap.
#include "daemon/state/range_set.h"

#include <gtest/gtest.h>

#include <bitset>
#include <cstdlib>
#include <random>
#include <string>

namespace uzswap {
namespace {

constexpr uint64_t kSpace = 96;  // small: every edge is met often

class Model {
 public:
  void Set(uint64_t start, uint64_t end, bool value) {
    for (uint64_t i = start; i < end; ++i) bits_[i] = value;
  }
  std::vector<AddressRange> Runs(uint64_t start, uint64_t end, bool value) const {
    std::vector<AddressRange> runs;
    for (uint64_t i = start; i < end; ++i) {
      if (bits_[i] != value) continue;
      if (!runs.empty() && runs.back().end == i) {
        ++runs.back().end;
      } else {
        runs.push_back({i, i + 1});
      }
    }
    return runs;
  }
  bool Contains(uint64_t at) const { return bits_[at]; }

 private:
  std::bitset<kSpace> bits_;
};

void Compare(const RangeSet& set, const Model& model, uint64_t from, uint64_t to) {
  ASSERT_EQ(set.All(), model.Runs(0, kSpace, true));
  ASSERT_EQ(set.size(), set.All().size());
  ASSERT_EQ(set.empty(), set.All().empty());
  ASSERT_EQ(set.Intersect(from, to), model.Runs(from, to, true));
  ASSERT_EQ(set.Gaps(from, to), model.Runs(from, to, false));
  for (uint64_t i = 0; i < kSpace; ++i) ASSERT_EQ(set.Contains(i), model.Contains(i)) << i;
}

TEST(RangeSetModel, EveryStepEqualsABitmap) {
  const char* fixed = getenv("UZSWAP_TEST_SEED");
  for (unsigned run = 0; run < (fixed == nullptr ? 40u : 1u); ++run) {
    const unsigned seed = fixed == nullptr ? run : static_cast<unsigned>(strtoul(fixed, nullptr, 10));
    SCOPED_TRACE("replay: UZSWAP_TEST_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    RangeSet set;
    Model model;
    for (int step = 0; step < 400; ++step) {
      uint64_t start = random() % (kSpace + 1);
      uint64_t end =
          random() % 8 == 0 ? random() % (kSpace + 1) : std::min<uint64_t>(start + random() % 9, kSpace);
      const bool add = random() % 2 == 0;
      if (add) {
        set.Add(start, end);
      } else {
        set.Remove(start, end);
      }
      if (start < end) model.Set(start, end, add);
      const uint64_t from = random() % kSpace;
      ASSERT_NO_FATAL_FAILURE(Compare(set, model, from, from + random() % (kSpace + 1 - from)))
          << "step " << step;
    }
    set.clear();
    ASSERT_TRUE(set.empty());
  }
}

TEST(RangeSet, TouchingRangesAreOne) {
  RangeSet set;
  set.Add(0x1000, 0x2000);
  set.Add(0x3000, 0x4000);
  set.Add(0x2000, 0x3000);
  EXPECT_EQ(set.All(), (std::vector<AddressRange>{{0x1000, 0x4000}}));
}

TEST(RangeSet, ReachesTheEndsOfTheAddressSpace) {
  RangeSet set;
  set.Add(0, ~uint64_t{0});
  set.Remove(0x1000, 0x2000);
  EXPECT_TRUE(set.Contains(0));
  EXPECT_FALSE(set.Contains(0x1000));
  EXPECT_TRUE(set.Contains(~uint64_t{0} - 1));
  EXPECT_EQ(set.size(), 2u);
}

}  // namespace
}  // namespace uzswap

#include "daemon/state/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

namespace uzswap {
namespace {

TEST(LatencyHistogram, EmptyIsZero) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.PercentileNs(500), 0u);
  EXPECT_EQ(histogram.max_ns(), 0u);
}

TEST(LatencyHistogram, PercentilesAreAtMostAnEighthTooHigh) {
  std::mt19937_64 random(7);
  for (const unsigned shift : {60u, 50u, 40u, 30u, 4u}) {
    auto histogram = std::make_unique<LatencyHistogram>();
    std::vector<uint64_t> values;
    for (int i = 0; i < 2000; ++i) {
      values.push_back(random() >> (random() % 2 == 0 ? shift : shift / 2));
      histogram->Record(values.back());
    }
    std::sort(values.begin(), values.end());
    for (const unsigned permille : {1u, 10u, 500u, 900u, 990u, 999u, 1000u}) {
      const uint64_t exact = values[(values.size() * permille + 999) / 1000 - 1];
      const uint64_t said = histogram->PercentileNs(permille);
      EXPECT_GE(said, exact) << permille;
      EXPECT_LE(static_cast<double>(said), static_cast<double>(exact) * 1.126 + 1) << permille;
    }
    EXPECT_EQ(histogram->max_ns(), values.back());
  }
}

TEST(LatencyHistogram, TakesTheLargestAndTheSmallest) {
  LatencyHistogram histogram;
  histogram.Record(0);
  histogram.Record(~uint64_t{0});
  EXPECT_EQ(histogram.PercentileNs(1), 0u);
  EXPECT_EQ(histogram.PercentileNs(1000), ~uint64_t{0});
}

TEST(LatencyHistogram, MergeIsTheSumOfBoth) {
  LatencyHistogram a, b;
  for (int i = 0; i < 99; ++i) a.Record(1000);
  b.Record(1'000'000);
  a.Merge(b);
  EXPECT_LE(a.PercentileNs(500), 1125u);
  EXPECT_EQ(a.PercentileNs(1000), 1'000'000u);
  EXPECT_EQ(a.max_ns(), 1'000'000u);
}

}  // namespace
}  // namespace uzswap

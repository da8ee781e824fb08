#include "tools/uzswap/human.h"

#include <gtest/gtest.h>

#include <random>

namespace uzswap::cli {
namespace {

TEST(FormatBytes, ThreeDigitsAndAUnit) {
  EXPECT_EQ(FormatBytes(0), "0");
  EXPECT_EQ(FormatBytes(512), "512B");
  EXPECT_EQ(FormatBytes(999), "999B");
  EXPECT_EQ(FormatBytes(1000), "0.98K");
  EXPECT_EQ(FormatBytes(4096), "4K");
  EXPECT_EQ(FormatBytes(uint64_t{3} << 29), "1.5G");
  EXPECT_EQ(FormatBytes((uint64_t{3} << 29) + 4096), "1.50G");
  EXPECT_EQ(FormatBytes((uint64_t{512} << 20) + 1), "512M");
  EXPECT_EQ(FormatBytes((uint64_t{1} << 30) - 1), "1.00G");
  EXPECT_EQ(FormatBytes(~uint64_t{0}), "16E");
}

TEST(FormatCount, PlainUntilItIsWide) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(99'999), "99999");
  EXPECT_EQ(FormatCount(100'000), "100k");
  EXPECT_EQ(FormatCount(999'499), "999k");
  EXPECT_EQ(FormatCount(999'500), "1.00M");
  EXPECT_EQ(FormatCount(1'234'567), "1.23M");
}

TEST(FormatMicros, UnitFollowsTheFigure) {
  EXPECT_EQ(FormatMicros(0), "-");
  EXPECT_EQ(FormatMicros(-1), "-");
  EXPECT_EQ(FormatMicros(0.0 / 0.0), "-");
  EXPECT_EQ(FormatMicros(6.54), "6.5us");
  EXPECT_EQ(FormatMicros(9.96), "10us");
  EXPECT_EQ(FormatMicros(120.4), "120us");
  EXPECT_EQ(FormatMicros(1234), "1.2ms");
  EXPECT_EQ(FormatMicros(2.5e6), "2.5s");
}

TEST(FormatDuration, TwoPartsAtMost) {
  EXPECT_EQ(FormatDuration(0.04), "0.0 s");
  EXPECT_EQ(FormatDuration(59.94), "59.9 s");
  EXPECT_EQ(FormatDuration(59.96), "1 min 00 s");
  EXPECT_EQ(FormatDuration(245), "4 min 05 s");
  EXPECT_EQ(FormatDuration(7380), "2 h 03 min");
  EXPECT_EQ(FormatDuration(273600), "3 d 04 h");
}

TEST(Human, NothingIsWiderThanFiveCharacters) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t n = random() >> (random() % 64);
    ASSERT_LE(FormatBytes(n).size(), 5u) << n;
    ASSERT_LE(FormatCount(n).size(), 5u) << n;
    ASSERT_LE(FormatMicros(static_cast<double>(n)).size(), 5u) << n;
  }
}

}  // namespace
}  // namespace uzswap::cli

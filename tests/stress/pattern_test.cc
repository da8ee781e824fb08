#include "tests/stress/pattern.h"

#include <gtest/gtest.h>

#include <set>

namespace uzswap::stress {
namespace {

TEST(Pattern, ScramblingIsUndone) {
  Random random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t x = random.Next();
    ASSERT_EQ(Unscramble(Scramble(x)), x);
    ASSERT_EQ(Scramble(Unscramble(x)), x);
  }
}

TEST(Pattern, AWordTellsItsUnitAndGeneration) {
  Random random(2);
  int misread = 0;
  for (int i = 0; i < 20000; ++i) {
    const uint32_t unit = random.Below(kMaxUnits), generation = 1 + random.Below(kMaxGeneration - 1);
    const uint32_t index = random.Below(kUnitWords);
    const Origin origin = OriginOf(ExpectedWord(unit, generation, index));
    ASSERT_TRUE(origin.ours) << "unit " << unit << " generation " << generation << " index " << index;
    misread +=
        origin.unit != unit || origin.generation != generation || origin.kind != KindOf(unit, generation);
  }
  // A scrambled word looks like a plain one by chance, one time in some hundreds.
  EXPECT_LT(misread, 100);
}

TEST(Pattern, UnwrittenMemoryIsZeroAndNobodysWord) {
  EXPECT_EQ(ExpectedWord(17, 0, 3), 0u);
  EXPECT_FALSE(OriginOf(0).ours);
}

TEST(Pattern, RandomWordsAreHardlyEverOurs) {
  Random random(3);
  int ours = 0;
  for (int i = 0; i < 100000; ++i) ours += OriginOf(random.Next()).ours;
  // The tag and the place of a plain word must fit, or the tag of a scrambled one: about 1 in 100.
  EXPECT_LT(ours, 2000);
}

TEST(Pattern, UnitsAndGenerationsDifferInEveryWord) {
  for (uint32_t index = 0; index < kUnitWords; ++index) {
    std::set<uint64_t> words;
    for (uint32_t unit = 0; unit < 16; ++unit) {
      for (uint32_t generation = 1; generation < 16; ++generation)
        words.insert(ExpectedWord(unit, generation, index));
    }
    ASSERT_EQ(words.size(), 16u * 15u) << "index " << index;
  }
}

TEST(Pattern, AllKindsOccurInTheirShares) {
  int count[3] = {};
  for (uint32_t unit = 0; unit < 8000; ++unit) ++count[static_cast<int>(KindOf(unit, 1))];
  EXPECT_NEAR(count[static_cast<int>(Kind::kRealistic)], 6000, 300);
  EXPECT_NEAR(count[static_cast<int>(Kind::kIncompressible)], 1000, 150);
  EXPECT_NEAR(count[static_cast<int>(Kind::kSameFilled)], 1000, 150);
}

}  // namespace
}  // namespace uzswap::stress

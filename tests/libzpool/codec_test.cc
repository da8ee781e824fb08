#include "libzpool/codec/codec.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "tests/libzpool/pages.h"

namespace zp {
namespace {

using testing::MakePage;
using testing::PageBuffer;

TEST(Codec, RoundTripsWhatShrinksAndRefusesWhatDoesNot) {
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  PageBuffer out;
  for (unsigned noise = 0; noise <= 512; noise += 8) {
    MakePage(3, 4, noise, &page);
    const uint32_t length = EncodePage(CodecId::kLz4, page, *scratch);
    if (length == 0) {
      EXPECT_GT(noise, 400u);
      continue;
    }
    EXPECT_LE(length, kMaxEncodedBytes);
    ASSERT_TRUE(DecodePage(CodecId::kLz4, {scratch->encoded.data(), length}, out));
    EXPECT_EQ(page, out);
  }
  EXPECT_EQ(EncodePage(CodecId::kRaw, page, *scratch), 0u);
}

TEST(Codec, SameFilledIsSeenJustWhereEveryWordIsEqual) {
  PageBuffer page{};
  EXPECT_EQ(SameFilledPattern(page), 0u);
  for (size_t at = 0; at < kPageBytes; at += 333) {
    page[at] = std::byte{1};
    EXPECT_FALSE(SameFilledPattern(page).has_value()) << at;
    page[at] = std::byte{0};
  }
  FillPage(0x0123456789abcdef, page);
  EXPECT_EQ(SameFilledPattern(page), 0x0123456789abcdefu);
}

// The object arrives from memory that may be damaged. ASan watches the borders of `out`.
TEST(Codec, GarbageNeverWritesOutsideThePage) {
  std::mt19937_64 random(11);
  auto scratch = std::make_unique<Scratch>();
  PageBuffer page;
  for (int i = 0; i < 20000; ++i) {
    auto out = std::make_unique<PageBuffer>();
    const unsigned codec = static_cast<unsigned>(random() % kCodecIdLimit);
    std::vector<std::byte> object;
    if (i % 2 == 0) {
      object.resize(1 + random() % kPageBytes);
      for (std::byte& byte : object) byte = static_cast<std::byte>(random());
    } else {
      MakePage(random(), 1, static_cast<unsigned>(random() % 400), &page);
      const uint32_t length = EncodePage(CodecId::kLz4, page, *scratch);
      object.assign(scratch->encoded.begin(), scratch->encoded.begin() + length);
      for (int flips = 0; flips < 3 && !object.empty(); ++flips)
        object[random() % object.size()] = static_cast<std::byte>(random());
      if (random() % 4 == 0) object.resize(random() % (object.size() + 1));
    }
    (void)DecodePage(static_cast<CodecId>(codec), object, *out);
    (void)DecodePage(CodecId::kLz4, object, *out);
  }
}

}  // namespace
}  // namespace zp

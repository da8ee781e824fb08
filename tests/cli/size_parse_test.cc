#include "tools/uzswap/size_parse.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "daemon/wire/message.h"

namespace uzswap::cli {
namespace {

constexpr uint64_t kK = 1 << 10, kM = 1 << 20, kG = 1 << 30, kT = kG << 10;

TEST(ParseSize, UnitsAre1024Based) {
  const struct {
    const char* text;
    uint64_t bytes;
  } kCases[] = {
      {"0", 0},
      {"123456", 123456},
      {"512M", 512 * kM},
      {"64k", 64 * kK},
      {"64K", 64 * kK},
      {"64Ki", 64 * kK},
      {"64KB", 64 * kK},
      {"64KiB", 64 * kK},
      {"64kb", 64 * kK},
      {"1g", kG},
      {"2T", 2 * kT},
      {"7B", 7},
      {"512 MiB", 512 * kM},
      {" 1G ", kG},
      {"007M", 7 * kM},
      {"8388607T", 8388607 * kT},
  };
  for (const auto& c : kCases) {
    const auto size = ParseSize(c.text);
    ASSERT_TRUE(size.ok()) << c.text << ": " << size.message();
    EXPECT_EQ(size.value(), c.bytes) << c.text;
  }
}

TEST(ParseSize, FractionsNeedAUnitAndAreCutToBytes) {
  EXPECT_EQ(ParseSize("1.5G").value(), kG + kG / 2);
  EXPECT_EQ(ParseSize("0.25M").value(), kM / 4);
  EXPECT_EQ(ParseSize("0.1k").value(), 102u);
  EXPECT_EQ(ParseSize("1.99999999999999999999999k").value(), 2047u);
  EXPECT_FALSE(ParseSize("1.5").ok());
  EXPECT_FALSE(ParseSize("1.G").ok());
  EXPECT_FALSE(ParseSize(".5G").ok());
}

TEST(ParseSize, WhatIsNoSizeIsRefusedWithAnExample) {
  for (const char* text : {"",
                           " ",
                           "M",
                           "x",
                           "12Q",
                           "12MM",
                           "12MiX",
                           "5X",
                           "-5M",
                           "-0",
                           "+5M",
                           "0x10",
                           "1e9",
                           "1,5G",
                           "5M6",
                           "1..5G",
                           "1.5.5G",
                           "12\n",
                           "50%",
                           "9999999999999999999999",
                           "99999999999999G",
                           "8388608T",
                           "18446744073709551616",
                           "\xff"}) {
    const auto size = ParseSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_NE(size.message().find("512M"), std::string::npos) << size.message();
    EXPECT_NE(size.message().find(text), std::string::npos) << size.message();
  }
}

TEST(ParseSize, SaysWhatIsWrong) {
  EXPECT_NE(ParseSize("50%").message().find("not supported"), std::string::npos);
  EXPECT_NE(ParseSize("-5M").message().find("negative"), std::string::npos);
  EXPECT_NE(ParseSize("99999999999999G").message().find("greater"), std::string::npos);
  EXPECT_NE(ParseSize("12Q").message().find("'Q'"), std::string::npos);
}

TEST(CheckResidentLimit, RefusesWhatAProcessCannotLiveOn) {
  EXPECT_EQ(CheckResidentLimit(wire::kMinLimitBytes), "");
  EXPECT_NE(CheckResidentLimit(wire::kMinLimitBytes - 1).find("below 4M"), std::string::npos);
}

}  // namespace
}  // namespace uzswap::cli

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <type_traits>

#include "libzpool/base/fd.h"
#include "libzpool/base/mapping.h"
#include "libzpool/base/memory_file.h"
#include "libzpool/base/result.h"
#include "libzpool/base/units.h"
#include "libzpool/frame/topology.h"

namespace zp {
namespace {

TEST(Units, ConvertBetweenPagesAndAddresses) {
  const PageIndex page = PageIndex::FromAddress(0x7fff'1234'5678);
  EXPECT_EQ(page.value(), 0x7fff'1234'5u);
  EXPECT_EQ(page.address(), 0x7fff'1234'5000u);
  EXPECT_EQ((page + PageCount(2)) - page, PageCount(2));
  EXPECT_EQ(PageCount(3).bytes(), Bytes(12288));
  EXPECT_LT(page, page + PageCount(1));
  static_assert(!std::is_convertible_v<uint64_t, PageIndex> && !std::is_convertible_v<PageCount, PageIndex>);
}

TEST(UnitsDeathTest, OverflowDies) {
  EXPECT_DEATH((void)(PageIndex(1) - PageCount(2)), "below zero");
  EXPECT_DEATH((void)(PageIndex(~uint64_t{0}) + PageCount(1)), "overflows");
  EXPECT_DEATH((void)PageCount(~uint64_t{0}).bytes(), "overflows");
}

Result<std::unique_ptr<int>> Half(int n) {
  if (n % 2 != 0) return Error{Errc::kInvalid, 0, "half"};
  return std::make_unique<int>(n / 2);
}

Status Nothing(bool fail) {
  if (fail) return Error{Errc::kBusy, 0, "nothing"};
  return OkStatus();
}

Result<int> Quarter(int n, bool fail) {
  const std::unique_ptr<int> half = ZP_TRY(Half(n));
  ZP_TRY(Nothing(fail));
  const std::unique_ptr<int> quarter = ZP_TRY(Half(*half));
  return *quarter;
}

TEST(Result, TryPassesValuesAndErrorsOn) {
  EXPECT_EQ(*Quarter(8, false), 2);
  EXPECT_EQ(Quarter(7, false).error().code, Errc::kInvalid);
  EXPECT_EQ(Quarter(6, false).error().code, Errc::kInvalid);
  EXPECT_EQ(Quarter(8, true).error().code, Errc::kBusy);
  EXPECT_FALSE(Half(1));
}

TEST(ResultDeathTest, WrongSideDies) {
  EXPECT_DEATH((void)Half(1).value(), "value of a failed");
  EXPECT_DEATH((void)Half(2).error(), "error of a successful");
}

TEST(Result, ErrnoIsTranslatedOnce) {
  errno = ENOMEM;
  const Error error = ErrnoError("op");
  EXPECT_EQ(error.code, Errc::kNoMemory);
  EXPECT_EQ(error.sys_errno, ENOMEM);
  EXPECT_STREQ(ErrcName(error.code), "no memory");
}

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) != -1; }

TEST(UniqueFd, MoveAssignmentOverALiveOneClosesIt) {
  UniqueFd a = CreateMemfd("test", 4096).value();
  UniqueFd b = CreateMemfd("test", 4096).value();
  const int first = a.get();
  const int second = b.get();
  EXPECT_EQ(fcntl(first, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  a = std::move(b);
  EXPECT_FALSE(IsOpen(first));
  EXPECT_EQ(a.get(), second);
  EXPECT_FALSE(b.valid());  // NOLINT: moved-from is empty by contract
  a.reset();
  EXPECT_FALSE(IsOpen(second));
}

TEST(Mapping, MoveAssignmentKeepsTheBytes) {
  Mapping a = Mapping::Anonymous(8192).value();
  Mapping b = Mapping::Anonymous(4096).value();
  b.data()[7] = std::byte{9};
  a = std::move(b);
  EXPECT_EQ(a.size(), 4096u);
  EXPECT_EQ(a.data()[7], std::byte{9});
}

TEST(MemoryFile, PopulatesAndPunches) {
  MemoryFile file = MemoryFile::Create("test", FileKind::kFrames, 1, 1 << 20).value();
  const auto blocks = [&file] {
    struct stat st {};
    EXPECT_EQ(fstat(file.fd(), &st), 0);
    return st.st_blocks * 512;
  };
  EXPECT_EQ(file.header().magic, kFileMagic);
  EXPECT_EQ(blocks(), 4096);
  ASSERT_TRUE(file.Populate(8192, 16384).ok());
  EXPECT_EQ(blocks(), 4096 * 5);
  file.data()[8192] = std::byte{1};
  file.Punch(8192, 16384);
  EXPECT_EQ(blocks(), 4096);
  EXPECT_EQ(file.data()[8192], std::byte{0});
}

TEST(MemoryFile, IsTakenOverFromItsDescriptor) {
  MemoryFile file = MemoryFile::Create("test", FileKind::kHandles, 3, 1 << 20).value();
  ASSERT_TRUE(file.Populate(8192, 4096).ok());
  file.data()[8192] = std::byte{9};
  const auto adopt = [&](FileKind kind, uint32_t version) {
    return MemoryFile::Adopt(UniqueFd(dup(file.fd())), kind, version);
  };
  {
    const MemoryFile again = adopt(FileKind::kHandles, 3).value();
    EXPECT_EQ(again.size(), file.size());
    EXPECT_EQ(again.data()[8192], std::byte{9});
    EXPECT_NE(again.fd(), file.fd());
  }
  EXPECT_EQ(adopt(FileKind::kFrames, 3).error().code, Errc::kInvalid);
  EXPECT_EQ(adopt(FileKind::kHandles, 2).error().code, Errc::kUnsupported);
  file.header().magic ^= 1;
  EXPECT_EQ(adopt(FileKind::kHandles, 2).error().code, Errc::kInvalid) << "no file of ours at all";
  file.header().magic ^= 1;
  ASSERT_EQ(ftruncate(file.fd(), 1 << 19), 0);
  EXPECT_EQ(adopt(FileKind::kHandles, 3).error().code, Errc::kInvalid);
  ASSERT_EQ(ftruncate(file.fd(), (1 << 20) + 4096), 0);
  EXPECT_EQ(adopt(FileKind::kHandles, 3).error().code, Errc::kInvalid);
  EXPECT_EQ(MemoryFile::Adopt(CreateMemfd("test", 0).value(), FileKind::kHandles, 3).error().code,
            Errc::kInvalid);
  EXPECT_EQ(MemoryFile::Adopt(CreateMemfd("test", 4096).value(), FileKind::kHandles, 3).error().code,
            Errc::kInvalid);
  EXPECT_FALSE(MemoryFile::Adopt(UniqueFd(), FileKind::kHandles, 3).ok());
}

TEST(MemoryFile, PopulatesFreshPagesInStepsAndLeavesTheOthersAlone) {
  MemoryFile file = MemoryFile::Create("test", FileKind::kFrames, 1, 1 << 20).value();
  // More than one step, and not a whole number of them.
  constexpr uint64_t kFirst = 5 * kPageBytes, kFresh = 39 * kPageBytes;
  ASSERT_TRUE(file.Populate(kFirst - kPageBytes, kPageBytes).ok());
  ASSERT_TRUE(file.Populate(kFirst + kFresh, kPageBytes).ok());
  file.data()[kFirst - 1] = file.data()[kFirst + kFresh] = std::byte{7};
  ASSERT_TRUE(file.PopulateFresh(kFirst, kFresh).ok());
  struct stat st {};
  ASSERT_EQ(fstat(file.fd(), &st), 0);
  EXPECT_EQ(static_cast<uint64_t>(st.st_blocks) * 512, kPageBytes * 3 + kFresh);
  for (uint64_t at = kFirst; at < kFirst + kFresh; ++at) {
    ASSERT_EQ(file.data()[at], std::byte{0});
    file.data()[at] = std::byte{1};
  }
  EXPECT_EQ(file.data()[kFirst - 1], std::byte{7});
  EXPECT_EQ(file.data()[kFirst + kFresh], std::byte{7});
  file.Punch(kFirst, kFresh);
  EXPECT_EQ(file.data()[kFirst], std::byte{0});
}

TEST(MemoryFile, StepsThatAreNotWholeAreGivenBack) {
  // Two arrays of 8 steps: of 512 elements, a page and four pages each.
  constexpr uint64_t kStep = 512, kCount = 8 * kStep;
  constexpr uint64_t kWide = 32, kNarrow = 8;
  constexpr uint64_t kNarrowAt = kPageBytes, kWideAt = kPageBytes + kCount * kNarrow;
  const auto left = [](uint64_t narrow_steps, uint64_t wide_pages, uint64_t more_at) {
    MemoryFile file = MemoryFile::Create("steps", FileKind::kHandles, 1, kWideAt + kCount * kWide).value();
    EXPECT_TRUE(file.Populate(kNarrowAt, narrow_steps * kPageBytes).ok());
    if (wide_pages != 0) {
      EXPECT_TRUE(file.Populate(kWideAt, wide_pages * kPageBytes).ok());
    }
    if (more_at != 0) {
      EXPECT_TRUE(file.Populate(more_at, kPageBytes).ok());
    }
    const uint64_t kept =
        file.KeepWholeSteps({{kNarrowAt, kNarrow}, {kWideAt, kWide}}, kCount, kStep).value();
    struct stat st {};
    EXPECT_EQ(fstat(file.fd(), &st), 0);
    EXPECT_EQ(static_cast<uint64_t>(st.st_blocks) * 512, kPageBytes + kept * (kNarrow + kWide));
    return kept / kStep;
  };
  EXPECT_EQ(left(3, 12, 0), 3u);
  EXPECT_EQ(left(3, 11, 0), 2u);
  EXPECT_EQ(left(3, 8, 0), 2u);
  EXPECT_EQ(left(3, 0, 0), 0u);
  EXPECT_EQ(left(2, 32, 0), 2u);
  // The first array's memory goes on into the second's, which lies behind it.
  EXPECT_EQ(left(8, 32, 0), 8u);
  // Memory behind a hole is no step.
  EXPECT_EQ(left(2, 8, kNarrowAt + 5 * kPageBytes), 2u);
  EXPECT_EQ(left(2, 0, kWideAt + 20 * kPageBytes), 0u);
}

TEST(Topology, FallsBackByDistance) {
  const Topology t =
      Topology::Made({NodeId(0), NodeId(3), NodeId(9)}, {{10, 40, 20}, {40, 10, 30}, {20, 30, 10}}).value();
  EXPECT_EQ(t.FallbackOrder(NodeId(0)), (std::vector<uint8_t>{0, 2, 1}));
  EXPECT_EQ(t.FallbackOrder(NodeId(3)), (std::vector<uint8_t>{1, 2, 0}));
  EXPECT_EQ(t.IndexOf(NodeId(9)), 2);
  EXPECT_EQ(t.IndexOf(NodeId(1)), -1);
  EXPECT_FALSE(t.is_real());
  EXPECT_FALSE(Topology::Made({NodeId(0), NodeId(0)}, {{10, 10}, {10, 10}}).ok());
  EXPECT_FALSE(Topology::Made({NodeId(64)}, {{10}}).ok());
  EXPECT_FALSE(Topology::Made({}, {}).ok());
  EXPECT_FALSE(Topology::Detect().nodes().empty());
}

}  // namespace
}  // namespace zp

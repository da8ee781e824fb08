// Which pages are chosen, and when doomed ones are free again.
#include "daemon/client/victim_scanner.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>

namespace uzswap {
namespace {

constexpr uint64_t kPage = 4096;
using Records = std::vector<wire::ThreadRecord>;
using Ranges = std::vector<AddressRange>;

wire::ThreadRecord Thread(int tid, int syscall, uint64_t robust_list = 0x7000) {
  wire::ThreadRecord record{};
  record.tid = tid;
  record.syscall = syscall;
  record.robust_list = robust_list;
  return record;
}

TEST(DoomClearance, RangeIsClearedOnceEveryThreadWasOutside) {
  DoomClearance clearance;
  clearance.Doomed(0x1000, 0x2000);
  EXPECT_EQ(clearance.Pending(), (Ranges{{0x1000, 0x2000}}));
  clearance.Mark();
  EXPECT_TRUE(clearance.Observe({Thread(1, SYS_madvise), Thread(2, -2), Thread(3, SYS_futex)}).empty());
  EXPECT_TRUE(clearance.Observe({Thread(1, SYS_futex), Thread(2, -2), Thread(3, -2)})
                  .empty());  // 2 is not seen outside
  EXPECT_EQ(clearance.Observe({Thread(1, -2), Thread(2, -1), Thread(3, -2)}), (Ranges{{0x1000, 0x2000}}));
  EXPECT_TRUE(clearance.Pending().empty());
}

TEST(DoomClearance, AnnouncementBehindTheMarkWaitsForTheNextListing) {
  DoomClearance clearance;
  clearance.Mark();
  clearance.Doomed(0x1000, 0x2000);  // while the listing is taken: it may have missed its thread
  EXPECT_TRUE(clearance.Observe({Thread(1, SYS_futex)}).empty());
  clearance.Mark();
  EXPECT_EQ(clearance.Observe({Thread(1, SYS_futex)}), (Ranges{{0x1000, 0x2000}}));
}

TEST(DoomClearance, ThreadThatEndedOrWasBornLaterDoesNotHoldItUp) {
  DoomClearance clearance;
  clearance.Doomed(0x1000, 0x2000);
  clearance.Mark();
  EXPECT_TRUE(clearance.Observe({Thread(1, SYS_madvise)}).empty());
  EXPECT_EQ(clearance.Observe({Thread(2, SYS_madvise)}), (Ranges{{0x1000, 0x2000}}));
}

TEST(DoomClearance, ProcessMadviseCountsAndRunningIsUnknown) {
  for (const int syscall : {static_cast<int>(SYS_process_madvise), -2}) {
    DoomClearance clearance;
    clearance.Doomed(0x1000, 0x2000);
    clearance.Mark();
    EXPECT_TRUE(clearance.Observe({Thread(1, syscall)}).empty());
    EXPECT_EQ(clearance.Pending().size(), 1u);
  }
}

TEST(DoomClearance, SecondAnnouncementIsNotClearedByTheFirstOnesThreads) {
  DoomClearance clearance;
  clearance.Doomed(0x1000, 0x2000);
  clearance.Mark();
  EXPECT_TRUE(clearance.Observe({Thread(1, SYS_madvise), Thread(2, SYS_futex)}).empty());
  clearance.Doomed(0x5000, 0x6000);  // by thread 2
  clearance.Mark();
  EXPECT_EQ(clearance.Observe({Thread(1, SYS_futex), Thread(2, SYS_madvise)}), (Ranges{{0x1000, 0x2000}}));
  EXPECT_EQ(clearance.Pending(), (Ranges{{0x5000, 0x6000}}));
  clearance.Mark();
  EXPECT_EQ(clearance.Observe({Thread(1, SYS_futex), Thread(2, SYS_futex)}), (Ranges{{0x5000, 0x6000}}));
}

TEST(RegionHeat, CountsPerRegionAndSaturates) {
  auto heat = std::make_unique<RegionHeat>();
  for (int i = 0; i < 300; ++i) heat->Touch(5 * kRegionBytes + 123);
  EXPECT_EQ(heat->Get(5 * kRegionBytes), 255);
  EXPECT_EQ(heat->Get(6 * kRegionBytes), 0);
  heat->Halve(6 * kRegionBytes - 1);
  EXPECT_EQ(heat->Get(5 * kRegionBytes), 127);
}

class Scanning : public ::testing::Test {
 protected:
  void SetUp() override {
    // A sanitizer's shadow is more memory than these tests can look through.
    const char* build = std::getenv("UZSWAP_TEST_BUILD");
    if (build != nullptr && (std::string_view(build) == "asan" || std::string_view(build) == "tsan"))
      GTEST_SKIP() << "the sanitizer's shadow";
    auto memory = ProcessMemory::Open(getpid());
    if (!memory.ok()) GTEST_SKIP() << memory.error().op;
    memory_ = std::move(*memory);
  }
  uint64_t Map(uint64_t pages) {
    void* at = mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(at, pages * kPage, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < pages; ++i) static_cast<char*>(at)[i * kPage] = 1;
    return reinterpret_cast<uint64_t>(at);
  }
  // Mappings mature by time; one round of everything after that.
  std::vector<uint64_t> All(VictimScanner& scanner) {
    for (int i = 0; i < 4; ++i) {
      std::this_thread::sleep_for(VictimScanner::kMatureAfter);
      scanner.Refresh(memory_, false);
    }
    return scanner.Next(memory_, *heat_, 1u << 30, false);
  }
  static uint64_t CountIn(const std::vector<uint64_t>& pages, uint64_t start, uint64_t count) {
    return static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), [&](uint64_t page) {
      return page >= start && page < start + count * kPage;
    }));
  }
  ProcessMemory memory_;
  std::unique_ptr<RegionHeat> heat_ = std::make_unique<RegionHeat>();
};

TEST_F(Scanning, YoungMappingsAreLeftAlone) {
  const uint64_t at = Map(16);
  VictimScanner scanner;
  EXPECT_EQ(CountIn(scanner.Next(memory_, *heat_, 1u << 30, false), at, 16), 0u);
  EXPECT_EQ(CountIn(All(scanner), at, 16), 16u);
  munmap(reinterpret_cast<void*>(at), 16 * kPage);
}

TEST_F(Scanning, OwnRangesAndUnfitMappingsAreNeverChosen) {
  const uint64_t own = Map(16);
  const uint64_t read_only = Map(16);
  const uint64_t plain = Map(16);
  ASSERT_EQ(mprotect(reinterpret_cast<void*>(read_only), 16 * kPage, PROT_READ), 0);
  VictimScanner scanner;
  scanner.Exclude({own + 4 * kPage, own + 12 * kPage});
  const auto pages = All(scanner);
  EXPECT_EQ(CountIn(pages, own, 16), 8u);
  EXPECT_EQ(CountIn(pages, own + 4 * kPage, 8), 0u);
  EXPECT_EQ(CountIn(pages, read_only, 16), 0u);
  EXPECT_EQ(CountIn(pages, plain, 16), 16u);
}

TEST_F(Scanning, KeptPagesStayUntilTheyAreKeptNoMore) {
  const uint64_t at = Map(16);
  VictimScanner scanner;
  scanner.SetKept({at, at + 7 * kPage});
  const auto pages = All(scanner);
  EXPECT_EQ(CountIn(pages, at, 16), 14u);
  EXPECT_EQ(CountIn(pages, at, 1) + CountIn(pages, at + 7 * kPage, 1), 0u);
  scanner.SetKept({});
  EXPECT_EQ(CountIn(All(scanner), at, 16), 16u);
  munmap(reinterpret_cast<void*>(at), 16 * kPage);
}

TEST_F(Scanning, ThreadStacksAndDescriptorsAreNeverChosen) {
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> descriptor{0};
  std::atomic<uint64_t> stack{0};
  std::thread thread([&] {
    char deep[64 * 1024];
    for (size_t i = 0; i < sizeof(deep); i += 512) const_cast<volatile char*>(deep)[i] = 1;
    stack = reinterpret_cast<uint64_t>(deep);
    void* robust = nullptr;
    size_t length = 0;
    syscall(SYS_get_robust_list, 0, &robust, &length);
    descriptor = reinterpret_cast<uint64_t>(robust);
    while (!stop) std::this_thread::yield();
  });
  while (descriptor == 0) std::this_thread::yield();
  VictimScanner scanner;
  Records threads{Thread(12345, 202, descriptor)};
  scanner.SetThreads(threads, getpid());
  const auto pages = All(scanner);
  EXPECT_EQ(CountIn(pages, descriptor & ~(kPage - 1), 1), 0u);
  EXPECT_EQ(CountIn(pages, stack & ~(kPage - 1), 17), 0u);
  stop = true;
  thread.join();
}

TEST_F(Scanning, HandGoesOnWhereItStopped) {
  const uint64_t at = Map(64);
  VictimScanner scanner;
  const uint64_t everything = All(scanner).size();
  std::vector<uint64_t> seen;
  for (uint64_t i = 0; i < everything / 8 + 64; ++i) {
    for (const uint64_t page : scanner.Next(memory_, *heat_, 8, false)) seen.push_back(page);
  }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_EQ(CountIn(seen, at, 64), 64u);
}

TEST_F(Scanning, HotRegionsAreSparedWhileThereAreOthers) {
  // Two regions of their own.
  void* space = mmap(nullptr, 4 * kRegionBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(space, 4 * kRegionBytes, MADV_NOHUGEPAGE);
  const uint64_t hot = (reinterpret_cast<uint64_t>(space) / kRegionBytes + 1) * kRegionBytes;
  const uint64_t cold = hot + kRegionBytes;
  for (uint64_t i = 0; i < 8; ++i) {
    reinterpret_cast<char*>(hot)[i * kPage] = 1;
    reinterpret_cast<char*>(cold)[i * kPage] = 1;
  }
  VictimScanner scanner;
  for (int i = 0; i < 100; ++i) heat_->Touch(hot);
  const auto pages = All(scanner);
  EXPECT_EQ(CountIn(pages, hot, 8), 0u);
  EXPECT_EQ(CountIn(pages, cold, 8), 8u);
  EXPECT_EQ(CountIn(All(scanner), hot, 8), 8u) << "heat is forgotten as the hand passes";
  munmap(space, 4 * kRegionBytes);
}

}  // namespace
}  // namespace uzswap

// ProcessMemory on this process: what the kernel prints about mappings that the test made.
#include "daemon/sys/process_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "libzpool/base/fd.h"

namespace uzswap {
namespace {

constexpr uint64_t kPage = 4096;

class Mapped {
 public:
  explicit Mapped(uint64_t pages, int protection = PROT_READ | PROT_WRITE,
                  int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1)
      : bytes_(pages * kPage), address_(mmap(nullptr, bytes_, protection, flags, fd, 0)) {}
  ~Mapped() { munmap(address_, bytes_); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;
  uint64_t start() const { return reinterpret_cast<uint64_t>(address_); }
  char* data() const { return static_cast<char*>(address_); }

 private:
  uint64_t bytes_;
  void* address_;
};

class OwnMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    auto memory = ProcessMemory::Open(getpid());
    if (!memory.ok())
      GTEST_SKIP() << memory.error().op
                   << ": this process may not read its own memory's maps, or no PAGEMAP_SCAN";
    memory_ = std::move(*memory);
  }
  MapEntry EntryOf(uint64_t address) {
    const auto maps = memory_.ReadMaps();
    EXPECT_TRUE(maps.ok());
    for (const MapEntry& entry : *maps) {
      if (entry.start <= address && address < entry.end) return entry;
    }
    ADD_FAILURE() << "not in maps";
    return {};
  }
  ProcessMemory memory_;
};

TEST_F(OwnMemory, TellsWhatMayBeEvicted) {
  const Mapped plain(4);
  const Mapped read_only(4, PROT_READ);
  const Mapped executable(4, PROT_READ | PROT_WRITE | PROT_EXEC);
  const Mapped none(4, PROT_NONE);
  const Mapped shared(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  auto file = zp::CreateMemfd("name with spaces (deleted)", 4 * kPage);
  ASSERT_TRUE(file.ok());
  const Mapped private_file(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, file->get());
  EXPECT_TRUE(EntryOf(plain.start()).private_rw_anonymous);
  EXPECT_FALSE(EntryOf(read_only.start()).private_rw_anonymous);
  EXPECT_TRUE(EntryOf(read_only.start()).private_anonymous);
  for (const Mapped* other : {&executable, &none, &shared, &private_file}) {
    EXPECT_FALSE(EntryOf(other->start()).private_rw_anonymous);
    EXPECT_FALSE(EntryOf(other->start()).private_anonymous);
  }
  // Not a variable's address: ASan keeps those elsewhere.
  EXPECT_FALSE(EntryOf(reinterpret_cast<uint64_t>(__builtin_frame_address(0))).private_rw_anonymous &&
               getpid() == gettid());
}

TEST_F(OwnMemory, NamedAnonymousMappingIsPlain) {
  const Mapped named(4);
  if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named.start(), 4 * kPage, "a name: 00:00 0 /x") != 0) {
    GTEST_SKIP() << "the kernel has no names for anonymous mappings";
  }
  EXPECT_TRUE(EntryOf(named.start()).private_rw_anonymous);
}

TEST_F(OwnMemory, MapsAreAscendingAndWholeHoweverManyThereAre) {
  // More text than one read of /proc gives; alternating protections keep the mappings apart.
  constexpr uint64_t kMany = 3000;
  const Mapped many(kMany);
  for (uint64_t i = 0; i < kMany; i += 2) ASSERT_EQ(mprotect(many.data() + i * kPage, kPage, PROT_READ), 0);
  const auto maps = memory_.ReadMaps();
  ASSERT_TRUE(maps.ok());
  uint64_t inside = 0;
  for (size_t i = 0; i < maps->size(); ++i) {
    const MapEntry& entry = (*maps)[i];
    ASSERT_LT(entry.start, entry.end);
    if (i > 0) {
      ASSERT_GE(entry.start, (*maps)[i - 1].end);
    }
    if (entry.start > many.start() && entry.end < many.start() + kMany * kPage) ++inside;
  }
  EXPECT_GE(inside, kMany - 2);
}

TEST_F(OwnMemory, ScanFindsPresentPagesThatAreNotTheZeroPage) {
  const Mapped mapped(64);
  madvise(mapped.data(), 64 * kPage, MADV_NOHUGEPAGE);
  for (const uint64_t page : {0, 1, 2, 10, 63}) mapped.data()[page * kPage] = 1;
  volatile char read_only = mapped.data()[20 * kPage];  // maps the zero page
  (void)read_only;
  std::vector<page_region> regions;
  const auto end = memory_.ScanPresent(mapped.start(), mapped.start() + 64 * kPage, 1000, &regions);
  ASSERT_TRUE(end.ok());
  EXPECT_EQ(*end, mapped.start() + 64 * kPage);
  std::vector<uint64_t> pages;
  for (const page_region& region : regions) {
    for (uint64_t at = region.start; at < region.end; at += kPage)
      pages.push_back((at - mapped.start()) / kPage);
  }
  EXPECT_EQ(pages, (std::vector<uint64_t>{0, 1, 2, 10, 63}));

  regions.clear();
  const auto part = memory_.ScanPresent(mapped.start(), mapped.start() + 64 * kPage, 2, &regions);
  ASSERT_TRUE(part.ok());
  ASSERT_EQ(regions.size(), 1u);
  EXPECT_EQ(regions[0].end - regions[0].start, 2 * kPage);
  EXPECT_LE(*part, mapped.start() + 64 * kPage);
}

TEST_F(OwnMemory, WipeOnForkRangesAreFound) {
  const Mapped mapped(16);
  ASSERT_EQ(madvise(mapped.data() + 4 * kPage, 4 * kPage, MADV_WIPEONFORK), 0);
  const auto found = memory_.ReadWipeOnFork();
  ASSERT_TRUE(found.ok());
  EXPECT_TRUE(std::any_of(found->begin(), found->end(), [&](const MapEntry& entry) {
    return entry.start == mapped.start() + 4 * kPage && entry.end == mapped.start() + 8 * kPage;
  }));
  EXPECT_TRUE(std::none_of(found->begin(), found->end(), [&](const MapEntry& entry) {
    return entry.start <= mapped.start() && mapped.start() < entry.end;
  }));
}

TEST_F(OwnMemory, ReadsPresentMemoryAndRefusesUnmapped) {
  const Mapped mapped(2);
  memcpy(mapped.data() + kPage - 2, "across", sizeof("across"));
  char text[7] = {};
  EXPECT_TRUE(memory_.Read(mapped.start() + kPage - 2, text, sizeof(text)));
  EXPECT_STREQ(text, "across");
  EXPECT_FALSE(memory_.Read(0x1000, text, sizeof(text)));
}

TEST_F(OwnMemory, ResidentBytesGrowWithWhatIsTouched) {
  const uint64_t before = memory_.ResidentBytes();
  const Mapped mapped(4096);
  memset(mapped.data(), 1, 4096 * kPage);
  EXPECT_GE(memory_.ResidentBytes(), before + 4000 * kPage);
}

TEST(ProcessMemory, ProcessThatIsGoneIsAnError) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  const auto memory = ProcessMemory::Open(child);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().code, zp::Errc::kGone);
  EXPECT_EQ(ReadComm(child), "");
  EXPECT_EQ(ReadTaskCpu(child, child), -1);
}

TEST(ProcessMemory, NameAndCpuWithHostileNames) {
  char before[16] = {};
  prctl(PR_GET_NAME, before);
  prctl(PR_SET_NAME, ") R 1 (x) ");
  EXPECT_EQ(ReadComm(getpid()), ") R 1 (x) ");
  const int cpu = ReadTaskCpu(getpid(), getpid());
  EXPECT_GE(cpu, 0);
  EXPECT_LT(cpu, sysconf(_SC_NPROCESSORS_CONF));
  prctl(PR_SET_NAME, before);
}

}  // namespace
}  // namespace uzswap

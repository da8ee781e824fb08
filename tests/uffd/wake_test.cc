// Whoever waits is woken, with the right answer: facts 5.8, 5.9, 14.2, hazards H10, H12, H18.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "libzpool/frame/frame_arena.h"
#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 16;
constexpr int64_t kBytes = kPages * kPage;

class Wake : public UffdTest {
 protected:
  uint64_t MapEvicted(uint64_t pages = kPages) {
    const uint64_t at = app().MapFilled(pages);
    EXPECT_TRUE(EvictAll(a_, at, pages));
    return at;
  }
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }

  World world_;
  Attached a_ = world_.Attach();
};

// 5.8: a thread waits for a page, another unmaps it: SIGSEGV, as natively, and no hang.
TEST_F(Wake, FaulterOnAnUnmappedRangeGetsItsSignal) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kRead64, {I(at)});
  const Fault fault = ReadFault(client(), at);
  app().PostSyscall(2, SYS_munmap, {I(at), kBytes});
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(2));
  EXPECT_EQ(ResolveFully(client(), fault), ResolveOutcome::kResolved);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(app().signal(1), SIGSEGV);
}

// 5.8, 9.2: the page is there already, which wakes nobody by itself.
TEST_F(Wake, WaiterOfAPageThatIsPresentIsWoken) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kRead64, {I(at)});
  const Fault fault = ReadFault(client(), at);
  // Somebody fills the page without a wake-up.
  alignas(4096) static unsigned char page[kPage];
  for (uint64_t i = 0; i < 512; ++i) reinterpret_cast<uint64_t*>(page)[i] = PatternWord(at, 1, i);
  uffdio_copy copy{at, reinterpret_cast<uint64_t>(page), kPage, UFFDIO_COPY_MODE_DONTWAKE, 0};
  ASSERT_EQ(ioctl(client().uffd().fd(), UFFDIO_COPY, &copy), 0);
  EXPECT_EQ(ResolveFully(client(), fault), ResolveOutcome::kResolved);
  EXPECT_TRUE(app().Wait(1, 5000));
  EXPECT_EQ(app().result(1), I(PatternWord(at, 1, 0)));
  EXPECT_GE(Read(client().stats().conflicts), 1u);
}

// 5.9: the kernel itself waits for the page, and a signal comes: the thread spins, sending message after
// message.
TEST_F(Wake, SignalDuringAKernelModeFaultDoesNoHarm) {
  const uint64_t at = MapEvicted();
  auto* scratch = app().shared().scratch;
  const uint64_t there = app().scratch_address();
  ASSERT_EQ(app().Syscall(0, SYS_pipe2, {I(there), 0}), 0);
  int pipe_ends[2];
  memcpy(pipe_ends, scratch, sizeof(pipe_ends));
  memcpy(scratch, "eight by", 8);  // NOLINT(bugprone-not-null-terminated-result): bytes, no text
  ASSERT_EQ(app().Syscall(0, SYS_write, {pipe_ends[1], I(there), 8}), 8);
  app().PostSyscall(1, SYS_read, {pipe_ends[0], I(at + 16), 8});
  std::vector<Fault> faults{ReadFault(client(), at)};
  ASSERT_EQ(syscall(SYS_tgkill, app().pid(), app().tid(1), SIGUSR1), 0);
  while (faults.size() < 20) {
    ASSERT_TRUE(WaitReadable(client()));
    client().ReadMessages(&faults);
  }
  for (const Fault& fault : faults) EXPECT_EQ(ResolveFully(client(), fault), ResolveOutcome::kResolved);
  Pump pump(world_, a_.client);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(app().result(1), 8);
  int64_t word = 0;
  memcpy(&word, "eight by", 8);
  EXPECT_EQ(app().Call(1, Op::kRead64, {I(at + 16)}), word);
  EXPECT_EQ(app().Call(1, Op::kRead64, {I(at + 8)}), I(PatternWord(at, 1, 1)));
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at + kPage), kPages - 1, 1}), 0);
}

// 14.2: a page that is lost is told, never zero, never wrong.
TEST_F(Wake, CorruptObjectPoisonsItsPage) {
  const uint64_t at = MapEvicted();
  world_.store().ForEachMemfd([](const char* name, int fd) {
    if (strncmp(name, "frames", 6) != 0) return;
    off_t offset = static_cast<off_t>(zp::kSpanBytes);  // behind the file's header
    while ((offset = lseek(fd, offset, SEEK_DATA)) >= 0) {
      unsigned char page[kPage];
      ASSERT_EQ(pread(fd, page, sizeof(page), offset), static_cast<ssize_t>(sizeof(page)));
      for (unsigned char& byte : page) byte = static_cast<unsigned char>(byte ^ 0x5a);
      ASSERT_EQ(pwrite(fd, page, sizeof(page), offset), static_cast<ssize_t>(sizeof(page)));
      offset += static_cast<off_t>(kPage);
    }
  });
  Pump pump(world_, a_.client);
  for (uint64_t i = 0; i < kPages; ++i) {
    (void)app().Call(1, Op::kRead64, {I(at + i * kPage)});
    EXPECT_EQ(app().signal(1), SIGBUS) << "page " << i;
    (void)app().Call(2, Op::kRead64, {I(at + i * kPage)});
    EXPECT_EQ(app().signal(2), SIGBUS) << "page " << i << ", a second time";
  }
  EXPECT_GE(Read(client().stats().corrupt), kPages);
}

// H10: guard regions through libc drop what is stored; nothing that is prefetched goes over them.
TEST_F(Wake, GuardRegionsDropWhatIsStored) {
  const uint64_t at = MapEvicted();
  Pump pump(world_, a_.client);
  const int64_t installed =
      app().Call(1, Op::kLibcMadvise, {I(at + 4 * kPage), 4 * kPage, MADV_GUARD_INSTALL});
  if (installed == -EINVAL) GTEST_SKIP() << "no guard regions (Linux 6.13)";
  ASSERT_EQ(installed, 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 4, 1}), 0);  // sequential: reads ahead
  (void)app().Call(1, Op::kRead64, {I(at + 5 * kPage)});
  EXPECT_EQ(app().signal(1), SIGSEGV);
  ASSERT_EQ(app().Call(1, Op::kLibcMadvise, {I(at + 4 * kPage), 4 * kPage, MADV_GUARD_REMOVE}), 0);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {I(at + 4 * kPage), 4}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at + 8 * kPage), kPages - 8, 1}), 0);
}

// H12: everything comes home before anything is unregistered: afterwards nobody is there to answer.
TEST_F(Wake, RestoreBringsEverythingHomeBeforeItUnregisters) {
  constexpr uint64_t kMany = 700;
  const uint64_t at = app().MapFilled(kMany);
  ASSERT_TRUE(EvictAll(a_, at, kMany));
  const Client::RestoreResult result = client().Restore(true, *scratch_);
  EXPECT_GE(result.pages, kMany);
  EXPECT_EQ(result.failed, 0u);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kMany, 1}), 0);
  // Unregistered: new faults are the kernel's.
  ASSERT_EQ(app().Syscall(1, SYS_madvise, {I(at), I(kMany * kPage), MADV_DONTNEED}), 0);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {I(at), kMany}), 0);
  const int agent = app().agent_tid();
  client().Dismiss();
  while (ThreadState(app().pid(), agent) != 0) std::this_thread::yield();
  EXPECT_EQ(app().Call(1, Op::kFill, {I(at), kMany, 2}), 0);
}

// H12: a page that cannot come home keeps its mapping registered.
TEST_F(Wake, RestoreThatFailsKeepsTheRegistration) {
  const uint64_t at = MapEvicted();
  // An event that nobody reads: every COPY is refused meanwhile.
  app().PostSyscall(1, SYS_munmap, {I(at), kPage});
  ASSERT_TRUE(WaitReadable(client()));
  const Client::RestoreResult result = client().Restore(true, *scratch_);
  EXPECT_GT(result.failed, 0u);
  Pump pump(world_, a_.client);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at + kPage), kPages - 1, 1}), 0);
}

// H18: memory that grew into a registered range, or beside one, is zero.
TEST_F(Wake, GrowthInPlaceIsZero) {
  const uint64_t at = MapEvicted();
  Pump pump(world_, a_.client);
  ASSERT_EQ(app().Syscall(1, SYS_mremap, {I(at), kBytes, 2 * kBytes, 0}), I(at));
  EXPECT_EQ(app().Call(1, Op::kIsZero, {I(at + kBytes), kPages}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  ASSERT_EQ(app().Call(1, Op::kFill, {I(at), 2 * kPages, 4}), 0);
  ASSERT_TRUE(EvictAll(a_, at, 2 * kPages));
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 2 * kPages, 4}), 0);
}

TEST_F(Wake, GrowthOfTheHeapIsZero) {
  const int64_t heap = (app().Syscall(1, SYS_brk, {0}) + 4095) & ~int64_t{4095};
  ASSERT_EQ(app().Syscall(1, SYS_brk, {heap + kBytes}), heap + kBytes);
  ASSERT_EQ(app().Call(1, Op::kFill, {heap, kPages, 1}), 0);
  ASSERT_TRUE(EvictAll(a_, static_cast<uint64_t>(heap), kPages));
  Pump pump(world_, a_.client);
  ASSERT_EQ(app().Syscall(1, SYS_brk, {heap + 2 * kBytes}), heap + 2 * kBytes);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {heap + kBytes, kPages}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {heap, kPages, 1}), 0);
  ASSERT_EQ(app().Call(1, Op::kFill, {heap, 2 * kPages, 2}), 0);
  ASSERT_TRUE(EvictAll(a_, static_cast<uint64_t>(heap), 2 * kPages));
  EXPECT_EQ(app().Call(1, Op::kCheck, {heap, 2 * kPages, 2}), 0);
  // Shrunk and grown again: zeros, not what was there.
  ASSERT_TRUE(EvictAll(a_, static_cast<uint64_t>(heap), 2 * kPages));
  ASSERT_EQ(app().Syscall(1, SYS_brk, {heap + kBytes}), heap + kBytes);
  ASSERT_EQ(app().Syscall(1, SYS_brk, {heap + 2 * kBytes}), heap + 2 * kBytes);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {heap + kBytes, kPages}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {heap, kPages, 2}), 0);
}

// Fresh pages in a registered range: zeros, and around them, too.
TEST_F(Wake, FreshPagesAreZeroAndFilledAround) {
  const uint64_t at = app().Map(64);
  ASSERT_EQ(app().Call(1, Op::kFill, {I(at), 1, 1}), 0);
  ASSERT_TRUE(EvictAll(a_, at, 1));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {I(at + kPage), 63}), 0);
  EXPECT_GT(Read(client().stats().fault_around_pages), 0u);
  EXPECT_LT(Read(client().stats().faults_zero_fill), 63u);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 1, 1}), 0);
}

}  // namespace
}  // namespace uzswap::test

// Pages that are announced as dropped may still be there: hazard H3.
#include <sys/mman.h>

#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 16;
constexpr int64_t kBytes = kPages * kPage;

class Doomed : public UffdTest {
 protected:
  uint64_t MapRegistered() {
    const uint64_t at = app().MapFilled(kPages);
    EXPECT_TRUE(EvictAll(a_, at, kPages));
    Pump pump(world_, a_.client);
    EXPECT_EQ(app().Call(0, Op::kCheck, {I(at), kPages, 1}), 0);
    return at;
  }
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }

  World world_;
  Attached a_ = world_.Attach();
};

// DONTNEED announces, then waits for mmap_lock, which another thread holds in a long mprotect: an eviction
// between the two would carry the old content past the zap.
TEST_F(Doomed, PageBetweenItsRemoveAndItsZapIsNotEvicted) {
  constexpr uint64_t kBig = uint64_t{1} << 30;
  const uint64_t big = app().Map(kBig / kPage);
  ASSERT_EQ(app().Syscall(0, SYS_madvise, {I(big), I(kBig), MADV_POPULATE_READ}), 0);
  int caught = 0;
  for (int round = 0; round < 100 && caught < 3; ++round) {
    const uint64_t at = MapRegistered();
    PausedEvict evict(client(), "evict.chosen");
    app().PostSyscall(1, SYS_madvise, {I(at), kBytes, MADV_DONTNEED});
    ASSERT_TRUE(WaitReadable(client()));
    app().PostSyscall(2, SYS_mprotect,
                      {I(big), I(kBig), round % 2 == 0 ? PROT_READ : PROT_READ | PROT_WRITE});
    while (ThreadState(app().pid(), app().tid(2)) != 'R' && !app().IsDone(2)) std::this_thread::yield();
    ReadEvent(client(), client().stats().events_remove);
    const bool in_between = !app().IsDone(1) && app().IsPresent(at);
    evict.Finish();
    if (in_between) ++caught;
    Pump pump(world_, a_.client);
    ASSERT_TRUE(app().Wait(1) && app().Wait(2));
    ASSERT_EQ(app().Call(3, Op::kIsZero, {I(at), kPages}), 0);
  }
  EXPECT_GT(caught, 0) << "the zap was never late: nothing was tested";
}

// MADV_FREE leaves the pages: they may be evicted again once every thread that could be the one in madvise
// was seen outside of it, and not before.
TEST_F(Doomed, FreedPagesComeBackIntoUseOnlyByThreadClearance) {
  const uint64_t at = MapRegistered();
  const uint64_t other = MapRegistered();
  {
    Pump pump(world_, a_.client);
    ASSERT_EQ(app().Call(0, Op::kCheck, {I(at), kPages, 1}), 0);  // it was evicted with the other
  }
  // A thread that is inside madvise, for something else, and stays there: it waits for a page of ours.
  app().PostSyscall(2, SYS_madvise, {I(other), kBytes, MADV_DONTNEED});
  ReadEvent(client(), client().stats().events_remove);
  ASSERT_TRUE(app().Wait(2));
  app().PostSyscall(2, SYS_madvise, {I(other), kPage, MADV_POPULATE_WRITE});
  const Fault held = ReadFault(client(), other);

  app().PostSyscall(1, SYS_madvise, {I(at), kBytes, MADV_FREE});
  ReadEvent(client(), client().stats().events_remove);
  ASSERT_TRUE(app().Wait(1));
  ASSERT_TRUE(app().IsPresent(at));
  const uint64_t doomed = Read(client().stats().refused_doomed);
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(500);  // several listings of threads
  while (std::chrono::steady_clock::now() < until) (void)client().Evict(wire::kRingSlots, *scratch_);
  for (uint64_t i = 0; i < kPages; ++i) EXPECT_TRUE(app().IsPresent(at + i * kPage)) << "page " << i;
  EXPECT_GT(Read(client().stats().refused_doomed), doomed);

  EXPECT_EQ(ResolveFully(client(), held), ResolveOutcome::kResolved);
  ASSERT_TRUE(app().Wait(2));
  EXPECT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(3, Op::kCheck, {I(at), kPages, 1}), 0);  // nobody reclaimed them: still what they were
}

// A page that was seen missing after its REMOVE holds nothing old: it is an ordinary page again at once.
TEST_F(Doomed, PageFaultedInAgainIsEvictableAgain) {
  const uint64_t at = MapRegistered();
  {
    Pump pump(world_, a_.client);
    ASSERT_EQ(app().Syscall(1, SYS_madvise, {I(at), kBytes, MADV_DONTNEED}), 0);
    ASSERT_EQ(app().Call(1, Op::kFill, {I(at), kPages, 3}), 0);
  }
  EXPECT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 3}), 0);
}

}  // namespace
}  // namespace uzswap::test

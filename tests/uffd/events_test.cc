// Events against look-ups, evictions and faults: hazards H1, H2, H4 to H7, H9, H23, and fact 4.1.
#include <sys/mman.h>

#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 16;
constexpr int64_t kBytes = kPages * kPage;
constexpr int kNotYetMs = 300;  // how long what must not happen is watched

class Events : public UffdTest {
 protected:
  // The range again, at once, with new content; natively, since nothing is registered there.
  void Reuse(unsigned box, uint64_t at) {
    int64_t got = -EEXIST;
    while (got == -EEXIST) {  // until the other thread's munmap has taken place
      got = a_.app->Syscall(
          box, SYS_mmap,
          {I(at), kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0});
    }
    ASSERT_EQ(got, I(at));
    ASSERT_EQ(a_.app->Call(box, Op::kFill, {I(at), kPages, 2}), 0);
  }
  // Evicted and brought home again: present, and registered.
  uint64_t MapRegistered() {
    const uint64_t at = a_.app->MapFilled(kPages);
    EXPECT_TRUE(EvictAll(a_, at, kPages));
    Pump pump(world_, a_.client);
    EXPECT_EQ(a_.app->Call(0, Op::kCheck, {I(at), kPages, 1}), 0);
    return at;
  }
  uint64_t MapEvicted() {
    const uint64_t at = a_.app->MapFilled(kPages);
    EXPECT_TRUE(EvictAll(a_, at, kPages));
    return at;
  }
  // A fault that was read, and is being answered: stands before its COPY.
  std::future<ResolveOutcome> ResolveAsync(const Fault& fault) {
    return std::async(std::launch::async, [this, fault] {
      auto scratch = std::make_unique<FaultScratch>();
      return client().Resolve(fault, *scratch);
    });
  }
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }

  World world_;
  Attached a_ = world_.Attach();
};

TEST_F(Events, EvictedPagesComeHomeUnchanged) {
  const uint64_t at = app().MapFilled(64);
  ASSERT_TRUE(EvictAll(a_, at, 64));
  EXPECT_GE(client().stored_counts().handles, 64u);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 64, 1}), 0);
  EXPECT_EQ(Read(client().stats().faults_zero_fill), 0u);
}

// H1: decided, unmapped, event read, address reused: the command's sequence is old.
TEST_F(Events, StaleMoveIsRefusedWhenTheEventWasRead) {
  const uint64_t at = MapRegistered();
  PausedEvict evict(client(), "evict.begun");
  app().PostSyscall(1, SYS_munmap, {I(at), kBytes});
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  Reuse(2, at);
  const uint64_t stale = Read(client().stats().refused_stale);
  EXPECT_EQ(evict.Finish(), 0u);
  EXPECT_GE(Read(client().stats().refused_stale) - stale, kPages);
  // The new mapping is not registered: a stolen page would read as zeros, and nobody would know.
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
}

// H1: the same with the event still unread: the kernel refuses.
TEST_F(Events, StaleMoveIsRefusedWhileTheEventIsUnread) {
  const uint64_t at = MapRegistered();
  PausedEvict evict(client(), "evict.begun");
  app().PostSyscall(1, SYS_munmap, {I(at), kBytes});
  Reuse(2, at);
  EXPECT_EQ(evict.Finish(), 0u);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
  ReadEvent(client(), client().stats().events_unmap);
  EXPECT_TRUE(app().Wait(1));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
}

// H1: an event may not be read between the agent's look at the sequence and its MOVE. An agent that is
// stopped there loses its destination before the gate is taken from it.
TEST_F(Events, EventIsNotReadWhileTheAgentIsAboutToMove) {
  const uint64_t at = MapRegistered();
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client());
  const AgentTracer::Move move = agent.RunToMoveEntry();
  ASSERT_EQ(move.src, at);
  app().PostSyscall(1, SYS_munmap, {I(at), kBytes});
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  Reuse(2, at);
  EXPECT_LT(agent.RunToMoveExit(), 0);
  agent.Detach();
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
  EXPECT_GE(Read(client().stats().revoked), 1u);
  // And the agent comes back into service.
  Pump pump(world_, a_.client);
  EXPECT_TRUE(Soon(evicted, 30'000));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
}

// 4.1: between the look at the maps and REGISTER the mapping went away, and came back after it.
TEST_F(Events, MappingThatWasNotThereAtRegistrationIsNeverMovedFrom) {
  const uint64_t at = app().MapFilled(kPages);
  Pauses::Get().Arm("register.maps_read");
  Pauses::Get().Arm("register.asked");
  auto evicted = EvictAsync(client(), [tries = 0]() mutable { return ++tries > 50; });
  Pauses::Get().WaitReached("register.maps_read");
  ASSERT_EQ(app().Syscall(1, SYS_munmap, {I(at), kBytes}), 0);  // not registered: no event
  Pauses::Get().Release("register.maps_read");
  Pauses::Get().WaitReached("register.asked");
  Reuse(2, at);
  Pauses::Get().Arm("evict.moved");
  Pauses::Get().Release("register.asked");
  // Whatever is decided now, the content stays, with nobody there to answer faults.
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kNotYetMs);
  while (!Pauses::Get().Reached("evict.moved") && std::chrono::steady_clock::now() < until)
    std::this_thread::yield();
  Pauses::Get().Release("evict.moved");
  Pump pump(world_, a_.client);
  ASSERT_TRUE(Soon(evicted, 30'000));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
}

// 4.1: a hole in the range at REGISTER, mapped since.
TEST_F(Events, HoleInARegisteredRangeIsNeverMovedFrom) {
  const uint64_t at = app().MapFilled(kPages);
  Pauses::Get().Arm("evict.chosen");
  Pauses::Get().Arm("register.asked");
  auto evicted = EvictAsync(client());
  Pauses::Get().WaitReached("evict.chosen");
  ASSERT_EQ(app().Syscall(1, SYS_munmap, {I(at + 4 * kPage), 4 * kPage}), 0);
  Pauses::Get().Release("evict.chosen");
  Pauses::Get().WaitReached("register.asked");
  ASSERT_EQ(app().Syscall(1, SYS_mmap,
                          {I(at + 4 * kPage), 4 * kPage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0}),
            I(at + 4 * kPage));
  ASSERT_EQ(app().Call(1, Op::kFill, {I(at + 4 * kPage), 4, 1}), 0);
  Pauses::Get().Release("register.asked");
  Pump pump(world_, a_.client);
  ASSERT_TRUE(Soon(evicted, 30'000));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H2: content was looked up, then the range is unmapped, reused and registered again: the COPY must not land.
TEST_F(Events, LookUpAndCopyAreOneAgainstUnmap) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kRead64, {I(at)});
  const Fault fault = ReadFault(client(), at);
  Pauses::Get().Arm("fill.before_copy");
  auto resolved = ResolveAsync(fault);
  Pauses::Get().WaitReached("fill.before_copy");
  app().PostSyscall(2, SYS_munmap, {I(at), kBytes});
  int64_t mapped = -EEXIST;
  while (mapped == -EEXIST) {
    mapped = app().Syscall(
        3, SYS_mmap,
        {I(at), kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0});
  }
  ASSERT_TRUE(client().uffd().Register(at, kBytes).ok());
  auto read = ReadAsync(client());
  EXPECT_FALSE(app().Wait(2, kNotYetMs)) << "the event was taken in the middle of a look-up and its COPY";
  Pauses::Get().Release("fill.before_copy");
  ASSERT_TRUE(Soon(resolved) && Soon(read));
  Pump pump(world_, a_.client);
  if (resolved.get() == ResolveOutcome::kRequeue) (void)ResolveFully(client(), fault);
  for (const Fault& other : read.get()) (void)ResolveFully(client(), other);
  ASSERT_TRUE(app().Wait(1) && app().Wait(2));
  EXPECT_EQ(app().Call(3, Op::kIsZero, {I(at), kPages}), 0);
}

// H23: the same with DONTNEED: once it has returned, the old content must be gone.
TEST_F(Events, LookUpAndCopyAreOneAgainstDontNeed) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kRead64, {I(at)});
  const Fault fault = ReadFault(client(), at);
  Pauses::Get().Arm("fill.before_copy");
  auto resolved = ResolveAsync(fault);
  Pauses::Get().WaitReached("fill.before_copy");
  app().PostSyscall(2, SYS_madvise, {I(at), kBytes, MADV_DONTNEED});
  ASSERT_TRUE(WaitReadable(client()));
  auto read = ReadAsync(client());
  EXPECT_FALSE(app().Wait(2, kNotYetMs)) << "the event was taken in the middle of a look-up and its COPY";
  Pauses::Get().Release("fill.before_copy");
  ASSERT_TRUE(Soon(resolved) && Soon(read));
  Pump pump(world_, a_.client);
  if (resolved.get() == ResolveOutcome::kRequeue) (void)ResolveFully(client(), fault);
  for (const Fault& other : read.get()) (void)ResolveFully(client(), other);
  ASSERT_TRUE(app().Wait(1) && app().Wait(2));
  EXPECT_EQ(app().Call(3, Op::kIsZero, {I(at), kPages}), 0);
}

// H4: a fault at the new address is seen before the REMAP that explains it.
TEST_F(Events, FaultThatOvertakesItsRemapIsRequeued) {
  const uint64_t at = MapEvicted();
  const uint64_t to = app().FreeAddress();
  app().PostSyscall(1, SYS_mremap, {I(at), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, I(to)});
  app().WaitBlocked(1);
  const Fault early{to + 3 * kPage, app().tid(2), false, 0};
  EXPECT_EQ(client().Resolve(early, *scratch_), ResolveOutcome::kRequeue);
  EXPECT_EQ(client().Resolve({to + 3 * kPage, app().tid(2), true, 0}, *scratch_), ResolveOutcome::kRequeue);
  ReadEvent(client(), client().stats().events_remap);
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(client().Resolve(early, *scratch_), ResolveOutcome::kResolved);
  EXPECT_TRUE(app().IsPresent(to + 3 * kPage));
  Pump pump(world_, a_.client);
  for (uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(app().Call(2, Op::kRead64, {I(to + i * kPage + 8)}), I(PatternWord(at + i * kPage, 1, 1)));
  }
  EXPECT_EQ(Read(client().stats().faults_zero_fill), 0u);
}

// H5, H23: the REMAP is read and not yet applied, the program goes on, and a fault at the new address that
// was requeued before comes up.
TEST_F(Events, RequeuedFaultWaitsForAnEventThatIsBeingApplied) {
  const uint64_t at = MapEvicted();
  const uint64_t to = app().FreeAddress();
  constexpr int kDontUnmap = 4;
  app().PostSyscall(1, SYS_mremap,
                    {I(at), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED | kDontUnmap, I(to)});
  app().WaitBlocked(1);
  Pauses::Get().Arm("event.taken");
  auto read = ReadAsync(client());
  Pauses::Get().WaitReached("event.taken");
  ASSERT_TRUE(app().Wait(1));  // from here on the kernel refuses nothing
  auto resolved = ResolveAsync({to + 3 * kPage, app().tid(2), true, 0});
  EXPECT_EQ(resolved.wait_for(std::chrono::milliseconds(kNotYetMs)), std::future_status::timeout);
  Pauses::Get().Release("event.taken");
  ASSERT_TRUE(Soon(resolved) && Soon(read));
  Pump pump(world_, a_.client);
  for (uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(app().Call(2, Op::kRead64, {I(to + i * kPage + 8)}), I(PatternWord(at + i * kPage, 1, 1)));
  }
  EXPECT_EQ(app().Call(2, Op::kIsZero, {I(at), kPages}), 0);  // the old place is empty
}

// H5: nobody reads on while an event is being applied.
TEST_F(Events, SecondReaderWaitsForAnEventThatIsBeingApplied) {
  const uint64_t at = MapEvicted();
  const uint64_t to = app().FreeAddress();
  constexpr int kDontUnmap = 4;
  app().PostSyscall(1, SYS_mremap,
                    {I(at), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED | kDontUnmap, I(to)});
  app().WaitBlocked(1);
  Pauses::Get().Arm("event.taken");
  auto first = ReadAsync(client());
  Pauses::Get().WaitReached("event.taken");
  ASSERT_TRUE(app().Wait(1));
  app().Post(2, Op::kRead64, {I(to + 8)});
  ASSERT_TRUE(WaitReadable(client()));
  auto second = ReadAsync(client());
  EXPECT_EQ(second.wait_for(std::chrono::milliseconds(kNotYetMs)), std::future_status::timeout);
  Pauses::Get().Release("event.taken");
  ASSERT_TRUE(Soon(first) && Soon(second));
  for (const Fault& fault : first.get()) (void)ResolveFully(client(), fault);
  for (const Fault& fault : second.get()) (void)ResolveFully(client(), fault);
  Pump pump(world_, a_.client);
  ASSERT_TRUE(app().Wait(2));
  EXPECT_EQ(app().result(2), I(PatternWord(at, 1, 1)));
}

// H6: two threads' messages for one page; the second is answered when the page is home, and is written, and
// evicted again: a decision to fill with zeros may not outlive the page's coming and going.
TEST_F(Events, LateDuplicateDoesNotZeroAPageEvictedAgain) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kRead64, {I(at)});
  app().Post(2, Op::kRead64, {I(at + 8)});
  app().WaitBlocked(1);
  app().WaitBlocked(2);
  std::vector<Fault> faults;
  while (faults.size() < 2) {
    (void)WaitReadable(client(), 100);
    client().ReadMessages(&faults);
  }
  ASSERT_EQ(ResolveFully(client(), faults[0]), ResolveOutcome::kResolved);
  ASSERT_TRUE(app().Wait(1) && app().Wait(2));
  ASSERT_EQ(app().Call(1, Op::kWrite64, {I(at), 0x1122}), 0);

  Pauses::Get().Arm("zero_fill.before_copy");
  auto resolved = ResolveAsync(faults[1]);
  Pauses::Get().WaitReached("zero_fill.before_copy");
  auto evicted = EvictAsync(client(), [&] { return !app().IsPresent(at); });
  EXPECT_EQ(evicted.wait_for(std::chrono::milliseconds(kNotYetMs)), std::future_status::timeout);
  EXPECT_TRUE(app().IsPresent(at));
  Pauses::Get().Release("zero_fill.before_copy");
  ASSERT_TRUE(Soon(resolved) && Soon(evicted));
  EXPECT_EQ(resolved.get(), ResolveOutcome::kResolved);
  EXPECT_GE(Read(client().stats().faults_duplicate), 1u);
  // And one that comes after the second eviction brings the page, not zeros.
  EXPECT_EQ(ResolveFully(client(), faults[1]), ResolveOutcome::kResolved);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kRead64, {I(at)}), 0x1122);
}

// H7: the old range of an mremap is mapped anew before the trailing UNMAP is read.
TEST_F(Events, TrailingUnmapOfARemapDoesNotHurtWhoReusedTheRange) {
  const uint64_t at = MapRegistered();
  const uint64_t to = app().FreeAddress();
  app().PostSyscall(1, SYS_mremap, {I(at), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, I(to)});
  ReadEvent(client(), client().stats().events_remap);
  Reuse(2, at);
  // The evictor tries meanwhile.
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(kNotYetMs);
  while (std::chrono::steady_clock::now() < until) (void)client().Evict(wire::kRingSlots, *scratch_);
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  ASSERT_TRUE(EvictAll(a_, to, kPages));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 2}), 0);
  for (uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(app().Call(2, Op::kRead64, {I(to + i * kPage)}), I(PatternWord(at + i * kPage, 1, 0)));
  }
}

// H28: the kernel moved more than it said, and the agent took the rest for holes, say. Here its word is
// changed.
TEST_F(Events, PagesThatLeftWithoutAWordAreNotLost) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  const uint32_t words[] = {wire::kHole, wire::kNotOurs, wire::kBusy, wire::kStale, wire::kPending_};
  const uint64_t left = Unsay(a_, words);
  ASSERT_GE(left, kPages);
  EXPECT_EQ(evict.Finish(), left);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// What tells that no awaited UNMAP can come any more (H25).
TEST_F(Events, QuietWhereNoChangeIsUnannounced) {
  const uint64_t at = MapRegistered();
  EXPECT_TRUE(client().uffd().Quiet());
  app().PostSyscall(1, SYS_munmap, {I(at), kBytes});
  ASSERT_TRUE(WaitReadable(client()));
  EXPECT_FALSE(client().uffd().Quiet());
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_TRUE(client().uffd().Quiet());
}

// H9: a fault on a page that is in staging is answered at once from the ring.
TEST_F(Events, FaultOnAStagedPageIsAnsweredFromTheRing) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  app().Post(1, Op::kRead64, {I(at + 5 * kPage)});
  const Fault fault = ReadFault(client(), at + 5 * kPage);
  EXPECT_EQ(client().Resolve(fault, *scratch_), ResolveOutcome::kResolved);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(app().result(1), I(PatternWord(at + 5 * kPage, 1, 0)));
  ASSERT_EQ(app().Call(1, Op::kWrite64, {I(at + 5 * kPage), 77}), 0);
  evict.Finish();
  EXPECT_TRUE(app().IsPresent(at + 5 * kPage));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kRead64, {I(at + 5 * kPage)}), 77);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 5, 1}), 0);
}

TEST_F(Events, StagedPagesFollowARemap) {
  const uint64_t at = app().MapFilled(kPages);
  const uint64_t to = app().FreeAddress();
  PausedEvict evict(client(), "evict.moved");
  app().PostSyscall(1, SYS_mremap, {I(at), kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, I(to)});
  ReadEvent(client(), client().stats().events_remap);
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(1));
  evict.Finish();
  Pump pump(world_, a_.client);
  for (uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(app().Call(2, Op::kRead64, {I(to + i * kPage)}), I(PatternWord(at + i * kPage, 1, 0)));
  }
}

TEST_F(Events, StagedPagesThatAreDroppedStayDropped) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  app().PostSyscall(1, SYS_madvise, {I(at), kBytes, MADV_DONTNEED});
  ReadEvent(client(), client().stats().events_remove);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(evict.Finish(), 0u);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(2, Op::kIsZero, {I(at), kPages}), 0);
}

}  // namespace
}  // namespace uzswap::test

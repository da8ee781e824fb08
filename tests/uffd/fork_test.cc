// Fork: the child must have every page, wherever it was: hazards H8, H11, H23, and facts 6.1 to 6.5.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 32;
constexpr unsigned kChild = 10;
constexpr unsigned kGrandchild = 11;

class Fork : public UffdTest {
 protected:
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }

  // Thread 1 forks, and has returned from it while the fork is not applied; then thread 2 advises eight
  // pages.
  void AdviseBehindAFork(uint64_t at, int advice) {
    Pauses::Get().Arm("event.taken");
    app().Post(1, Op::kFork, {kChild});
    Pauses::Get().WaitReached("event.taken");
    ASSERT_TRUE(app().Wait(1));
    app().Post(2, Op::kLibcMadvise, {I(at), 8 * kPage, advice});
    EXPECT_FALSE(app().Wait(2, 300)) << "the advice took effect before the fork was applied";
    Pauses::Get().Release("event.taken");
    ASSERT_TRUE(app().Wait(2));
    EXPECT_EQ(app().result(2), 0);
  }

  // Forks while a batch is at its pause; then both must have the batch's pages.
  void ExpectAForkSeesAll(uint64_t at, PausedEvict& evict) {
    app().Post(1, Op::kFork, {kChild});
    ReadEvent(client(), client().stats().events_fork);
    ASSERT_TRUE(app().Wait(1));
    evict.Finish();
    Pump pump(world_, a_.client);
    EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
    EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
  }

  World world_;
  Attached a_ = world_.Attach();
};

TEST_F(Fork, ChildAndGrandchildSeeEvictedPages) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  ASSERT_GT(app().Call(1, Op::kFork, {kChild}), 0);
  ASSERT_GT(app().Call(kChild, Op::kFork, {kGrandchild}), 0);
  EXPECT_EQ(app().Call(kGrandchild, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(kGrandchild, Op::kFill, {I(at), kPages, 3}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kFill, {I(at), kPages, 2}), 0);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 2}), 0);
  EXPECT_EQ(app().Call(kGrandchild, Op::kCheck, {I(at), kPages, 3}), 0);
  EXPECT_EQ(world_.host().children().size(), 2u);
}

// H8: pages are in staging, and nobody has stored them, when the program forks.
TEST_F(Fork, ChildAndParentSeePagesOfABatchInStaging) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  ExpectAForkSeesAll(at, evict);
}

// H28, as Events.PagesThatLeftWithoutAWordAreNotLost.
TEST_F(Fork, ChildSeesPagesThatLeftWithoutAWord) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  const uint32_t hole[] = {wire::kHole};
  ASSERT_GE(Unsay(a_, hole), kPages);
  ExpectAForkSeesAll(at, evict);
}

// H8: the agent is between its MOVE and its report: what the kernel moved counts, not what was reported.
TEST_F(Fork, ChildSeesPagesThatMovedAndWereNotReported) {
  const uint64_t at = app().MapFilled(kPages);
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client());
  (void)agent.RunToMoveEntry();
  ASSERT_EQ(agent.RunToMoveExit(), 0);
  app().Post(1, Op::kFork, {kChild});
  ReadEvent(client(), client().stats().events_fork);
  ASSERT_TRUE(app().Wait(1));
  {
    Pump pump(world_, a_.client);
    EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
    agent.Detach();
    EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
    EXPECT_TRUE(Soon(evicted, 30'000));
    EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
  }
}

// H8: the same before the MOVE: the pages are the child's natively.
TEST_F(Fork, CommandThatHasNotBegunIsOvertakenByAFork) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.begun");
  app().Post(1, Op::kFork, {kChild});
  ReadEvent(client(), client().stats().events_fork);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_EQ(evict.Finish(), 0u);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H23: a page is on its way home, to the parent alone, when the fork is read.
TEST_F(Fork, PageOnItsWayHomeIsInTheChildToo) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  app().Post(1, Op::kRead64, {I(at)});
  const Fault fault = ReadFault(client(), at);
  Pauses::Get().Arm("fill.before_copy");
  auto resolved = std::async(std::launch::async, [&] {
    auto scratch = std::make_unique<FaultScratch>();
    return client().Resolve(fault, *scratch);
  });
  Pauses::Get().WaitReached("fill.before_copy");
  app().Post(2, Op::kFork, {kChild});
  ASSERT_TRUE(WaitReadable(client()));
  auto read = ReadAsync(client());
  EXPECT_FALSE(app().Wait(2, 300)) << "the fork went on in the middle of a look-up and its COPY";
  Pauses::Get().Release("fill.before_copy");
  ASSERT_TRUE(Soon(resolved) && Soon(read));
  Pump pump(world_, a_.client);
  if (resolved.get() == ResolveOutcome::kRequeue) (void)ResolveFully(client(), fault);
  for (const Fault& other : read.get()) (void)ResolveFully(client(), other);
  ASSERT_TRUE(app().Wait(1) && app().Wait(2));
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H11: what is wiped on fork is zero in the child, also where the parent's page is evicted.
TEST_F(Fork, WipeOnForkIsZeroInTheChild) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_EQ(app().Syscall(1, SYS_madvise, {I(at + 8 * kPage), 8 * kPage, MADV_WIPEONFORK}), 0);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  ASSERT_GT(app().Call(1, Op::kFork, {kChild}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kIsZero, {I(at + 8 * kPage), 8}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), 8, 1}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at + 16 * kPage), 16, 1}), 0);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H26: fork has returned, but is not applied yet, when the parent changes what it wipes on fork.
TEST_F(Fork, WipeThatBeginsBehindAForkIsNotItsChilds) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  ASSERT_NO_FATAL_FAILURE(AdviseBehindAFork(at + 8 * kPage, MADV_WIPEONFORK));
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
}

TEST_F(Fork, WipeThatEndsBehindAForkIsStillItsChilds) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_EQ(app().Syscall(1, SYS_madvise, {I(at + 8 * kPage), 8 * kPage, MADV_WIPEONFORK}), 0);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  ASSERT_NO_FATAL_FAILURE(AdviseBehindAFork(at + 8 * kPage, MADV_KEEPONFORK));
  EXPECT_EQ(app().Call(kChild, Op::kIsZero, {I(at + 8 * kPage), 8}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), 8, 1}), 0);
}

// 6.2: present pages are shared after the fork, and MOVE refuses them until they are un-shared.
TEST_F(Fork, SharedPagesAreUnsharedAndThenEvicted) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  ASSERT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  const int64_t child = app().Call(1, Op::kFork, {kChild});
  ASSERT_GT(child, 0);
  EXPECT_TRUE(EvictAll(a_, at, kPages));
  EXPECT_GT(Read(client().stats().refused_busy), 0u);
  EXPECT_EQ(app().Call(kChild, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(kChild, Op::kFill, {I(at), kPages, 2}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

TEST_F(Fork, DeadChildIsNoticedAndGivesEverythingBack) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  app().Post(1, Op::kFork, {kChild});
  ReadEvent(client(), client().stats().events_fork);
  ASSERT_TRUE(app().Wait(1));
  ASSERT_EQ(world_.host().children().size(), 1u);
  EXPECT_FALSE(world_.host().children()[0]->Gone());
  ASSERT_EQ(kill(static_cast<pid_t>(app().result(1)), SIGKILL), 0);
  ASSERT_EQ(app().Syscall(1, SYS_wait4, {app().result(1), 0, 0, 0}), app().result(1));
  EXPECT_TRUE(world_.host().children()[0]->Gone());
  app().Kill();
  EXPECT_TRUE(client().Gone());
}

}  // namespace
}  // namespace uzswap::test

// Pages that must not go, and pages that cannot be kept: they stay, are counted, and are whole.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include <cstring>

#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 16;
constexpr int64_t kBytes = kPages * kPage;

class Refusals : public UffdTest {
 protected:
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }
  ClientStats& stats() { return a_.client->stats(); }

  World world_;
  Attached a_ = world_.Attach();
};

TEST_F(Refusals, LockedPagesAreNotOurs) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_EQ(app().Syscall(1, SYS_mlock, {I(at), kBytes}), 0);
  EXPECT_TRUE(EvictUntil(client(), [&] { return Read(stats().refused_not_ours) >= kPages; }));
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(Read(stats().evicted_pages), 0u);
}

TEST_F(Refusals, ProtectionsChangedAfterTheChoiceAreNotOurs) {
  for (const int protection : {PROT_READ, PROT_READ | PROT_WRITE | PROT_EXEC, PROT_NONE}) {
    const uint64_t at = app().MapFilled(kPages);
    PausedEvict evict(client(), "evict.begun");
    const uint64_t before = Read(stats().refused_not_ours);
    ASSERT_EQ(app().Syscall(1, SYS_mprotect, {I(at), kBytes, protection}), 0);
    EXPECT_EQ(evict.Finish(), 0u) << protection;
    EXPECT_GE(Read(stats().refused_not_ours) - before, kPages) << protection;
    ASSERT_EQ(app().Syscall(1, SYS_mprotect, {I(at), kBytes, PROT_READ | PROT_WRITE}), 0);
    EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0) << protection;
    Pump pump(world_, a_.client);
    ASSERT_EQ(app().Syscall(1, SYS_munmap, {I(at), kBytes}), 0);
  }
}

TEST_F(Refusals, ReadOnlyAndExecutableMappingsAreNeverChosen) {
  const uint64_t read_only = app().MapFilled(kPages);
  const uint64_t executable = app().MapFilled(kPages);
  ASSERT_EQ(app().Syscall(1, SYS_mprotect, {I(read_only), kBytes, PROT_READ}), 0);
  ASSERT_EQ(app().Syscall(1, SYS_mprotect, {I(executable), kBytes, PROT_READ | PROT_WRITE | PROT_EXEC}), 0);
  const uint64_t plain = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, plain, kPages));
  EXPECT_EQ(Read(stats().refused_not_ours), 0u);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(read_only), kPages, 1}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(executable), kPages, 1}), 0);
}

// The kernel holds the pages for a device, or a ring: MOVE sees the pin.
TEST_F(Refusals, PagesPinnedByIoUringStayUntilTheyAreReleased) {
  const uint64_t at = app().MapFilled(kPages);
  auto* scratch = app().shared().scratch;
  const uint64_t there = app().scratch_address();
  memset(scratch, 0, sizeof(io_uring_params));
  const int64_t ring = app().Syscall(1, SYS_io_uring_setup, {1, I(there)});
  if (ring < 0) GTEST_SKIP() << "io_uring is not permitted: " << strerror(static_cast<int>(-ring));
  const iovec buffer{reinterpret_cast<void*>(at), static_cast<size_t>(kBytes)};
  memcpy(scratch, &buffer, sizeof(buffer));
  ASSERT_EQ(app().Syscall(1, SYS_io_uring_register, {ring, IORING_REGISTER_BUFFERS, I(there), 1}), 0);
  EXPECT_TRUE(EvictUntil(client(), [&] { return Read(stats().refused_pinned) >= 2 * kPages; }));
  for (uint64_t i = 0; i < kPages; ++i) EXPECT_TRUE(app().IsPresent(at + i * kPage));
  ASSERT_EQ(app().Syscall(1, SYS_io_uring_register, {ring, IORING_UNREGISTER_BUFFERS, 0, 0}), 0);
  EXPECT_TRUE(EvictAll(a_, at, kPages));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// Dropped between the choice and the MOVE, without an event, since nothing was registered yet.
TEST_F(Refusals, HolesAreCounted) {
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.chosen");
  ASSERT_EQ(app().Syscall(1, SYS_madvise, {I(at), kBytes, MADV_DONTNEED}), 0);
  evict.Finish();
  EXPECT_GE(Read(stats().refused_hole), kPages - 1);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kIsZero, {I(at), kPages}), 0);
}

// 17.2: a range in a userfaultfd of the program's own refuses ours, but it would let a MOVE take its pages.
TEST_F(Refusals, PagesInAUserfaultfdOfTheProgramsOwnAreNotOurs) {
  const uint64_t at = app().MapFilled(kPages);
  auto* scratch = app().shared().scratch;
  const uint64_t there = app().scratch_address();
  const int64_t fd = app().Syscall(1, SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY});
  if (fd < 0) GTEST_SKIP() << "no userfaultfd: " << strerror(static_cast<int>(-fd));
  uffdio_api api{};
  api.api = UFFD_API;
  memcpy(scratch, &api, sizeof(api));
  ASSERT_EQ(app().Syscall(1, SYS_ioctl, {fd, I(UFFDIO_API), I(there)}), 0);
  // A part: what is beside it goes as ever.
  constexpr uint64_t kOwn = kPages / 2;
  uffdio_register registration{};
  registration.range = {at, kOwn * kPage};
  registration.mode = UFFDIO_REGISTER_MODE_MISSING;
  memcpy(scratch, &registration, sizeof(registration));
  ASSERT_EQ(app().Syscall(1, SYS_ioctl, {fd, I(UFFDIO_REGISTER), I(there)}), 0);
  ASSERT_TRUE(EvictAll(a_, at + kOwn * kPage, kPages - kOwn));
  EXPECT_TRUE(EvictUntil(client(), [&] { return Read(stats().refused_not_ours) >= 2 * kOwn; }));
  for (uint64_t i = 0; i < kOwn; ++i) EXPECT_TRUE(app().IsPresent(at + i * kPage));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  // And ours again when the program has given it up.
  ASSERT_EQ(app().Syscall(1, SYS_close, {fd}), 0);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// 1.5: a filter of the program's own that the agent's thread gets, too: nothing more is asked of the agent,
// nothing is lost.
class FilteredRefusals : public Refusals, public ::testing::WithParamInterface<uint32_t> {};

TEST_P(FilteredRefusals, ProgramThatForbidsIoctlKeepsItsPages) {
  const uint64_t before = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, before, kPages));
  struct Filter {
    sock_filter code[4];
    sock_fprog program;
  };
  const uint64_t there = app().scratch_address();
  const Filter filter{{{0x20, 0, 0, 0},  // load the number of the call
                       {0x15, 0, 1, SYS_ioctl},
                       {0x06, 0, 0, GetParam()},
                       {0x06, 0, 0, SECCOMP_RET_ALLOW}},
                      {4, reinterpret_cast<sock_filter*>(there)}};
  memcpy(app().shared().scratch, &filter, sizeof(filter));
  ASSERT_EQ(app().Syscall(
                1, SYS_seccomp,
                {SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, I(there + offsetof(Filter, program))}),
            0);
  const uint64_t at = app().MapFilled(kPages);
  EXPECT_TRUE(EvictUntil(client(), [&] { return Read(stats().refused_failed) >= kPages; }));
  EXPECT_TRUE(app().IsPresent(at));
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(before), kPages, 1}), 0);
}

INSTANTIATE_TEST_SUITE_P(Actions, FilteredRefusals,
                         ::testing::Values(SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_KILL_PROCESS,
                                           SECCOMP_RET_TRAP));

TEST(PoolFull, PageGoesHome) {
  class Bare : public UffdTest {
   public:
    using UffdTest::EvictUntil;
    void TestBody() override {}
  } tools;
  World world(zp::KiB(64));
  Attached a = world.Attach();
  constexpr uint64_t kMany = 400;
  const uint64_t at = a.app->MapFilled(kMany);
  EXPECT_TRUE(tools.EvictUntil(*a.client, [&] { return Read(a.client->stats().refused_no_memory) > 0; }));
  EXPECT_GT(Read(a.client->stats().evicted_pages), 0u);
  EXPECT_LE(world.store().pool_bytes(), zp::KiB(64).value());
  Pump pump(world, a.client);
  EXPECT_EQ(a.app->Call(1, Op::kCheck, {I(at), kMany, 1}), 0);
}

}  // namespace
}  // namespace uzswap::test

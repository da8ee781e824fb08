// A client that lies: it may hurt itself, never the daemon, and never others. Design, section 7.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <random>

#include "tests/uffd/fixture.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 64;

class Hostile : public UffdTest {
 protected:
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }
  wire::Ring& ring() { return *a_.ring; }

  // Does `write` over and over until it is destroyed.
  class Scribbler {
   public:
    explicit Scribbler(std::function<void()> write)
        : thread_([this, write = std::move(write)] {
            while (!stop_) write();
          }) {}
    ~Scribbler() {
      stop_ = true;
      thread_.join();
    }

   private:
    std::atomic<bool> stop_{false};
    std::thread thread_;
  };

  World world_;
  Attached a_ = world_.Attach();
};

class HostileGate : public Hostile, public ::testing::WithParamInterface<uint32_t> {};

// The gate never comes free: the agent is overruled, faults are served, and after a while it is not trusted
// any more.
TEST_P(HostileGate, FaultsAreServedAndNothingIsEvictedAnyMore) {
  const uint64_t at = app().MapFilled(kPages);
  ASSERT_TRUE(EvictAll(a_, at, kPages));
  std::chrono::steady_clock::duration last{};
  for (uint64_t i = 0; i < kPages; i += 2) {
    ring().header.gate = GetParam();
    app().Post(1, Op::kCheck, {I(at + i * kPage), 1, 1});
    const auto begin = std::chrono::steady_clock::now();
    const Fault fault = ReadFault(client(), at + i * kPage);
    EXPECT_EQ(ResolveFully(client(), fault), ResolveOutcome::kResolved);
    last = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(app().Wait(1));
    EXPECT_EQ(app().result(1), 0);
  }
  EXPECT_LT(last, std::chrono::milliseconds(15)) << "its gate is still waited for";
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (std::chrono::steady_clock::now() < until) {
    const auto evicted = client().Evict(wire::kRingSlots, *scratch_);
    EXPECT_TRUE(!evicted.ok() || *evicted == 0);
  }
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

INSTANTIATE_TEST_SUITE_P(Values, HostileGate, ::testing::Values(1u, 3u, 0xdeadbeefu));

// Everything in the ring is nonsense, all the time. The daemon stands, and another client notices nothing.
TEST_F(Hostile, RingFullOfNonsense) {
  Attached other = world_.Attach();
  const uint64_t there = other.app->MapFilled(kPages);
  ASSERT_TRUE(EvictAll(other, there, kPages));
  const uint64_t at = app().MapFilled(kPages);
  {
    const char* from_environment = getenv("UZSWAP_TEST_SEED");
    const unsigned seed =
        from_environment == nullptr ? 20u : static_cast<unsigned>(strtoul(from_environment, nullptr, 10));
    SCOPED_TRACE("replay: UZSWAP_TEST_SEED=" + std::to_string(seed));
    std::mt19937 random(seed);
    Scribbler scribbler([&] {
      ring().result[random() % wire::kRingSlots].store(random() % 20);
      ring().result[random() % wire::kRingSlots].store(random());
      ring().page[random() % wire::kRingSlots] = uint64_t{random()} << (random() % 40);
      reinterpret_cast<volatile uint32_t&>(ring().header.count) = random();
      reinterpret_cast<volatile uint32_t&>(ring().header.thread_count) = random();
      reinterpret_cast<volatile uint64_t&>(ring().header.seq) = random();
      if (random() % 64 == 0) ring().header.command.store(random() % 6);
      if (random() % 64 == 0) ring().header.event_seq.store(random());
      ring().data[random() % wire::kRingSlots][random() % kPage] = static_cast<uint8_t>(random());
    });
    Pump pump(world_, a_.client);
    pump.Add(other.client);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(3);
    for (int round = 0; std::chrono::steady_clock::now() < until; ++round) {
      app().Post(1, Op::kFill, {I(at), kPages, round});  // whatever becomes of it
      (void)client().Evict(wire::kRingSlots, *scratch_);
      other.app->Post(1, Op::kCheck, {I(there), kPages, 1});
      ASSERT_TRUE(other.app->Wait(1));
      ASSERT_EQ(other.app->result(1), 0);
      if (!app().Wait(1, 2000)) break;  // it has hung itself, which is its own affair
    }
  }
  EXPECT_TRUE(EvictAll(other, there, kPages));
  Pump pump(world_, other.client);
  EXPECT_EQ(other.app->Call(1, Op::kCheck, {I(there), kPages, 1}), 0);
}

// The number of threads is one that cannot be.
TEST_F(Hostile, NumberOfThreadsThatCannotBe) {
  const uint64_t at = app().MapFilled(kPages);
  for (const uint32_t count : {wire::kMaxThreadRecords + 1, 0x40000000u, ~0u}) {
    PausedEvict evict(client(), "threads.listed");
    reinterpret_cast<volatile uint32_t&>(ring().header.thread_count) = count;
    evict.Finish();
  }
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// Staged content changes while it is encoded: what is stored is a page that was there at some moment, whole
// and with its right checksum; never one that cannot be read back.
TEST_F(Hostile, ContentThatChangesWhileItIsEncoded) {
  const uint64_t at = app().MapFilled(kPages);
  uint32_t n = 0;
  Scribbler scribbler([&] {
    for (int i = 0; i < 64; ++i) {
      n = n * 1664525 + 1013904223;
      reinterpret_cast<volatile uint8_t&>(ring().data[n % kPages][(n >> 8) % kPage]) =
          static_cast<uint8_t>(n >> 20);
    }
  });
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(EvictAll(a_, at, kPages));
    Pump pump(world_, a_.client);
    ASSERT_EQ(app().Call(1, Op::kFill, {I(at), kPages, round}), 0);
  }
  EXPECT_EQ(Read(client().stats().corrupt), 0u);
}

// The agent says "moved, not yet copied" and never goes on, the staging is not there, and the program forks:
// whoever reads the fork may not wait for that.
TEST_F(Hostile, CopyThatNeverComesDoesNotHoldUpAFork) {
  (void)app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.moved");
  // Staging, as maps shows it: 2 MiB and the barrier page, read and write.
  uint64_t staging = 0;
  char line[512];
  FILE* maps = fopen(("/proc/" + std::to_string(app().pid()) + "/maps").c_str(), "re");
  while (fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long start = 0, end = 0;
    char permissions[8] = {};
    if (sscanf(line, "%lx-%lx %7s", &start, &end, permissions) != 3) continue;
    if (strcmp(permissions, "rw-p") == 0 && end - start == wire::kStagingBytes + zp::kPageBytes) {
      staging = start;
    }
  }
  fclose(maps);
  ASSERT_NE(staging, 0u);
  app().PostSyscall(2, SYS_munmap, {I(staging), I(wire::kStagingBytes)});
  ReadEvent(client(), client().stats().events_unmap);
  ASSERT_TRUE(app().Wait(2));
  for (auto& result : ring().result) result.store(wire::kMoved);
  app().Post(1, Op::kFork, {10});
  ASSERT_TRUE(WaitReadable(client()));
  auto read = ReadAsync(client());
  if (!Soon(read, 10'000)) {
    ADD_FAILURE() << "a fault worker waits for the agent's copy for ever";
    for (auto& result : ring().result) result.store(wire::kHole);  // let the test end
    ASSERT_TRUE(Soon(read));
  }
  evict.Finish();
}

// A ring that the client has cut short would be a SIGBUS in the daemon.
TEST_F(Hostile, RingCannotBeCutShort) {
  EXPECT_NE(ftruncate(a_.ring_fd, 0), 0) << "the client can end the daemon: the ring's memfd is not sealed";
  EXPECT_NE(ftruncate(a_.ring_fd, wire::kRingBytes * 2), 0);
  (void)ftruncate(a_.ring_fd, wire::kRingBytes);
}

}  // namespace
}  // namespace uzswap::test

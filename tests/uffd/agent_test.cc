// The agent: what it may do at a time, and what becomes of everybody when it is stopped, or gone: hazards
// H14, H15, H17, H20, H21, and a program whose threads come and go.
#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>

#include "tests/uffd/fixture.h"
#include "tools/agent/agent_state.h"

namespace uzswap::test {
namespace {

constexpr uint64_t kPages = 64;

class Agent : public UffdTest {
 protected:
  uint64_t MapEvicted() {
    const uint64_t at = app().MapFilled(kPages);
    EXPECT_TRUE(EvictAll(a_, at, kPages));
    return at;
  }
  Client& client() { return *a_.client; }
  App& app() { return *a_.app; }

  World world_;
  Attached a_ = world_.Attach();
};

// H17: a batch has at most 512 pages, and the gate is held for at most 128 of them.
TEST_F(Agent, MovesInSmallBites) {
  const uint64_t at = app().MapFilled(1500);
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client());
  std::vector<AgentTracer::Move> moves;
  AgentTracer::Move move;
  for (;;) {
    if (agent.RunToMoveEntryOrReport(&move)) {
      moves.push_back(move);
    } else if (!moves.empty()) {
      break;  // the report of the batch
    }
  }
  agent.Detach();
  ASSERT_TRUE(Soon(evicted, 20'000));
  uint64_t all = 0;
  for (const auto& each : moves) {
    EXPECT_LE(each.len, 128 * kPage);
    all += each.len;
  }
  EXPECT_EQ(all, 512 * kPage);
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), 1500, 1}), 0);
}

// One store holds what programs want kept in different ways.
TEST_F(Agent, PagesAreKeptAsTheProgramAsked) {
  Attached zbud = world_.Attach(0, {"UZSWAP_POOL=zbud"});
  Attached raw = world_.Attach(0, {"UZSWAP_CODEC=raw"});
  struct Mapped {
    Attached* of;
    uint64_t at;
  };
  std::vector<Mapped> mapped;
  for (Attached* each : {&a_, &zbud, &raw}) {
    mapped.push_back({each, each->app->MapFilled(kPages)});
    EXPECT_TRUE(EvictAll(*each, mapped.back().at, kPages));
  }
  const auto stored = [](const Attached& of) { return of.client->stored_counts().handles; };
  const zp::PoolStats stats = world_.store().stats();
  uint64_t in_zsmalloc = 0;
  for (const zp::SizeClassStats& size_class : stats.classes) in_zsmalloc += size_class.objects;
  EXPECT_EQ(in_zsmalloc, stored(a_) + stored(raw));
  EXPECT_EQ(stats.stored_pages, stored(a_) + stored(raw) + stored(zbud));
  EXPECT_GE(stored(zbud), kPages);
  EXPECT_EQ(Read(raw.client->stats().object_bytes), stored(raw) * kPage);
  EXPECT_LT(Read(a_.client->stats().object_bytes), stored(a_) * kPage);
  for (const Mapped& one : mapped) {
    Pump pump(world_, one.of->client);
    EXPECT_EQ(one.of->app->Call(1, Op::kCheck, {I(one.at), kPages, 1}), 0);
  }
}

// H21: the agent is stopped between taking the gate and its MOVE. Faults of the program's other threads are
// served, and what the agent does when it wakes up moves nothing.
TEST_F(Agent, StoppedBeforeItsMoveHoldsUpNobody) {
  const uint64_t gone = MapEvicted();
  const uint64_t at = app().MapFilled(kPages);
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client(), [&] { return Read(client().stats().revoked) > 0; });
  (void)agent.RunToMoveEntry();
  app().Post(1, Op::kCheck, {I(gone), 1, 1});
  const auto begin = std::chrono::steady_clock::now();
  const Fault fault = ReadFault(client(), gone);
  EXPECT_EQ(ResolveFully(client(), fault), ResolveOutcome::kResolved);
  ASSERT_TRUE(app().Wait(1));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(2));
  EXPECT_EQ(app().result(1), 0);
  EXPECT_GE(Read(client().stats().revoked), 1u);
  EXPECT_LT(agent.RunToMoveExit(), 0);
  agent.Detach();
  ASSERT_TRUE(Soon(evicted, 20'000));
  {
    Pump pump(world_, a_.client);
    EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
    EXPECT_EQ(app().Call(2, Op::kCheck, {I(gone), kPages, 1}), 0);
  }
  EXPECT_TRUE(EvictAll(a_, at, kPages)) << "the agent does not work any more";
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H21: stopped behind its MOVE, before it could say so: the kernel's page tables decide.
TEST_F(Agent, StoppedBehindItsMoveLosesNothing) {
  const uint64_t at = app().MapFilled(kPages);
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client(), [&] { return Read(client().stats().revoked) > 0; });
  (void)agent.RunToMoveEntry();
  ASSERT_EQ(agent.RunToMoveExit(), 0);
  ASSERT_FALSE(app().IsPresent(at));
  app().Post(1, Op::kCheck, {I(at), kPages, 1});
  {
    Pump pump(world_, a_.client);
    EXPECT_TRUE(app().Wait(1, 5000)) << "faults on moved pages wait for the stopped agent";
    ASSERT_TRUE(Soon(evicted, 20'000));  // RunBatch gives up waiting
    agent.Detach();
    ASSERT_TRUE(app().Wait(1));
    EXPECT_EQ(app().result(1), 0);
  }
  EXPECT_TRUE(EvictAll(a_, at, kPages)) << "the agent does not work any more";
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(2, Op::kCheck, {I(at), kPages, 1}), 0);
  EXPECT_EQ(Read(client().stats().corrupt), 0u);
}

// H21: the whole program is stopped with a command pending. Another program's faults are served meanwhile.
TEST_F(Agent, StoppedProgramWithACommandPending) {
  Attached other = world_.Attach();
  const uint64_t there = other.app->MapFilled(kPages);
  ASSERT_TRUE(EvictAll(other, there, kPages));
  const uint64_t at = app().MapFilled(kPages);
  PausedEvict evict(client(), "evict.begun");
  ASSERT_EQ(kill(app().pid(), SIGSTOP), 0);
  while (ThreadState(app().pid(), app().agent_tid()) != 'T') std::this_thread::yield();
  Pauses::Get().Release("evict.begun");
  other.app->Post(1, Op::kCheck, {I(there), kPages, 1});
  {
    Pump pump(world_, other.client);
    ASSERT_TRUE(other.app->Wait(1));
    EXPECT_EQ(other.app->result(1), 0);
  }
  EXPECT_EQ(evict.Finish(), 0u);
  EXPECT_GE(Read(client().stats().revoked), 1u);
  ASSERT_EQ(kill(app().pid(), SIGCONT), 0);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);  // nothing had left
  EXPECT_TRUE(EvictAll(a_, at, kPages)) << "the agent does not work any more";
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H21: the whole program is stopped while the command runs.
TEST_F(Agent, StoppedProgramWithACommandRunning) {
  const uint64_t at = app().MapFilled(kPages);
  AgentTracer agent(app().agent_tid());
  auto evicted = EvictAsync(client(), [&] { return Read(client().stats().revoked) > 0; });
  (void)agent.RunToMoveEntry();
  ASSERT_EQ(agent.RunToMoveExit(), 0);
  ASSERT_EQ(kill(app().pid(), SIGSTOP), 0);
  agent.Detach();
  while (ThreadState(app().pid(), app().agent_tid()) != 'T') std::this_thread::yield();
  ASSERT_TRUE(Soon(evicted, 20'000));
  EXPECT_GE(evicted.get(), kPages);  // taken from staging as it is
  ASSERT_EQ(kill(app().pid(), SIGCONT), 0);
  {
    Pump pump(world_, a_.client);
    EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
  }
  EXPECT_TRUE(EvictAll(a_, at, kPages)) << "the agent does not work any more";
  Pump pump(world_, a_.client);
  EXPECT_EQ(app().Call(1, Op::kCheck, {I(at), kPages, 1}), 0);
}

// H14: a thread's descriptor must be there when it ends: the kernel's last write is dropped silently else,
// and join waits for ever. Nobody serves faults here.
TEST_F(Agent, ThreadDescriptorsAndStacksStay) {
  constexpr unsigned kBox = 8;
  ASSERT_EQ(app().Call(1, Op::kStartThread, {kBox}), 0);
  ASSERT_EQ(app().Syscall(kBox, SYS_getpid, {}), app().pid());
  void* robust = nullptr;
  size_t length = 0;
  ASSERT_EQ(syscall(SYS_get_robust_list, app().tid(kBox), &robust, &length), 0);
  const uint64_t descriptor = reinterpret_cast<uint64_t>(robust);
  ASSERT_TRUE(app().IsPresent(descriptor));
  for (int round = 0; round < 3; ++round) {
    const uint64_t at =
        app().MapFilled(kPages);  // mapped after the stack: when it goes, the stack would have gone
    ASSERT_TRUE(EvictAll(a_, at, kPages));
  }
  EXPECT_TRUE(app().IsPresent(descriptor));
  EXPECT_EQ(app().Call(kBox, Op::kQuit, {}), 0);
  EXPECT_EQ(app().Call(1, Op::kJoinThread, {kBox}), 0);
  for (unsigned box = 0; box < kFirstThreads; ++box)
    EXPECT_EQ(app().Syscall(box, SYS_getpid, {}), app().pid());
}

// H14: the same for a thread that was born after the threads were last listed, on a stack that had been
// another's.
TEST_F(Agent, DescriptorOfAThreadThatWasJustBornStays) {
  constexpr unsigned kBox = 8;
  const auto start = [&] {
    app().shared().boxes[kBox].state = kIdle;
    EXPECT_EQ(app().Call(1, Op::kStartThread, {kBox}), 0);
    EXPECT_EQ(app().Syscall(kBox, SYS_getpid, {}), app().pid());
    void* robust = nullptr;
    size_t length = 0;
    EXPECT_EQ(syscall(SYS_get_robust_list, app().tid(kBox), &robust, &length), 0);
    return reinterpret_cast<uint64_t>(robust);
  };
  (void)start();
  (void)app().Call(kBox, Op::kQuit, {});
  ASSERT_EQ(app().Call(1, Op::kJoinThread, {kBox}), 0);
  const uint64_t at = app().MapFilled(kPages);
  {
    Pump pump(world_, a_.client);  // what is left of the stack may go, and come
    ASSERT_TRUE(EvictAll(a_, at, kPages));
    // A listing without the thread, and then at once the thread: until the next listing nobody knows of it.
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(110);
    while (std::chrono::steady_clock::now() < until) (void)client().Evict(wire::kRingSlots, *scratch_);
    const uint64_t descriptor = start();
    const auto newborn = std::chrono::steady_clock::now() + std::chrono::milliseconds(90);
    bool present = true;
    while (present && std::chrono::steady_clock::now() < newborn) {
      (void)client().Evict(wire::kRingSlots, *scratch_);
      present = app().IsPresent(descriptor);
    }
    EXPECT_TRUE(present) << "join would hang if the thread ended now";
    (void)app().Call(kBox, Op::kQuit, {});
    EXPECT_EQ(app().Call(1, Op::kJoinThread, {kBox}), 0);
  }
}

// H15: the agent's own memory is never evicted, locked or not.
TEST_F(Agent, ItsOwnMemoryStays) {
  char line[512];
  uint64_t arena = 0;
  FILE* maps = fopen(("/proc/" + std::to_string(app().pid()) + "/maps").c_str(), "re");
  while (fgets(line, sizeof(line), maps) != nullptr) {
    unsigned long start = 0, end = 0;
    char permissions[8] = {};
    if (sscanf(line, "%lx-%lx %7s", &start, &end, permissions) != 3) continue;
    if (strcmp(permissions, "rw-p") == 0 && end - start == agent::kArenaBytes - agent::kPage) arena = start;
  }
  fclose(maps);
  ASSERT_NE(arena, 0u);
  ASSERT_EQ(app().Syscall(1, SYS_munlock, {I(arena), I(agent::kArenaBytes - agent::kPage)}), 0);
  for (int round = 0; round < 3; ++round) {
    const uint64_t at = app().MapFilled(kPages);
    ASSERT_TRUE(EvictAll(a_, at, kPages));
  }
  const uint64_t top =
      arena + agent::kStackBytes - agent::kPage;  // the stack's topmost page, and the state behind it
  EXPECT_TRUE(app().IsPresent(top));
  EXPECT_TRUE(app().IsPresent(top + agent::kPage));
}

// H20: another program under the same pid is not the client.
TEST_F(Agent, ClientThatCallsExecIsGone) {
  const uint64_t at = MapEvicted();
  app().Post(1, Op::kExec, {});
  while (!client().Gone()) std::this_thread::yield();
  EXPECT_EQ(kill(app().pid(), 0), 0);
  EXPECT_EQ(client().Resolve({at, 0, false, 0}, *scratch_), ResolveOutcome::kGone);
  const auto evicted = client().Evict(wire::kRingSlots, *scratch_);
  EXPECT_TRUE(!evicted.ok() || *evicted == 0);
}

// What a client had is free when the last who knows it lets go.
TEST_F(Agent, DeathFreesEverything) {
  World world;
  {
    Attached attached = world.Attach();
    const uint64_t at = attached.app->MapFilled(kPages);
    ASSERT_TRUE(EvictAll(attached, at, kPages));
    EXPECT_GE(world.store().stats().stored_pages, kPages);
    attached.app->Kill();
    EXPECT_TRUE(attached.client->Gone());
  }
  world.CloseConnections();
  EXPECT_EQ(world.store().stats().stored_pages, 0u);
}

}  // namespace
}  // namespace uzswap::test

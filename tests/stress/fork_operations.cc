// Forks. A child verifies memory as it was at the fork, writes to its copy, verifies that, and sometimes lets
// a child of its own do the same. It calls nothing that needs a lock of the parent's.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "tests/stress/worker.h"

namespace uzswap::stress {
namespace {

constexpr uint32_t kUnitsOfAll = 2048;  // 8 MiB of a stopped world: enough to meet every state of a page

}  // namespace

void Worker::ChildChecks(Op op, const uint32_t* units, std::byte* const* at, UnitState* states,
                         uint32_t count, bool may_fork) {
  const bool grandchild = may_fork && random_.Below(4) == 0;
  for (uint32_t i = 0; i < count; ++i) {
    world_.Check("a forked child", op, units[i], at[i], states[i]);
    if (states[i].absent || i % 4 != 0) continue;
    World::WriteAll(units[i], at[i], states[i]);
  }
  if (grandchild) {
    const pid_t pid = fork();
    if (pid < 0) _exit(3);
    if (pid == 0) {
      for (uint32_t i = 0; i < count; ++i) world_.Check("a child's child", op, units[i], at[i], states[i]);
      _exit(0);
    }
    for (uint32_t i = 0; i < count; i += 8) {
      if (!states[i].absent) World::WriteAll(units[i], at[i], states[i]);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (status != 0) _exit(1);
  }
  for (uint32_t i = 0; i < count; ++i)
    world_.Check("a forked child, after its writes", op, units[i], at[i], states[i]);
  _exit(0);
}

void Worker::Await(int child) {
  world_.progress(index_).child = child;
  // Nothing is held now; another worker may stop the world meanwhile.
  world_.Leave(index_);
  siginfo_t info;
  while (waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
  }
  world_.Enter(index_);
  AwaitInside(child);
}

void Worker::AwaitInside(int child) {
  world_.progress(index_).child = child;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  world_.progress(index_).child = 0;
  if (status != 0) {
    char text[128];
    snprintf(text, sizeof text, "forked child %d ended with %s %d", child,
             WIFSIGNALED(status) ? "signal" : "status",
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    world_.reporter().Failure(text);
  }
}

// The others go on writing their units; the parent goes on writing those that the child verifies.
void Worker::ForkSome() {
  if (NowMs() - last_fork_ms_ < world_.options().fork_every_ms) return Skipped(Op::kForkSome);
  last_fork_ms_ = NowMs();
  Range range;
  LockAnywhere(range, kMaxRange);
  const pid_t child = fork();
  if (child < 0) world_.reporter().Trouble("fork failed");
  if (child == 0) {
    uint32_t units[kMaxRange];
    for (uint32_t i = 0; i < range.count; ++i) units[i] = range.first + i;
    ChildChecks(Op::kForkSome, units, range.at.data(), range.state.data(), range.count);
  }
  for (uint32_t i = 0; i < range.count; ++i) {
    if (i % 2 == 0)
      World::WriteSome(range.first + i, range.at[i], range.state[i], 1 + random_.Below(kUnitWords));
  }
  Check(range, Op::kForkSome);
  Unlock(range, Op::kForkSome);
  Await(child);
}

// MADV_WIPEONFORK: the child reads zeros, whatever was stored for the parent.
void Worker::ForkWiped() {
  if (NowMs() - last_fork_ms_ < world_.options().fork_every_ms) return Skipped(Op::kForkWiped);
  last_fork_ms_ = NowMs();
  Range range;
  LockMapped(range, 1 + random_.Below(kMaxRange));
  if (range.count == 0) return Skipped(Op::kForkWiped);
  const size_t bytes = static_cast<size_t>(range.count) * kUnitBytes;
  if (madvise(range.at[0], bytes, MADV_WIPEONFORK) != 0)
    world_.reporter().Failure("madvise(WIPEONFORK) failed");
  const pid_t child = fork();
  if (child < 0) world_.reporter().Trouble("fork failed");
  if (child == 0) {
    uint32_t units[kMaxRange];
    for (uint32_t i = 0; i < range.count; ++i) {
      units[i] = range.first + i;
      range.state[i].Zeroed();
    }
    ChildChecks(Op::kForkWiped, units, range.at.data(), range.state.data(), range.count, false);
  }
  // With the range still wiped on fork nobody else may stop the world and fork. At once, if asked for: the
  // kernel lets this thread go on as soon as the fork was announced, so who hears of it looks at mappings
  // that have changed since.
  if (!world_.options().keep_at_once) AwaitInside(child);
  if (madvise(range.at[0], bytes, MADV_KEEPONFORK) != 0)
    world_.reporter().Failure("madvise(KEEPONFORK) failed");
  Check(range, Op::kForkWiped);
  Unlock(range, Op::kForkWiped);
  if (world_.options().keep_at_once) Await(child);
}

// Every worker between two operations, so that the child may look anywhere.
void Worker::ForkAll() {
  if (NowMs() - last_fork_ms_ < 4 * world_.options().fork_every_ms || !world_.ClaimSnapshot()) {
    return Skipped(Op::kForkAll);
  }
  if (!world_.StopOthers(index_)) {
    world_.ReleaseSnapshot();
    return Skipped(Op::kForkAll);
  }
  last_fork_ms_ = NowMs();
  world_.snapshot().CopyFrom(world_.shadow());
  const pid_t child = fork();
  if (child < 0) world_.reporter().Trouble("fork failed");
  if (child == 0) {
    uint32_t units[kUnitsOfAll];
    std::byte* at[kUnitsOfAll];
    UnitState states[kUnitsOfAll];
    // Distinct units: a stride from a random place, around the end.
    const uint32_t all = world_.snapshot().units(), stride = all / kUnitsOfAll == 0 ? 1 : all / kUnitsOfAll;
    const uint32_t start = random_.Below(all), count = all < kUnitsOfAll ? all : kUnitsOfAll;
    for (uint32_t i = 0; i < count; ++i) {
      units[i] = (start + i * stride) % all;
      at[i] = world_.snapshot().address(units[i]);
      states[i] = world_.snapshot().Peek(units[i]);
    }
    ChildChecks(Op::kForkAll, units, at, states, count);
  }
  world_.Resume();
  Await(child);
  world_.ReleaseSnapshot();
}

}  // namespace uzswap::stress

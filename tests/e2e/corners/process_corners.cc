// Processes that come, share memory and go: fork in all its forms, exec, exit.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "tests/e2e/corners/corner.h"

extern char** environ;

namespace uzswap::corners {
namespace {

constexpr size_t kPages = 64;
constexpr uid_t kNobody = 65534;

// Shared by a parent and its children, and never managed.
struct Shared {
  std::atomic<uint32_t> step;
};
Shared* ShareStep() {
  void* at = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) Fail("mmap: %s", strerror(errno));
  return new (at) Shared{};
}
void AwaitStep(const Shared* shared, uint32_t step) {
  while (shared->step.load() < step) sched_yield();
}

void ForkReadsAndWrites() {
  const Memory memory = MapEvicted(kPages);
  memory.Part(48, 16).Fill(1);  // some are in memory
  InChild([&] {
    memory.Check(1, "in the child");
    memory.Part(0, 32).Fill(2);
    memory.Part(0, 32).Check(2, "written in the child");
    memory.Part(32, 32).Check(1, "not written in the child");
  });
  memory.Check(1, "in the parent");
  memory.Evict();  // what it shared with the child, too
  memory.Check(1, "in the parent, evicted again");
}

void ChildOfAChild() {
  const Memory memory = MapEvicted(kPages);
  Shared* shared = ShareStep();
  InChild([&] {
    memory.Part(0, 16).Fill(2);
    const pid_t grandchild = fork();
    if (grandchild == 0) {
      memory.Part(0, 16).Check(2, "written by the child, in its child");
      memory.Part(16, 48).Check(1, "in the child's child");
      memory.Part(16, 16).Fill(3);
      AwaitStep(shared, 1);
      memory.Part(0, 16).Check(2, "in the child's child, while its parent writes");
      memory.Part(16, 16).Check(3, "written in the child's child");
      memory.Part(32, 32).Check(1, "in the child's child, not written");
      _exit(0);
    }
    memory.Fill(4);
    shared->step.store(1);
    AwaitChild(grandchild);
    memory.Check(4, "in the child");
  });
  memory.Check(1, "in the parent");
}

// The attached process ends first; its child and a child of that live on what is stored.
void ParentDiesFirst() {
  const Memory memory = MapEvicted(kPages);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child != 0) _exit(0);
  while (getppid() == parent) sched_yield();
  if (!IsNative()) (void)Ask("await_no_client %d", parent);
  memory.Part(0, 16).Check(1, "in a child whose parent is gone");
  memory.Part(0, 16).Fill(2);
  InChild([&] {
    memory.Part(0, 16).Check(2, "written by the orphan, in its child");
    memory.Part(16, 48).Check(1, "in the orphan's child");
  });
  memory.Part(16, 48).Check(1, "in the orphan, again");
  Say("the orphan has all its memory");
  _exit(0);
}

// Many children at once, each of which reads and writes all, while the parent is evicted from and writes.
void ForkStorm() {
  const Memory memory = MapEvicted(256);
  if (!IsNative()) (void)Ask("limit %d %d", getpid(), 4 << 20);
  for (uint64_t round = 0; round < 12; ++round) {
    std::vector<pid_t> children;
    for (int i = 0; i < 12; ++i) {
      const pid_t child = fork();
      if (child < 0) Fail("fork: %s", strerror(errno));
      if (child == 0) {
        memory.Check(round + 1, "in one of many children");
        if (i % 2 == 0) memory.Fill(1000);
        if (i % 3 == 0)
          InChild([&] { memory.Check(i % 2 == 0 ? 1000 : round + 1, "in a child of one of many"); });
        _exit(0);
      }
      children.push_back(child);
    }
    memory.Fill(round + 2);
    for (const pid_t child : children) AwaitChild(child);
    memory.Check(round + 2, "in the parent of many");
  }
}

// WIPEONFORK that a child gives: a child of that must see zeros, also of what is stored.
void WipeOnForkInAChild() {
  const Memory memory = MapEvicted(kPages);
  InChild([&] {
    Expect(madvise(memory.page(8), 8 * kPage, MADV_WIPEONFORK) == 0, "madvise: %s", strerror(errno));
    InChild([&] {
      memory.Part(8, 8).CheckZero("wiped in the child's child");
      memory.Part(16, 48).Check(1, "in the child's child");
    });
    memory.Check(1, "in the child");
  });
}

void GuardInAChild() {
  const Memory memory = MapEvicted(kPages);
  constexpr int kGuardInstall = 102;
  constexpr int kGuardRemove = 103;
  InChild([&] {
    if (madvise(memory.page(8), 8 * kPage, kGuardInstall) != 0) _exit(0);  // before Linux 6.13
    Expect(SignalOf([&] { Touch(memory.page(8)); }) == SIGSEGV, "a guard can be read in a child");
    Expect(madvise(memory.page(8), 8 * kPage, kGuardRemove) == 0, "madvise: %s", strerror(errno));
    memory.Part(8, 8).CheckZero("where guards were, in a child");
  });
  memory.Check(1, "in the parent");
}

// A child that runs in its parent's memory while that waits.
void Vfork() {
  const Memory memory = MapEvicted(kPages);
  const pid_t child =
      vfork();  // NOLINT(clang-analyzer-*): it writes to its parent's memory, which is the point
  if (child == 0) {
    *reinterpret_cast<volatile uint64_t*>(memory.at) = 42;  // NOLINT(clang-analyzer-unix.Vfork)
    _exit(0);
  }
  AwaitChild(child);
  Expect(*reinterpret_cast<volatile uint64_t*>(memory.at) == 42, "the child's write is lost");
  memory.Part(1, kPages - 1).Check(1, "after vfork");
}

// Arguments and environment that lie in evicted memory, and a program found along a path that does.
void Spawn() {
  const Memory memory = Map(kPages);
  memory.Fill(1);
  auto* text = reinterpret_cast<char*>(memory.page(3));
  (void)snprintf(text, kPage, "test \"$CORNER\" = corner && test \"$0\" = name && printf spawned >&%d", 5);
  auto* name = reinterpret_cast<char*>(memory.page(7));
  (void)snprintf(name, kPage, "name");
  auto* variable = reinterpret_cast<char*>(memory.page(11));
  (void)snprintf(variable, kPage, "CORNER=corner");
  auto** arguments = reinterpret_cast<char**>(memory.page(15));
  auto** environment = reinterpret_cast<char**>(memory.page(19));
  char sh[] = "sh", dash_c[] = "-c";
  arguments[0] = sh, arguments[1] = dash_c, arguments[2] = text, arguments[3] = name, arguments[4] = nullptr;
  environment[0] = variable, environment[1] = nullptr;
  for (int turn = 0; turn < 2; ++turn) {
    int ends[2];
    Expect(pipe(ends) == 0, "pipe: %s", strerror(errno));
    memory.Evict();
    pid_t child = 0;
    if (turn == 0) {
      posix_spawn_file_actions_t actions;
      (void)posix_spawn_file_actions_init(&actions);
      (void)posix_spawn_file_actions_adddup2(&actions, ends[1], 5);
      const int error = posix_spawn(&child, "/bin/sh", &actions, nullptr, arguments, environment);
      Expect(error == 0, "posix_spawn: %s", strerror(error));
    } else {
      child = fork();
      if (child == 0) {
        (void)dup2(ends[1], 5);
        (void)execve("/bin/sh", arguments, environment);
        _exit(127);
      }
    }
    AwaitChild(child);
    char said[16] = {};
    Expect(read(ends[0], said, sizeof(said)) == 7 && strcmp(said, "spawned") == 0, "the program said '%s'",
           said);
  }
  Expect(system("exit 3") == 3 << 8, "system()");  // NOLINT(cert-env33-c)
  memory.Part(20, kPages - 20).Check(1, "after all programs ended");
}

// exec from evicted arguments: the new program attaches anew, and the old one's pages are freed.
void Exec() {
  const Memory memory = Map(kPages);
  memory.Fill(1);
  char** old = reinterpret_cast<char**>(memory.page(0));
  char path[256];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
  path[length > 0 ? length : 0] = 0;
  const std::string socket = std::to_string(DriverSocket());
  const char* words[] = {"corners", "_after_exec", socket.c_str(), IsNative() ? "native" : "uzswap"};
  for (size_t i = 0; i < 4; ++i) {
    old[i] = reinterpret_cast<char*>(memory.page(4 * i + 4));
    (void)snprintf(old[i], kPage, "%s", words[i]);
  }
  old[4] = nullptr;
  (void)setenv("CORNERS_CLIENT", std::to_string(IsNative() ? 0 : Stat("id")).c_str(), 1);
  memory.Evict();
  // From another thread than the first: that one's number goes to it.
  std::thread([&] { (void)execve(path, old, environ); }).join();
  Fail("exec: %s", strerror(errno));
}

void AfterExec() {
  const Memory memory = MapEvicted(kPages);
  memory.Check(1, "after exec");
  if (!IsNative()) {
    const uint64_t id = Stat("id");
    Expect(std::to_string(id) != getenv("CORNERS_CLIENT"), "still the client from before exec");
    Expect(Ask("clients_of %d", getpid()) == "1", "clients of this process: %s",
           Ask("clients_of %d", getpid()).c_str());
  }
  Say("attached again after exec");
}

// A program that gains privileges by exec is none that can be preloaded: it runs natively, and nothing stays
// behind.
void ExecSetuid() {
  if (getuid() != 0) Skip("needs root");
  const Memory memory = MapEvicted(kPages);
  const char path[] = "setuid-true";
  Expect(system("cp /bin/true setuid-true && chmod 4755 setuid-true") == 0,
         "a setuid program");  // NOLINT(cert-env33-c)
  const pid_t child = fork();
  if (child == 0) {
    memory.Check(1, "in a child that becomes a setuid program");
    if (setgid(kNobody) != 0 || setuid(kNobody) != 0) _exit(2);
    char word[] = "true";
    char* arguments[] = {word, nullptr};
    (void)execv(path, arguments);
    _exit(3);
  }
  AwaitChild(child);
  memory.Check(1, "in the parent of a setuid program");
  // And this process itself.
  memory.Evict();
  if (setgid(kNobody) != 0 || setuid(kNobody) != 0) Fail("setuid: %s", strerror(errno));
  Say("becomes a setuid program");
  char word[] = "true";
  char* arguments[] = {word, nullptr};
  (void)execv(path, arguments);
  Fail("exec: %s", strerror(errno));
}

// Privileges dropped while attached: eviction and faults go on, and so do forks.
void DropsPrivileges() {
  if (getuid() != 0) Skip("needs root");
  const Memory memory = MapEvicted(kPages);
  if (setgid(kNobody) != 0 || setuid(kNobody) != 0) Fail("setuid: %s", strerror(errno));
  memory.Check(1, "as another user");
  memory.Fill(2);
  memory.Evict();
  memory.Check(2, "evicted as another user");
  memory.Evict();
  Expect(prctl(PR_SET_DUMPABLE, 0) == 0, "prctl: %s", strerror(errno));
  memory.Check(2, "not dumpable");
  // Not dumpable: /proc/self belongs to root, so this process can no longer see which of its pages are there.
  InChild([&] { memory.Check(2, "in a child of another user"); });
  memory.Fill(3);
  if (!IsNative()) (void)Ask("evict %d", getpid());
  memory.Check(3, "evicted while not dumpable");
  Expect(setuid(0) != 0, "root again");
}

// A process that shares the memory and nothing else. It is no thread: it lives on when this one execs or
// ends.
std::byte* ChildStack() {
  const size_t bytes = 64 * 1024;
  void* stack = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) Fail("mmap: %s", strerror(errno));
  return static_cast<std::byte*>(stack) + bytes;
}

struct SharesMemory {
  Memory memory;
  Shared* shared;
  pid_t parent;
};

void CloneVm() {
  SharesMemory both{MapEvicted(kPages), ShareStep(), getpid()};
  const pid_t child = clone(
      [](void* argument) {
        const auto& mine = *static_cast<SharesMemory*>(argument);
        mine.memory.Part(0, 32).Check(1, "in a process that shares the memory");
        mine.memory.Part(0, 16).Fill(2);
        mine.shared->step.store(1);
        AwaitStep(mine.shared, 2);
        mine.memory.Check(3, "written by the other process");
        return 0;
      },
      ChildStack(), CLONE_VM | SIGCHLD, &both);
  Expect(child > 0, "clone: %s", strerror(errno));
  AwaitStep(both.shared, 1);
  both.memory.Part(0, 16).Check(2, "written by a process that shares the memory");
  both.memory.Part(16, 48).Check(1, "not written by it");
  both.memory.Fill(3);
  both.memory.Evict();
  both.shared->step.store(2);
  AwaitChild(child);
  both.memory.Check(3, "at the end");
}

// The agent ends with the process, or with its exec; the memory does not.
void CloneVmOutlives(bool by_exec) {
  SharesMemory both{MapEvicted(kPages), ShareStep(), getpid()};
  both.memory.Part(0, 32).Check(1, "home again");
  both.memory.Evict();
  const pid_t child = clone(
      [](void* argument) {
        const auto& mine = *static_cast<SharesMemory*>(argument);
        while (getppid() == mine.parent && mine.shared->step.load() == 0) sched_yield();
        if (!IsNative()) (void)Ask("await_agent_gone");
        mine.memory.Check(1, "in memory whose first process is gone");
        mine.memory.Fill(2);
        Expect(madvise(mine.memory.at, 8 * kPage, MADV_DONTNEED) == 0, "madvise: %s", strerror(errno));
        mine.memory.Part(0, 8).CheckZero("dropped in memory whose first process is gone");
        mine.memory.Part(8, kPages - 8).Check(2, "written in memory whose first process is gone");
        Say("all is there behind the first process");
        _exit(0);
        return 0;
      },
      ChildStack(), CLONE_VM | SIGCHLD, &both);
  Expect(child > 0, "clone: %s", strerror(errno));
  if (!by_exec) _exit(0);
  // CLONE_VM without CLONE_FILES: the socket to the driver is the child's, too.
  both.shared->step.store(1);
  (void)unsetenv("LD_PRELOAD");
  (void)execl("/bin/true", "true", nullptr);
  Fail("exec: %s", strerror(errno));
}
void CloneVmOutlivesExit() { CloneVmOutlives(false); }
void CloneVmOutlivesExec() { CloneVmOutlives(true); }

// Stopped while it is evicted from, and while a fault of it is pending.
void StopAndContinue() {
  const Memory memory = MapEvicted(256);
  const pid_t self = getpid();
  Shared* shared = ShareStep();
  if (!IsNative())
    (void)Ask("limit %d %d", self, 4 << 20);  // less than it needs: it is evicted from all the time
  const uint64_t evicted = Stat("evicted_pages");
  const pid_t helper = fork();
  if (helper == 0) {
    for (int round = 0; round < 40; ++round) {
      (void)kill(self, SIGSTOP);
      (void)kill(self, SIGCONT);
      const uint32_t before = shared->step.load();
      while (shared->step.load() == before) sched_yield();  // it has gone on
    }
    _exit(0);
  }
  int status = 0;
  for (uint64_t generation = 1; waitpid(helper, &status, WNOHANG) == 0; ++generation) {
    memory.Check(generation, "stopped now and then");
    memory.Fill(generation + 1);
    shared->step.fetch_add(1);
  }
  Expect(status == 0, "the process that stops this one failed");
  Expect(IsNative() || Stat("evicted_pages") > evicted, "nothing was evicted meanwhile");
}

}  // namespace

std::vector<Corner> ProcessCorners() {
  return {{"fork_reads_and_writes", ForkReadsAndWrites},
          {"child_of_a_child", ChildOfAChild},
          {"parent_dies_first", ParentDiesFirst},
          {"fork_storm", ForkStorm},
          {"wipeonfork_in_a_child", WipeOnForkInAChild},
          {"guard_in_a_child", GuardInAChild},
          {"vfork", Vfork},
          {"spawn", Spawn},
          {"exec", Exec},
          {"_after_exec", AfterExec},
          {"exec_setuid", ExecSetuid},
          {"drops_privileges", DropsPrivileges},
          {"clone_vm", CloneVm},
          {"clone_vm_outlives_exit", CloneVmOutlivesExit},
          {"clone_vm_outlives_exec", CloneVmOutlivesExec},
          {"stop_and_continue", StopAndContinue}};
}

}  // namespace uzswap::corners

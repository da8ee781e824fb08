// The application of the tests: threads that do what their mailboxes say (mailbox.h). Runs with the agent.
//
// Its own anonymous memory is made executable first: the scanner takes "rw-p" alone, so that only what a test
// mapped is ever evicted, and no test has to serve faults that it did not ask for.
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "tests/uffd/mailbox.h"

namespace uzswap::test {
namespace {

Shared* shared;
pthread_t threads[kBoxes];

thread_local sigjmp_buf* recovery = nullptr;

void OnFault(int signal) {
  if (recovery == nullptr) _exit(100 + signal);
  siglongjmp(*recovery, signal);
}

int64_t FindDifference(const volatile uint64_t* words, uint64_t pages, uint64_t generation, bool zero) {
  for (uint64_t page = 0; page < pages; ++page) {
    const uint64_t address = reinterpret_cast<uint64_t>(words + page * 512);
    for (uint64_t i = 0; i < 512; ++i) {
      const uint64_t wanted = zero ? 0 : PatternWord(address, generation, i);
      if (words[page * 512 + i] != wanted) return static_cast<int64_t>(address + i * 8);
    }
  }
  return 0;
}

void* Serve(void* argument);

int64_t Run(Mailbox& box) {
  const int64_t* a = box.args;
  switch (box.op) {
    case Op::kSyscall: {
      const long ret = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
      return ret == -1 ? -errno : ret;
    }
    case Op::kRead64:
      return static_cast<int64_t>(*reinterpret_cast<volatile uint64_t*>(a[0]));
    case Op::kWrite64:
      *reinterpret_cast<volatile uint64_t*>(a[0]) = static_cast<uint64_t>(a[1]);
      return 0;
    case Op::kFill: {
      auto* words = reinterpret_cast<volatile uint64_t*>(a[0]);
      for (uint64_t i = 0; i < static_cast<uint64_t>(a[1]) * 512; ++i) {
        words[i] =
            PatternWord(static_cast<uint64_t>(a[0]) + i / 512 * 4096, static_cast<uint64_t>(a[2]), i % 512);
      }
      return 0;
    }
    case Op::kCheck:
      return FindDifference(reinterpret_cast<uint64_t*>(a[0]), static_cast<uint64_t>(a[1]),
                            static_cast<uint64_t>(a[2]), false);
    case Op::kIsZero:
      return FindDifference(reinterpret_cast<uint64_t*>(a[0]), static_cast<uint64_t>(a[1]), 0, true);
    case Op::kIncrement: {
      auto* word = reinterpret_cast<volatile uint64_t*>(a[0]);
      int64_t count = 0;
      for (; shared->stop.load() == 0; ++count) *word = *word + 1;
      return count;
    }
    case Op::kLibcMadvise:
      return madvise(reinterpret_cast<void*>(a[0]), static_cast<size_t>(a[1]), static_cast<int>(a[2])) == 0
                 ? 0
                 : -errno;
    case Op::kFork: {
      const pid_t parent = getpid();
      const pid_t pid = fork();
      if (pid != 0) return pid < 0 ? -errno : pid;
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(0);  // it died before the line above
      Serve(&shared->boxes[a[0]]);
      _exit(0);
    }
    case Op::kStartThread:
      return -pthread_create(&threads[a[0]], nullptr, Serve, &shared->boxes[a[0]]);
    case Op::kJoinThread:
      return -pthread_join(threads[a[0]], nullptr);
    case Op::kExec: {
      unsetenv("LD_PRELOAD");
      execl("/bin/sleep", "sleep", "1000", nullptr);
      return -errno;
    }
    case Op::kQuit:
      return 0;
  }
  return -ENOSYS;
}

void* Serve(void* argument) {
  auto& box = *static_cast<Mailbox*>(argument);
  sigjmp_buf back;
  recovery = &back;
  box.tid = static_cast<int32_t>(syscall(SYS_gettid));
  FutexWake(reinterpret_cast<std::atomic<uint32_t>&>(box.tid));
  for (;;) {
    const uint32_t state = box.state.load();
    if (state != kPosted) {
      FutexWait(box.state, state);
      continue;
    }
    const bool quit = box.op == Op::kQuit;
    box.signal = 0;
    box.state = kRunning;
    if (const int signal = sigsetjmp(back, 1); signal == 0) {
      box.ret = Run(box);
    } else {
      box.signal = signal;
      box.ret = -EFAULT;
    }
    box.state = kDone;
    FutexWake(box.state);
    if (quit) return nullptr;  // NOLINT(clang-analyzer-core.StackAddressEscape): set anew before each use
  }
}

void HideOwnMemory() {
  char line[512];
  FILE* maps = fopen("/proc/self/maps", "re");
  static struct { unsigned long start, end; } found[256];
  int count = 0;
  unsigned long guard_end = 0;
  while (maps != nullptr && fgets(line, sizeof(line), maps) != nullptr && count < 256) {
    unsigned long start = 0, end = 0, inode = 0;
    char permissions[8] = {}, name[256] = {};
    if (sscanf(line, "%lx-%lx %7s %*x %*s %lu %255s", &start, &end, permissions, &inode, name) < 4) continue;
    const bool behind_guard = start == guard_end;  // the agent's arena, or a thread's stack
    guard_end = strcmp(permissions, "---p") == 0 ? end : 0;
    if (strcmp(permissions, "rw-p") != 0 || inode != 0 || behind_guard) continue;
    if (name[0] == '[' && strcmp(name, "[heap]") != 0) continue;
    if (end - start >= (1ul << 20)) continue;
    found[count].start = start;
    found[count++].end = end;
  }
  if (maps != nullptr) fclose(maps);
  for (int i = 0; i < count; ++i) {
    (void)mprotect(reinterpret_cast<void*>(found[i].start), found[i].end - found[i].start,
                   PROT_READ | PROT_WRITE | PROT_EXEC);
  }
}

int Main(int argc, char** argv) {
  if (argc != 2) return 2;
  (void)mallopt(M_ARENA_MAX, 1);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
  if (memory == MAP_FAILED) return 3;
  shared = static_cast<Shared*>(memory);
  struct sigaction action {};
  action.sa_handler = OnFault;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
  for (unsigned i = 1; i < kFirstThreads; ++i) {
    if (pthread_create(&threads[i], nullptr, Serve, &shared->boxes[i]) != 0) return 4;
  }
  HideOwnMemory();
  shared->ready = 1;
  FutexWake(shared->ready);
  Serve(&shared->boxes[0]);
  return 0;
}

}  // namespace
}  // namespace uzswap::test

int main(int argc, char** argv) { return uzswap::test::Main(argc, argv); }

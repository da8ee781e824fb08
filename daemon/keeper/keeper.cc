#include "daemon/keeper/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstdio>

namespace uzswap {
namespace {

// Between successors that die before they have a keeper of their own.
constexpr long kFirstPauseNs = 5'000'000;
constexpr long kLongestPauseNs = 640'000'000;
constexpr long kLookEveryNs = 2'000'000;

// Everything the keeper needs, made before it is cloned.
struct Plan {
  TableHeader* header;
  int program;
  int daemon;  // its pidfd
  const char* path;
  char* const* arguments;
  char* const* environment;
  sigset_t signals;  // the successor's mask
};

// The keeper's own system calls: the C library's may be left in any state by the threads of the daemon.
long Call(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0) {
  long ret = 0;
  register long r10 asm("r10") = d;
  register long r8 asm("r8") = e;
  asm volatile("syscall"
               : "=a"(ret)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
               : "rcx", "r11", "memory");
  return ret;
}

template <typename T>
long P(T* pointer) {
  return reinterpret_cast<long>(pointer);
}

void Pause(long nanoseconds) {
  const timespec time{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  (void)Call(SYS_nanosleep, P(&time), 0);
}

// Lets the descriptors of the table, a copy, survive the exec.
void KeepDescriptors() {
  struct Entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[1];
  };
  const long dir = Call(SYS_openat, AT_FDCWD, P("/proc/self/fd"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  alignas(8) char buffer[4096];
  for (;;) {
    const long got = dir < 0 ? 0 : Call(SYS_getdents64, dir, P(buffer), sizeof(buffer));
    if (got <= 0) return;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const Entry*>(buffer + at);
      at += entry->length;
      long fd = 0;
      const char* c = entry->name;
      for (; *c >= '0' && *c <= '9'; ++c) fd = fd * 10 + (*c - '0');
      if (*c == 0 && fd != dir) (void)Call(SYS_fcntl, fd, F_SETFD, 0);
    }
  }
}

[[noreturn]] void Execute(const Plan& plan, bool other) {
  KeepDescriptors();
  (void)Call(SYS_rt_sigprocmask, SIG_SETMASK, P(&plan.signals), 0, _NSIG / 8);
  // Another program, if one was named; else the same, whatever lies at its path by now.
  if (other) {
    (void)Call(SYS_execve, P(plan.header->successor), P(plan.arguments), P(plan.environment));
  } else {
    (void)Call(SYS_execveat, plan.program, P(""), P(plan.arguments), P(plan.environment), AT_EMPTY_PATH);
    (void)Call(SYS_execve, P(plan.path), P(plan.arguments), P(plan.environment));
  }
  for (;;) (void)Call(SYS_exit_group, 127);
}

[[noreturn]] void Leave() {
  for (;;) (void)Call(SYS_exit_group, kKeeperExit);
}

[[noreturn]] void Keep(const Plan& plan) {
  (void)Call(SYS_prctl, PR_SET_NAME, P("uzswap-keeper"));
  // Relieves the keeper of the daemon before ours, which is still there after a succession.
  const auto self = static_cast<int32_t>(Call(SYS_getpid));
  plan.header->keeper_pid.store(self);
  pollfd end{plan.daemon, POLLIN, 0};
  while (Call(SYS_poll, P(&end), 1, -1) != 1) {
  }
  for (long pause = kFirstPauseNs;; pause = pause < kLongestPauseNs ? pause * 2 : pause) {
    if (plan.header->armed.load() == 0 || plan.header->keeper_pid.load() != self) Leave();
    const bool other = plan.header->successor[0] != 0;
    const long child = Call(SYS_clone, SIGCHLD);
    if (child == 0) Execute(plan, other);
    while (child > 0) {
      if (plan.header->keeper_pid.load() != self) Leave();
      if (Call(SYS_wait4, child, 0, WNOHANG) == child) break;
      Pause(kLookEveryNs);
    }
    // A program that was named and did not take over is not tried again.
    if (other) plan.header->successor[0] = 0;
    Pause(pause);
  }
}

}  // namespace

Keeper::Keeper(ClientTable& table, std::vector<std::string> arguments)
    : table_(table), arguments_(std::move(arguments)), program_(open("/proc/self/exe", O_PATH | O_CLOEXEC)) {}

zp::Status Keeper::Start() {
  if (pid_ != 0) (void)waitpid(pid_, nullptr, WNOHANG);
  zp::UniqueFd self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  if (!self.valid()) return zp::ErrnoError("pidfd_open");
  std::vector<std::string> arguments = arguments_;
  arguments.insert(arguments.end(), {"--successor", std::to_string(table_.fd())});
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  char path[PATH_MAX] = {};
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0) path[0] = 0;
  // Stays open in the table that both share.
  watch_ = std::move(self);
  Plan plan{&table_.header(), program_.get(), watch_.get(), path, pointers.data(), environ, {}};

  sigset_t all;
  sigfillset(&all);
  sigset_t before;
  (void)pthread_sigmask(SIG_SETMASK, &all, &before);
  plan.signals = before;
  sigdelset(&plan.signals, SIGTERM);
  sigdelset(&plan.signals, SIGINT);
  const long child = Call(SYS_clone, CLONE_FILES | SIGCHLD);
  if (child == 0) Keep(plan);
  (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0) return zp::Error{zp::Errc::kSystem, static_cast<int>(-child), "starting the keeper"};
  pid_ = static_cast<pid_t>(child);
  ended_.reset(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  return ended_.valid() ? zp::OkStatus() : zp::ErrnoError("pidfd_open of the keeper");
}

}  // namespace uzswap

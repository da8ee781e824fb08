#include "tools/uzswap/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "libzpool/base/fd.h"
#include "tools/uzswap/exit_codes.h"

namespace uzswap::cli {
namespace {

// Raised by what the process itself does wrong; taking them from a queue would hide a bug.
constexpr std::array kFaultSignals = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
constexpr std::array kEndSignals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
// What the terminal sends to its whole foreground group.
constexpr std::array kTerminalSignals = {SIGINT,  SIGQUIT, SIGTSTP,  SIGTTIN,
                                         SIGTTOU, SIGHUP,  SIGWINCH, SIGCONT};

template <size_t N>
bool Contains(const std::array<int, N>& set, int signal) {
  for (int s : set) {
    if (s == signal) return true;
  }
  return false;
}

std::vector<char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<char*> out;
  out.reserve(texts.size() + 1);
  for (const std::string& t : texts) out.push_back(const_cast<char*>(t.c_str()));
  out.push_back(nullptr);
  return out;
}

bool IsStopped(pid_t pid) {
  zp::UniqueFd fd(open(fmt::format("/proc/{}/stat", pid).c_str(), O_RDONLY | O_CLOEXEC));
  char text[512] = {};
  if (!fd.valid() || read(fd.get(), text, sizeof(text) - 1) <= 0) return false;
  const char* after_name = std::strrchr(text, ')');
  return after_name != nullptr && after_name[1] == ' ' && after_name[2] == 'T';
}

}  // namespace

int ExecProgram(const ProgramStart& start) {
  execvpe(start.path.c_str(), Pointers(start.arguments).data(), Pointers(start.environment).data());
  return errno;
}

Supervisor::Supervisor() {
  sigfillset(&taken_);
  for (int s : kFaultSignals) sigdelset(&taken_, s);
  sigprocmask(SIG_BLOCK, &taken_, &old_mask_);
  // An inherited SIG_IGN would make the kernel reap the program behind our back.
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &standard, &old_child_action_);
}

Supervisor::~Supervisor() { RestoreInChild(); }

void Supervisor::RestoreInChild() const {
  sigaction(SIGCHLD, &old_child_action_, nullptr);
  sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
}

int Supervisor::PendingEnd() const {
  sigset_t pending;
  if (sigpending(&pending) != 0) return 0;
  for (int s : kEndSignals) {
    if (sigismember(&pending, s) == 1) return s;
  }
  return 0;
}

int Supervisor::Start(const ProgramStart& start) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return errno;
  zp::UniqueFd failure_in(pipe_fds[0]);
  zp::UniqueFd failure_out(pipe_fds[1]);

  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ < 0) return errno;
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kExitRunFailed);
    RestoreInChild();
    const int error = ExecProgram(start);
    (void)!write(failure_out.get(), &error, sizeof(error));
    _exit(kExitRunFailed);
  }
  failure_out.reset();
  int error = 0;
  ssize_t n;
  do {
    n = read(failure_in.get(), &error, sizeof(error));
  } while (n < 0 && errno == EINTR);
  if (n != sizeof(error)) return 0;  // closed by the exec
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
  return error;
}

ProgramEnd Supervisor::Wait(std::chrono::milliseconds interval, const std::function<void()>& on_tick,
                            const std::function<void(pid_t)>& on_child) {
  using Clock = std::chrono::steady_clock;
  auto next_tick = Clock::now() + interval;
  ProgramEnd end;
  while (!Reap(on_child, &end)) {
    const auto left = std::max(Clock::duration::zero(), next_tick - Clock::now());
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec wait = {seconds.count(), std::chrono::nanoseconds(left - seconds).count()};
    siginfo_t info;
    if (sigtimedwait(&taken_, &info, &wait) > 0) {
      OnSignal(info);
    } else if (Clock::now() >= next_tick) {
      on_tick();
      next_tick = Clock::now() + interval;
    }
  }
  return end;
}

void Supervisor::OnSignal(const siginfo_t& info) {
  if (info.si_signo == SIGCHLD) return;  // Reap looks at every child anyway
  if (info.si_code == SI_KERNEL && Contains(kTerminalSignals, info.si_signo)) return;
  if (info.si_code == SI_USER || info.si_code == SI_QUEUE || info.si_code == SI_TKILL) {
    // From ourselves: SIGPIPE of a closed stderr. From the program: it meant its parent, not itself.
    if (info.si_pid == getpid() || info.si_pid == pid_) return;
  }
  // `fg` and `kill -CONT -GROUP` have continued the program already.
  if (info.si_signo == SIGCONT && !IsStopped(pid_)) return;
  if (info.si_code == SI_QUEUE) {
    sigqueue(pid_, info.si_signo, info.si_value);
  } else {
    kill(pid_, info.si_signo);
  }
}

// The shell that started uzswap is to see it stop. Only job control's signals are mirrored: after a plain
// SIGSTOP to the program, its SIGCONT would go to the program alone, and uzswap would stay stopped for ever.
void Supervisor::MirrorStop(int signal) const {
  if (signal != SIGTSTP && signal != SIGTTIN && signal != SIGTTOU) return;
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(signal, &standard, nullptr);
  raise(signal);
  sigprocmask(SIG_UNBLOCK, &one, nullptr);  // stops here, until SIGCONT
  sigprocmask(SIG_BLOCK, &one, nullptr);
}

bool Supervisor::Reap(const std::function<void(pid_t)>& on_child, ProgramEnd* end) const {
  for (;;) {
    int status = 0;
    const pid_t child = waitpid(-1, &status, WNOHANG | WUNTRACED);
    if (child <= 0) return false;
    if (WIFSTOPPED(status)) {
      if (child == pid_) MirrorStop(WSTOPSIG(status));
      continue;
    }
    if (child != pid_) {
      on_child(child);
      continue;
    }
    *end = WIFSIGNALED(status) ? ProgramEnd{true, WTERMSIG(status)} : ProgramEnd{false, WEXITSTATUS(status)};
    return true;
  }
}

void EndLike(const ProgramEnd& end) {
  std::fflush(nullptr);
  if (!end.signaled) _exit(end.number);
  prctl(PR_SET_DUMPABLE, 0);  // also where core_pattern is a pipe, which ignores the limit
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  sigaction(end.number, &standard, nullptr);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, end.number);
  sigprocmask(SIG_UNBLOCK, &one, nullptr);
  raise(end.number);
  _exit(128 + end.number);  // an init ignores signals; this is what a shell would report
}

}  // namespace uzswap::cli

#include "daemon/keeper/supervisor.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

#include "daemon/keeper/keeper.h"

namespace uzswap {
namespace {

// Takes every child that has ended; false when there is none left.
bool Reap(int* status) {
  for (;;) {
    int ended = 0;
    const pid_t pid = waitpid(-1, &ended, WNOHANG);
    if (pid == 0) return true;
    if (pid < 0) return errno == EINTR;
    if (WIFEXITED(ended) && WEXITSTATUS(ended) == kKeeperExit) continue;
    *status = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128 + WTERMSIG(ended);
  }
}

}  // namespace

int Supervise() {
  sigset_t taken;
  sigemptyset(&taken);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&taken, signal);
  sigset_t before;
  (void)sigprocmask(SIG_BLOCK, &taken, &before);
  (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
  if (getpgrp() != getpid()) (void)setpgid(0, 0);
  const pid_t daemon = fork();
  if (daemon == 0) {
    (void)sigprocmask(SIG_SETMASK, &before, nullptr);
    // What the service manager passed on is for the daemon.
    const char* listener = getenv("LISTEN_PID");
    if (listener != nullptr && atoi(listener) == getppid())
      (void)setenv("LISTEN_PID", std::to_string(getpid()).c_str(), 1);
    return -1;
  }
  if (daemon < 0) return 1;
  (void)prctl(PR_SET_NAME, "uzswapd-super");
  int status = 1;
  while (Reap(&status)) {
    siginfo_t info{};
    if (sigwaitinfo(&taken, &info) < 0 || info.si_signo == SIGCHLD) continue;
    if (info.si_pid != getpid()) (void)kill(0, info.si_signo);  // comes back to us, from us
  }
  return status;
}

}  // namespace uzswap

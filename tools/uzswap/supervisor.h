// Runs one program so that uzswap's own life looks like the program's: status, signals, stop and continue.
//
// Idea: all signals that can be caught are blocked and taken one by one with sigtimedwait, so nothing happens
// in handlers and no race needs closing. What somebody sends to uzswap is sent on to the program. What the
// terminal sends (^C, ^\, ^Z, hang-up, resize) goes to the whole foreground group, and so reaches the program
// by itself: the kernel marks those SI_KERNEL, and they are not sent on. Limits: SIGKILL and SIGSTOP cannot
// be caught. The program gets SIGKILL if uzswap does (PR_SET_PDEATHSIG); SIGSTOP to uzswap alone stops it
// alone. A signal sent by kill(2) to the whole process group reaches the program twice, since it looks like
// one sent to uzswap. Threads: one; the process must have no other.
#pragma once

#include <signal.h>
#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace uzswap::cli {

struct ProgramEnd {
  bool signaled = false;
  int number = 0;  // the signal, or the exit status
};

struct ProgramStart {
  std::string path;                      // what to execute; has a slash
  std::vector<std::string> arguments;    // the first is the name that the user typed
  std::vector<std::string> environment;  // NAME=value
};

// Replaces this process. Returns errno if that fails. A text without `#!` goes to /bin/sh, as execvp(3) does
// it.
int ExecProgram(const ProgramStart& start);

class Supervisor {
 public:
  // Blocks the signals; construct before anything is started.
  Supervisor();
  // Unblocks them; what is still pending is delivered then.
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  // A signal to end that has come in so far (SIGINT, SIGTERM, SIGHUP, SIGQUIT), or 0.
  int PendingEnd() const;

  // Starts the program with the signal state that uzswap itself was started with. 0, or the errno of the
  // exec; the program has left nothing behind then.
  int Start(const ProgramStart& start);

  // Until the program has ended: sends signals on, mirrors stops, reaps. `on_tick` is called about every
  // `interval`; `on_child(pid)` for each other child that ended (one that this process had before, or orphans
  // if it is an init).
  ProgramEnd Wait(std::chrono::milliseconds interval, const std::function<void()>& on_tick,
                  const std::function<void(pid_t)>& on_child);

  pid_t pid() const { return pid_; }

  // Puts a freshly forked child's signals back to what uzswap was started with. Async-signal-safe.
  void RestoreInChild() const;

 private:
  void OnSignal(const siginfo_t& info);
  void MirrorStop(int signal) const;
  bool Reap(const std::function<void(pid_t)>& on_child, ProgramEnd* end) const;

  sigset_t taken_;
  sigset_t old_mask_;
  struct sigaction old_child_action_;
  pid_t pid_ = -1;
};

// Ends this process as the program ended: with its status, or by the same signal, without a core dump of its
// own.
[[noreturn]] void EndLike(const ProgramEnd& end);

}  // namespace uzswap::cli

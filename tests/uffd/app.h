// The test's end of the application process (app_main.cc).
//
// Idea: start it with the agent, tell its threads what to do, and see its memory as the kernel shows it.
// Threads: one at a time per box; the rest is const.
// Failure: what must not fail ends the test with a message and the watchdog (main.cc) ends what hangs.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "tests/uffd/mailbox.h"

namespace uzswap::test {

inline constexpr uint64_t kPage = 4096;

class App {
 public:
  // Starts the program with the agent, which attaches to `socket_path`; the caller must serve that, then
  // WaitReady.
  explicit App(const std::string& socket_path, uint64_t limit_bytes = 0,
               std::vector<std::string> variables = {});
  ~App();
  App(const App&) = delete;
  App& operator=(const App&) = delete;

  void WaitReady();
  pid_t pid() const { return pid_; }
  int tid(unsigned box) const { return shared_->boxes[box].tid.load(); }
  // The agent's thread.
  int agent_tid() const;
  Shared& shared() { return *shared_; }
  // The same address in the application: the scratch area is mapped there, too.
  uint64_t scratch_address();

  void Post(unsigned box, Op op, std::initializer_list<int64_t> args);
  // True if it is done within the time; result(), signal() are valid then.
  bool Wait(unsigned box, int timeout_ms = 20'000);
  bool IsDone(unsigned box) const { return shared_->boxes[box].state.load() == kDone; }
  int64_t result(unsigned box) const { return shared_->boxes[box].ret; }
  int signal(unsigned box) const { return shared_->boxes[box].signal; }
  // Post and Wait; the watchdog's if it hangs. Returns the result.
  int64_t Call(unsigned box, Op op, std::initializer_list<int64_t> args);
  int64_t Syscall(unsigned box, long number, std::initializer_list<int64_t> args);
  void PostSyscall(unsigned box, long number, std::initializer_list<int64_t> args);

  // A private anonymous mapping of its own, far from any other; no huge pages.
  uint64_t Map(uint64_t pages, int protection = 3 /* read, write */);
  // An address for a mapping that is not made yet.
  uint64_t FreeAddress();
  // Map and fill with generation 1.
  uint64_t MapFilled(uint64_t pages);

  // What the kernel shows of a page of process `pid` (0: this one).
  bool IsPresent(uint64_t address, pid_t pid = 0) const;
  // Waits until thread `box` sleeps in the kernel ('S' or 'D').
  void WaitBlocked(unsigned box) const;
  void Kill();

 private:
  pid_t pid_ = -1;
  int shared_fd_ = -1;
  Shared* shared_ = nullptr;
  uint64_t next_address_ = uint64_t{1} << 40;
};

// State letter of a thread, as /proc shows it; 0 if it is gone.
char ThreadState(pid_t pid, int tid);

}  // namespace uzswap::test

// What is said when something is wrong: to stderr, once per process, with the line that replays the run.
//
// Nothing here allocates or takes a lock, so a forked child of a process with threads may call it.
#pragma once

#include <signal.h>

#include <atomic>
#include <cstdint>

#include "tests/stress/memory.h"

namespace uzswap::stress {

// Where a thread is, for the report of a hang. In shared memory, so that a child's is seen too.
struct alignas(64) Progress {
  std::atomic<uint64_t> operations;
  std::atomic<uint32_t> unit;
  std::atomic<uint8_t> op;
  std::atomic<int32_t> child;  // pid of a child being waited for, 0: none
  std::atomic<uint32_t> in_operation;
  std::atomic<int32_t> tid;
};

class Reporter {
 public:
  Reporter(const Options& options, Memory& memory);

  // The unit, which lies at `at`, differs from `expected`, first at word `index`, where `found` was read.
  // Status 1.
  [[noreturn]] void WrongWord(const char* who, Op op, uint32_t unit, const std::byte* at,
                              const UnitState& expected, uint32_t index, uint64_t found);
  // Any other failure of what is verified (a child that failed, content that moved wrongly). Status 1.
  [[noreturn]] void Failure(const char* text);
  // The environment failed, or nothing moves. Status 3.
  [[noreturn]] void Trouble(const char* text);
  // Where every thread is: its operation, unit, kernel wait channel and system call.
  void DescribeThreads(const Progress* progress, uint32_t threads);
  // SIGSEGV, SIGBUS: says which unit the address belongs to, and fails.
  void InstallFaultHandlers();

 private:
  [[noreturn]] void End(int status);
  static void OnFault(int signal, siginfo_t* info, void* context);

  Memory& memory_;
  bool stop_;
  char replay_[512];
};

const char* NameOf(Op op);

}  // namespace uzswap::stress

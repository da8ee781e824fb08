// A child that answers one JSON line on its standard output for each JSON line on its standard input.
//
// Idea: both kinds of helper (the measured worker, the keeper of the peer's swap) are this program again with
// a hidden first argument, so neither inherits threads or half-used state, and end of file on standard input
// means "the bench is gone" to both.
//
// Lifetime: the destructor (and Stop) closes the child's standard input, waits a moment, kills it if it must,
// and reaps it. A worker dies with its parent as well (PR_SET_PDEATHSIG), whatever it is doing; a keeper is
// put into a session of its own and left to see the end of file, since it has to clean up.
//
// Waits look for an interrupt (interrupt.h) five times a second. Threads: one at a time.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "libzpool/base/fd.h"

namespace uzswap::bench {

class ChildProcess {
 public:
  enum class Kind { kDiesWithParent, kCleansUpByItself };

  // Starts argv (argv[0] is looked up in PATH if it has no slash). Throws BenchError.
  ChildProcess(std::vector<std::string> argv, Kind kind);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Sends `request`, returns the answer. Throws BenchError if the child ends, is silent for longer than
  // `timeout`, or answers {"error": text}.
  nlohmann::json Ask(const nlohmann::json& request, std::chrono::seconds timeout = std::chrono::seconds(300));
  // The next line that the child writes; same failures.
  nlohmann::json Read(std::chrono::seconds timeout = std::chrono::seconds(30));

  // Ends the child as the destructor would; returns its wait status. Does nothing the second time (returns
  // 0).
  int Stop();

  // The process that was started; with a wrapper (`uzswap run`) not the one that answers.
  pid_t pid() const { return pid_; }

 private:
  const Kind kind_;
  const std::string name_;
  pid_t pid_ = -1;
  zp::UniqueFd to_child_;
  zp::UniqueFd from_child_;
  std::string buffer_;
};

// The absolute path of this program.
std::string OwnPath();

}  // namespace uzswap::bench

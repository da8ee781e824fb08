// `uzswap run`: starts a program so that the agent attaches it to a daemon.
//
// Idea: whatever cannot work is found out before the program starts: program, agent, daemon, rights. Then
// there are two ways:
//   - a system daemon, no report: uzswap *becomes* the program (execve). Pid, status, signals and job control
//   are the
//     program's own, since there is nobody else.
//   - an embedded daemon, or a report to print: uzswap stays as the program's supervisor (supervisor.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace uzswap::cli {

struct RunOptions {
  uint64_t limit_bytes = 0;  // 0: attach without a limit
  std::string codec;         // "": the daemon's default
  std::string pool;
  std::string socket;     // --socket; "": not given
  bool embedded = false;  // a daemon of its own even where one runs
  bool report = false;
  uint64_t pool_limit_bytes = 0;  // of the embedded daemon; 0: its default
  std::vector<std::string> command;
};

// Returns an exit code for uzswap's own errors (125, 126, 127), having said why on stderr. Else ends as CMD
// did, or does not return at all.
int RunCommand(const RunOptions& options);

// The environment for the program, from `base` (NAME=value each). Exposed for tests.
std::vector<std::string> ProgramEnvironment(std::vector<std::string> base, const RunOptions& options,
                                            const std::string& agent, const std::string& socket);

}  // namespace uzswap::cli

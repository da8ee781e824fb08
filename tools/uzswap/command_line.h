// The command line: what the user typed, checked, as plain values.
//
// Threads: none. Exceptions: CLI11's stay inside.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tools/uzswap/run_command.h"

namespace uzswap::cli {

enum class Command {
  kRun,
  kStat,
  kDoctor,
  kLimit,
  kReclaim,
  kRestore,
  kUpgrade,
  kNodeList,
  kNodeDrain,
  kNodeOpen,
  kNodeBalance
};

struct CommandLine {
  Command command = Command::kStat;
  RunOptions run;
  std::string socket;  // of the commands other than run
  bool json = false;
  std::optional<uint64_t> pid;
  uint64_t bytes = 0;
  uint64_t node = 0;
  std::string program;  // of upgrade; empty: the uzswapd beside this program
};

// Parses the words after the program's name. Prints help, version or a complaint itself; nothing then, and
// the process is to end with *exit_code.
std::optional<CommandLine> ParseCommandLine(std::vector<std::string> words, int* exit_code);

}  // namespace uzswap::cli

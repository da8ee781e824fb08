// uzswap: the command line tool. See README.md.
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "tools/uzswap/client_commands.h"
#include "tools/uzswap/command_line.h"
#include "tools/uzswap/daemon_client.h"
#include "tools/uzswap/doctor.h"
#include "tools/uzswap/exit_codes.h"

namespace uzswap::cli {
namespace {

int Dispatch(const CommandLine& line) {
  const std::string socket = SocketPath(line.socket);
  switch (line.command) {
    case Command::kRun:
      return RunCommand(line.run);
    case Command::kStat:
      return RunStat(socket, line.pid, line.json);
    case Command::kDoctor:
      return RunDoctor(socket, line.json);
    case Command::kLimit:
      return RunLimit(socket, *line.pid, line.bytes);
    case Command::kReclaim:
      return RunReclaim(socket, *line.pid, line.bytes);
    case Command::kRestore:
      return RunRestore(socket, *line.pid);
    case Command::kUpgrade:
      return RunUpgrade(socket, line.program);
    case Command::kNodeList:
      return RunNodeList(socket, line.json);
    case Command::kNodeDrain:
      return RunNodeDrain(socket, line.node, line.json);
    case Command::kNodeOpen:
      return RunNodeOpen(socket, line.node);
    case Command::kNodeBalance:
      return RunNodeBalance(socket, line.json);
  }
  return kExitFailed;
}

}  // namespace
}  // namespace uzswap::cli

int main(int argc, char** argv) {
  using namespace uzswap::cli;
  int exit_code = kExitOk;
  bool running = false;
  try {
    const auto line = ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), &exit_code);
    if (!line) return exit_code;
    running = line->command == Command::kRun;
    return Dispatch(*line);
  } catch (const std::exception& error) {  // out of memory, or a library's complaint that nobody expected
    std::fprintf(stderr, "uzswap: %s\n", error.what());
    return running ? kExitRunFailed : kExitFailed;
  }
}

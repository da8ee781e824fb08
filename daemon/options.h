// What the daemon is told on its command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace uzswap {

inline constexpr char kVersionText[] = "0.1.0";

struct Options {
  std::string socket_path;
  bool embedded =
      false;          // ends when it has had a client, none remains, and stdin (the parent's pipe) is closed
  int ready_fd = -1;  // gets "1\n" when clients can attach
  std::string codec = "lz4";
  std::string pool = "zsmalloc";
  uint64_t pool_limit_bytes = 0;  // 0: half of the machine's memory
  std::string log_level = "info";
  bool supervise = false;  // stay as the parent of daemon and successors
  int successor = -1;      // take over the state whose client table this descriptor is
  int check_state = -1;    // only say whether this program could
};

// Parses; prints help, version or a complaint itself. Nothing: the process shall end with *exit_status.
std::optional<Options> ParseOptions(int argc, char** argv, int* exit_status);

}  // namespace uzswap

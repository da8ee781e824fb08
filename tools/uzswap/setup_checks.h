// What surrounds uzswap on this machine: the daemon, the agent library, limits, containers.
#pragma once

#include <string>
#include <vector>

#include "tools/uzswap/check.h"

namespace uzswap::cli {

// Whether a daemon answers at `socket_path`. Never missing: `uzswap run` starts one if there is none.
Check CheckDaemon(const std::string& socket_path, bool* answers);

// Whether the agent is found, and the dynamic linker really loads it by LD_PRELOAD (into a program that is
// only listed, not run). Both required.
std::vector<Check> CheckAgent();

// Limits and surroundings.
std::vector<Check> CheckSurroundings();

}  // namespace uzswap::cli

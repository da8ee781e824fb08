// What the kernel and this process's rights give: tried, not guessed from version numbers.
//
// Each check makes throw-away objects (userfaultfds, mappings, a child process) of its own and leaves nothing
// behind. All together take a few milliseconds.
#pragma once

#include <vector>

#include "tools/uzswap/check.h"

namespace uzswap::cli {

// What the daemon needs for itself: the device, CAP_SYS_PTRACE. Where a system daemon runs, its users need
// none of it.
std::vector<Check> CheckDaemonRights();

// What programs need of the kernel, whoever runs the daemon: UFFDIO_MOVE, PAGEMAP_SCAN, close_range and so
// on. Without the right to make a userfaultfd from the device, the ioctls are tried on one for user-mode
// faults only.
std::vector<Check> CheckKernel();

}  // namespace uzswap::cli

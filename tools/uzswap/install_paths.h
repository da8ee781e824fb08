// Where uzswapd and the agent are: beside this program in a build tree, or installed.
#pragma once

#include <string>

#include "tools/uzswap/or_message.h"

namespace uzswap::cli {

// The directory of the running executable, without a final slash; "" if /proc is not there.
std::string ExecutableDirectory();

// uzswapd: $UZSWAPD, else the build tree's (../../daemon/), else the install prefix's, else along $PATH.
OrMessage<std::string> FindDaemonProgram();

// libuzswap-agent.so: $UZSWAP_AGENT, else the build tree's (../agent/), else the install prefix's library
// directory. Checks that it is a shared object for this machine and that its path survives in LD_PRELOAD,
// whose separators are colon and blank.
OrMessage<std::string> FindAgentLibrary();

}  // namespace uzswap::cli

// Asking another program whether it could go on with this daemon's state.
#pragma once

#include <string>

#include "daemon/state/client_table.h"

namespace uzswap {

// Runs `program --check-state` with the table; "" if it says yes, else what it said, or why it could not be
// asked. Waits for it, some seconds at most. Nothing changes.
std::string WhyNotSuccessor(const std::string& program, const ClientTable& table);

}  // namespace uzswap

// `uzswap doctor`: every requirement, found or not, and the fix.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/uzswap/check.h"

namespace uzswap::cli {

// Looks at everything. Where a daemon answers at `socket_path`, what only the daemon needs becomes a note.
std::vector<Check> Examine(const std::string& socket_path);

// One line per check, its fix below, a verdict at the end. Ends with a newline.
std::string RenderDoctor(const std::vector<Check>& checks);

// {"schema":"uzswap.doctor/1","ok":B,"checks":[{"name","status":"ok|missing|note","detail","fix"}]}
nlohmann::json DoctorJson(const std::vector<Check>& checks);

// Examines and prints. kExitOk if nothing required is missing, else kExitFailed.
int RunDoctor(const std::string& socket_path, bool json);

}  // namespace uzswap::cli

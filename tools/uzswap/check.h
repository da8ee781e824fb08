// One requirement of uzswap, looked at: what `uzswap doctor` lists.
#pragma once

#include <string>
#include <vector>

namespace uzswap::cli {

enum class CheckStatus {
  kOk,
  kMissing,  // required, and not there; `fix` says how to get it
  kNote,     // not required, but worth knowing; `fix` may say what to do
};

struct Check {
  std::string name;
  CheckStatus status = CheckStatus::kOk;
  std::string detail;  // what was found
  std::string fix;     // "" if nothing is to be done
};

// Those that are missing, each as "name: detail" and its fix, one indented line each; "" if none is.
std::string RenderMissing(const std::vector<Check>& checks);

}  // namespace uzswap::cli

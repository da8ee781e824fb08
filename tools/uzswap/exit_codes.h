// The CLI's exit codes. `uzswap --help` and README.md list them; scripts rely on them.
#pragma once

namespace uzswap::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // stat, doctor, limit, reclaim, restore: said why on stderr
inline constexpr int kExitUsage = 2;   // the same commands: wrong option or argument

// `run` gives CMD's status; what is left for itself follows env(1), nohup(1) and timeout(1).
inline constexpr int kExitRunFailed = 125;
inline constexpr int kExitNotExecutable = 126;
inline constexpr int kExitNotFound = 127;

}  // namespace uzswap::cli
